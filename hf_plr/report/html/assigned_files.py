"""Files of an assigned data set: the table, `assigned.json` with what its page shows, and `assigned.html`, the page."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_plr.pseudo_labels.label_files import check_output
from hf_plr.report.html.render import ASSIGNED, as_json, render
from hf_plr.utils.files import replacing
from hf_plr.utils.run_files import refuse_run_files
from hf_plr.utils.tables import check_ending, writing_table


def list_outputs(path: str | os.PathLike[str]) -> list[Path]:
    """List the files that belong together: the page, its data, and the table, which is written last.

    Raises:
        ValueError: if the path names neither a .csv nor a .parquet file.
    """
    table = Path(path)
    check_ending(path, "assigned samples")
    return [table.with_suffix(".html"), table.with_suffix(".json"), table]


def check_outputs(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Reject a path that `write_assigned` could not write, before any work.

    Raises:
        ValueError, OSError: naming the file.
    """
    files = list_outputs(path)
    refuse_run_files(files)
    check_output(str(files[-1]), overwrite)
    for file in files:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists already: give --overwrite to replace it")


def write_assigned(
    path: str | os.PathLike[str], table: pa.Table, report: dict[str, Any], overwrite: bool = False
) -> None:
    """Write a table, and page and data of the same name beside it.

    All are complete under temporary names before the first of them is renamed, so that an interruption leaves whole
    files.

    Args:
        path: a .csv or .parquet file.
        table: the table.
        report: what the page shows.
        overwrite: True to replace what exists.

    Raises:
        ValueError, OSError: if they cannot be written.
    """
    check_outputs(path, overwrite)
    files = list_outputs(path)
    with contextlib.ExitStack() as stack:  # which leaves the context of the table as the last one
        write_table = stack.enter_context(writing_table(files[-1], table.schema))
        unnamed_data, unnamed_page = (stack.enter_context(replacing(file)) for file in reversed(files[:-1]))
        text = as_json(report)
        unnamed_page.write_text(render(report, text, ASSIGNED), encoding="utf-8")
        unnamed_data.write_text(text, encoding="utf-8")
        write_table(table)
