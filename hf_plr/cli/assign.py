"""Assign new images or recordings to the clusters of a finished run, and find what fits none of them.

  hf-plr assign --model out --dataset NEW --output assigned.parquet
  hf-plr assign --model out --dataset NEW --output assigned.csv

`out` is the output folder or Hub id of a run that labels whole samples. NEW is a Hub id, a folder of images or
recordings, an archive or a table. The output has one row per sample: its index, its file if that is known, its cluster
(label, -1 for a new sample, and name where clusters have names), its cluster in each level of the run (level_8, and
name_8 where there are names), the nearest and the second nearest cluster with their similarities, its novelty, and the
share of the run's own samples that are at least as novel (p_value). A sample is new if that share is at most
--false_alarms. New samples that are alike are numbered as proposed patterns in column group.

Beside it, assigned.html shows the shares of the known clusters against training, the new patterns with their samples
and, with --time_column, what changes over time; assigned.json holds the same as data. Pooling, layer, length and
segments are those of the run.

The exit status is 3 with --fail_on_new N if N or more samples are new, so that a scheduled job can raise an alarm.
"""

from __future__ import annotations

import argparse
import sys
import time

from hf_plr.cli.samples import add_sample_arguments, prepare_output
from hf_plr.utils.tables import ENDINGS

SUMMARY = "assign new images or recordings to a run's clusters, and find what is new"
ALARM = 3  # exit status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr assign`."""
    add_sample_arguments(parser, "images or recordings", "assigned samples", ENDINGS)
    parser.add_argument("--image_column", metavar="NAME", help="column with the images (default: the only one)")
    parser.add_argument("--audio_column", metavar="NAME", help="column with the recordings (default: the only one)")
    parser.add_argument(
        "--false_alarms",
        type=float,
        metavar="F",
        help="fraction of samples of known clusters that may be taken for new (default: 0.01, or the finest that fewer "
        "than 99 known samples can tell)",
    )
    parser.add_argument("--time_column", metavar="NAME", help="column of dates or numbers, for shares over time")
    parser.add_argument("--fail_on_new", type=int, metavar="N", help="exit with status 3 if N or more samples are new")
    parser.add_argument(
        "--batch_size", type=int, default=256, metavar="B", help="images, or seconds, per batch (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Assign, write, tell; returns the exit status.

    Raises:
        ValueError, OSError: if the arguments, the model or the data do not fit.
    """
    prepare_output(args, "assigned samples", ENDINGS)
    if args.fail_on_new is not None and args.fail_on_new < 1:
        raise ValueError(f"--fail_on_new {args.fail_on_new} must be at least 1")

    # Imported here: `hf-plr refine` needs no torch.
    from hf_plr.jobs.assignment import assign
    from hf_plr.report.html.assigned_files import check_outputs, list_outputs
    from hf_plr.report.html.assigned_summary import summarize

    check_outputs(args.output, args.overwrite)
    names = ("image_column", "audio_column", "skip_unreadable")
    settings = {name: value for name in names if (value := getattr(args, name))}
    start = time.perf_counter()
    assigned = assign(
        args.model,
        args.dataset,
        false_alarms=args.false_alarms,
        time_column=args.time_column,
        split=args.split,
        dataset_config_name=args.dataset_config_name,
        batch_size=args.batch_size,
        progress=True,
        **settings,
    )
    assigned.write(args.output, args.overwrite)
    seconds = time.perf_counter() - start
    for line in summarize(assigned.report):
        print(line)
    page, _, table = list_outputs(args.output)
    n_samples = len(assigned.table)
    print(f"Wrote {table} and {page.name} in {seconds:.1f} s ({n_samples / seconds:.0f} {assigned.plural} per second)")
    if args.fail_on_new is None or assigned.n_new < args.fail_on_new:
        return 0
    print(
        f"hf-plr assign: alarm: {assigned.n_new:,} new {assigned.plural}, and --fail_on_new {args.fail_on_new}",
        file=sys.stderr,
    )
    return ALARM
