"""Pages that commands write again after a change of what people say of a run."""

from __future__ import annotations

import sys
from pathlib import Path


def write_pages(folder: Path, command: str, kept: str) -> list[Path]:
    """Write the report and the model card of a run again, where they are; a fault is a warning, as the change is kept.

    Args:
        folder: output folder of the run.
        command: name of the command, for the warning.
        kept: words that say what is kept, for the warning.

    Returns:
        The files that were written.
    """
    from hf_plr.hub.people_card import CARD_FILE, write_people_into_card
    from hf_plr.report.file_names import PAGE_FILE
    from hf_plr.report.html.earlier_runs import render_again

    written = []
    for page, write_again in ((PAGE_FILE, render_again), (CARD_FILE, write_people_into_card)):
        try:
            written.append(write_again(folder))
        except (OSError, ValueError) as error:
            is_named = isinstance(error, ValueError) or error.filename is not None  # a full disk names no file
            fault = str(error) if is_named else f"{folder / page} cannot be written: {error}"
            print(f"hf-plr {command}: {kept}, but not shown everywhere: {fault}", file=sys.stderr)
    return [path for path in written if path is not None]
