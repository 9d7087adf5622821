"""Write the report of a run: one page that opens offline.

  hf-plr report out

`out` is the output folder of a run. The page is made from its report.json, which the run wrote, and takes the scores of
its metrics.json, and the names of its clusters and the history over runs as they are now. For an older run without
report.json it shows the metrics and the sizes of the last clusters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_plr.utils.files import check_parent
from hf_plr.utils.run_files import refuse_run_files

SUMMARY = "write a run's report.html again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr report`."""
    parser.add_argument("folder", metavar="OUT", help="output folder of a run")
    parser.add_argument("--output", metavar="FILE", help="where the page goes (default: report.html in OUT)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def run(args: argparse.Namespace) -> None:
    """Render the page, and print its path.

    Raises:
        ValueError, OSError: if the folder holds no run, its files are damaged, or the output may not be written.
    """
    from hf_plr.report.file_names import PAGE_FILE
    from hf_plr.report.html.earlier_runs import report_of
    from hf_plr.report.html.render import MIB, render
    from hf_plr.utils.files import write_text

    folder = Path(args.folder)
    path = folder / PAGE_FILE if args.output is None else Path(args.output)
    _check_output(path, folder / PAGE_FILE, args.overwrite)
    page = render(report_of(folder))
    write_text(path, page)
    print(f"Wrote {path} ({len(page.encode()) / MIB:.1f} MiB): open it in a browser")


def _check_output(path: Path, own: Path, overwrite: bool) -> None:
    """Reject what is no page, is another run's, or is there and not the run's own, which is written again and again."""
    if path.suffix.lower() != ".html":
        raise ValueError(f"--output {path}: the page is written as .html; name such a file")
    if path.exists() and own.exists() and path.samefile(own):
        return
    if path.parent.resolve() != own.parent.resolve():
        refuse_run_files([path])
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: give --overwrite to replace it")
    check_parent(path)
