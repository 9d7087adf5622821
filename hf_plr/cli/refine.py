"""Refine the labels of one clustering by those of another one of the same samples.

For clusters of other tools: give the labels of the last epoch and of this one, get this epoch's refined. Samples must
be in the same order in all files, of which columns index, digest and file are compared; -1 is noise. A .npy file is
memory-mapped, so that its size does not matter.

  hf-plr refine --previous epoch1.npy --current epoch2.npy --output refined.parquet

Labels of many samples may lie in folders of shard files, as `hf-plr cluster` writes them; what is shard by shard in the
order of the names must label the same samples. The output is then a folder with a .parquet file per shard, and the
refined labels are those of one file with all samples, while memory holds one shard and the occupied cells:

  hf-plr refine --previous refined/1 --current clusters/2 --output refined/2
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np

from hf_plr.jobs.refinement import NAMING_COLUMNS, LabelShards, check_same_samples, refine_shards
from hf_plr.pseudo_labels.label_files import LabelFile, check_output, write_labels
from hf_plr.refinement import NOISE, PRESETS, CellRefinement, PseudoLabelRefiner, adjusted_rand, cooccurrence
from hf_plr.utils.words import count_noun

SUMMARY = "refine cluster labels by those of the epoch before"
SHOWN_EVENTS = 10
COLUMN_OPTION = "--column"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr refine`."""
    files = parser.add_argument_group("files (.npy, .csv or .parquet), or folders of such files")
    files.add_argument(
        "--previous", required=True, nargs="+", metavar="FILE",
        help="labels of the epoch before; of several epochs for --space joint or --preset consensus, oldest first",
    )  # fmt: skip
    files.add_argument("--current", required=True, metavar="FILE", help="labels of this epoch")
    files.add_argument("--output", required=True, metavar="FILE", help="where the refined labels go")
    files.add_argument(
        COLUMN_OPTION, metavar="NAME", help="column with the labels (default: 'label', or the only one of integers)"
    )
    files.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    options = parser.add_argument_group("refinement (defaults are the preset's)")
    one_level = [
        name for name, preset in PRESETS.items() if preset.get("n_levels", 1) == 1
    ]  # a file has one label each
    options.add_argument("--preset", default="slr", choices=one_level, help="set of defaults (default: %(default)s)")
    options.add_argument("--weight", type=float, help="fraction of the current labels in the blend, in [0, 1]")
    options.add_argument("--space", help="projected or joint")
    options.add_argument("--normalize", help="row or column")
    options.add_argument("--assignment", help="hierarchical, argmax, soft or current")
    options.add_argument("--linkage", help="average, ward, complete, single or centroid")
    options.add_argument(
        "--n_clusters", type=_parse_n_clusters, metavar="N",
        help="cut into as many clusters, or 'current'; more are left where merges at the cut are tied, or where no "
        "labeling has clusters together (--preset consensus)",
    )  # fmt: skip
    options.add_argument("--distance_threshold", type=float, metavar="D", help="cut at this height instead")
    options.add_argument("--noise", help="project (noise is taken back in) or drop")
    options.add_argument("--min_cluster_size", type=int, metavar="N", help="smaller clusters become noise")
    options.add_argument("--max_cells", type=int, metavar="N", help="more cells than this may be folded")


def _parse_n_clusters(text: str) -> int | str:
    try:
        return text if text == "current" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'current'") from None


def run(args: argparse.Namespace) -> None:
    """Refine, write the labels, print a summary.

    Raises:
        ValueError, TypeError, OSError: if the files or the options do not fit.
    """
    epochs = [*args.previous, args.current]
    refiner = PseudoLabelRefiner.from_preset(args.preset, **_collect_options(args, len(epochs)))
    if any(os.path.isdir(epoch) for epoch in epochs):
        shards = LabelShards(epochs, args.column, COLUMN_OPTION)
        print(describe_refinement(refine_shards(shards, refiner, args.output, args.overwrite), refiner.n_clusters))
    else:
        check_output(args.output, args.overwrite)  # before the work
        files = [LabelFile.open(path, args.column, COLUMN_OPTION, others=NAMING_COLUMNS) for path in epochs]
        check_same_samples(files)
        cells = refiner.refine_cells(cooccurrence(*(file.labels for file in files)))
        write_labels(args.output, files, cells, overwrite=args.overwrite)
        print(describe_refinement(cells, refiner.n_clusters))
    print(f"\nWrote {args.output}")


def _collect_options(args: argparse.Namespace, generations: int) -> dict[str, Any]:
    names = (
        "weight", "space", "normalize", "assignment", "linkage", "n_clusters", "distance_threshold", "noise",
        "min_cluster_size", "max_cells",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "distance_threshold" in options and "n_clusters" not in options:
        options["n_clusters"] = None
    elif "n_clusters" in options and "distance_threshold" not in options:
        options["distance_threshold"] = None
    return {**options, "generations": generations}


def describe_refinement(cells: CellRefinement, asked: str | int | None = None) -> str:
    """Describe a refinement for people: sizes, agreement, events; and if more clusters are left than a number asked."""
    table = cells.table
    n_samples = int(table.counts.sum())
    exactness = "exact" if cells.exact else "not exact: light cells were folded into similar ones"
    size = f"{count_noun(n_samples, 'sample')} in {count_noun(len(table), 'cell')}"
    lines = [f"{size} ({exactness})", "", f"{'':10}{'clusters':>10}{'noise':>9}"]
    labelings = {"previous": table.previous, "current": table.current, "refined": cells.labels}
    for name, labels in labelings.items():
        n_clusters = len(np.unique(labels[labels != NOISE]))
        noise = table.counts[labels == NOISE].sum() / n_samples
        lines.append(f"{name:10}{n_clusters:>10,}{noise:>9.1%}")
    if isinstance(asked, int) and n_clusters > asked:
        lines += [
            "",
            f"More clusters are left than the {asked:,} asked for: merges there are tied, or missing.",
        ]
    lines += ["", "Agreement (adjusted Rand index, 1 = the same):"]
    for first, second in (("previous", "current"), ("previous", "refined"), ("current", "refined")):
        agreement = adjusted_rand(labelings[first], labelings[second], table.counts)
        lines.append(f"  {f'{first} and {second}':<22}{agreement:>7.3f}")
    lines += ["", f"Refinement moved {cells.changed_share:.1%} of the samples to another cluster."]
    lines += [
        "",
        "From previous to refined: " + ", ".join(f"{n:,} {kind}" for kind, n in cells.events.counts().items()),
    ]
    changes = [event for event in cells.events if event.kind != "kept"]
    for event in changes[:SHOWN_EVENTS]:
        before, after = (_format_clusters(clusters) for clusters in (event.previous, event.current))
        samples = count_noun(event.samples, "sample")
        lines.append(f"  {event.kind:<9} {before or '(nothing)'} -> {after or '(nothing)'}: {samples}")
    if len(changes) > SHOWN_EVENTS:
        lines.append(f"  ... and {len(changes) - SHOWN_EVENTS:,} smaller ones")
    return "\n".join(lines)


def _format_clusters(clusters: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, clusters[:8]))
    return shown + (f", ... ({len(clusters)} in all)" if len(clusters) > 8 else "")
