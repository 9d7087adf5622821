"""Write the report of a run: one page that opens offline.

  hf-plr report out

`out` is the output folder of a run. The page is made from its report.json, which the run wrote, and takes the scores of
its metrics.json, and the names of its clusters and the history over runs as they are now. For an older run without
report.json it shows the metrics and the sizes of the last clusters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "write a run's report.html again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr report`."""
    parser.add_argument("folder", metavar="OUT", help="output folder of a run")
    parser.add_argument("--output", metavar="FILE", help="where the page goes (default: report.html in OUT)")


def run(args: argparse.Namespace) -> None:
    """Render the page, and print its path.

    Raises:
        ValueError, OSError: if the folder holds no run, or its files are damaged.
    """
    from hf_plr.report.file_names import PAGE_FILE
    from hf_plr.report.html.earlier_runs import report_of
    from hf_plr.report.html.render import MIB, render
    from hf_plr.utils.text_files import write_text

    folder = Path(args.folder)
    path = folder / PAGE_FILE if args.output is None else Path(args.output)
    page = render(report_of(folder))
    write_text(path, page)
    print(f"Wrote {path} ({len(page.encode()) / MIB:.1f} MiB): open it in a browser")
