"""Cut the tree of a run's clusters: into fewer, larger ones, without features, model or data.

  hf-plr cut out --clusters 10 --output ten.parquet
  hf-plr cut out --height 0.3
  hf-plr cut out --clusters 10 --keep 3,17 --join 4,9 --output ten.parquet
  hf-plr cut out --levels 8,16,32 --output levels.parquet
  hf-plr cut out --output clusters.csv

`out` is a run's output folder. ten.parquet has a row per sample: what tells samples apart, label (the cluster of the
level, -1 = in none), cluster (the run's own label) and, where clusters have names, name. It is a file of labels that
--labels of a training takes. With --levels the run's labels stay in the column label (name has their names), and each
level has a column, such as level_8. Levels are nested: what is together in one is together in every level of fewer
clusters. Without --clusters, --height and --levels they are those of the run, its columns level_N, so that clusters.csv
has the clusters of the run as they are. Without --output nothing is written. A .csv has the columns of a .parquet.

--keep 3,17 keeps clusters 3 and 17 apart, --join 4,9 joins 4 and 9 before anything else; both can be given several
times. The number of a cluster of a level is that in the run's column level_N, if the run has that level and nothing is
pinned. Otherwise it is that of its most senior cluster: of the earliest run that has it, then the largest there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence

from hf_plr.refinement.cluster_tree import ClusterTree, Level, TreeError
from hf_plr.report.level_table import check_output, write_level, write_levels
from hf_plr.report.names import read_cluster_names
from hf_plr.report.tree_file import read_levels, read_tree
from hf_plr.utils.words import count_noun

SUMMARY = "cut the tree of clusters into fewer, larger ones"
SHOWN = 8  # clusters of the run that are listed for one of a level
SHOWN_ROWS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr cut`."""
    parser.add_argument("folder", metavar="OUT", help="output folder of the run")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--clusters", type=int, metavar="N", help="number of clusters to leave")
    where.add_argument("--height", type=float, metavar="H", help="largest height of the merges that are made")
    where.add_argument("--levels", type=_parse_integers, metavar="N,N", help="several numbers of clusters")
    for pin, meaning in (("--keep", "clusters that stay apart"), ("--join", "clusters that are joined first")):
        parser.add_argument(pin, type=_parse_integers, action="append", default=[], metavar="C,C", help=meaning)
    parser.add_argument("--output", metavar="FILE", help="the .csv or .parquet file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def run(args: argparse.Namespace) -> None:
    """Cut the tree, tell what came out, and write it.

    Raises:
        ValueError, OSError: if the files or the cut do not fit.
    """
    tree, own, names = read_tree(args.folder), read_levels(args.folder), read_cluster_names(args.folder)
    if args.output is not None:
        check_output(args.folder, args.output, args.overwrite)
    pins = {"keep": args.keep, "join": args.join}
    own = {} if args.keep or args.join else own  # with pins, other clusters
    if args.clusters is not None or args.height is not None:
        level = own.get(args.clusters) or _cut(tree, args.clusters, args.height, **pins)
        print(describe_level(level, names))
        if args.output is not None:
            n_samples = write_level(args.folder, args.output, level, names)
            print(f"\nWrote {args.output}: {count_noun(n_samples, 'sample')}")
        return
    numbers = (list(own) or tree.choose_levels()) if args.levels is None else sorted(set(args.levels))
    if not numbers and args.output is None:
        raise ValueError(f"{args.folder}: {len(tree)} clusters have no levels between them: name one with --clusters")
    levels = {n: own.get(n) or _cut(tree, n, None, **pins) for n in numbers}
    if levels:
        print(describe_levels(tree, levels))
    if args.output is not None:
        n_samples = write_levels(args.folder, args.output, levels, names)
        columns = ", columns " + ", ".join(f"level_{n}" for n in numbers) if numbers else ""
        print(f"\nWrote {args.output}: {count_noun(n_samples, 'sample')}{columns}")


def describe_level(level: Level, names: Mapping[int, str]) -> str:
    """List the clusters of a level, the largest first, with the clusters of the run in each."""
    level_names = level.names(names)
    clusters = count_noun(len(level.labels), "cluster is", "clusters are")
    lines = [f"{clusters} cut into {len(level):,} at height {level.height:.3f}.", ""]
    has_names = bool(names or level.own_names)
    lines += [f"{'number':>8}{'samples':>11}{'clusters':>10}  " + ("name" if has_names else "which")]
    for number, members in list(level.members.items())[:SHOWN_ROWS]:
        which = ", ".join(map(str, members[:SHOWN])) + (", ..." if len(members) > SHOWN else "")
        words = level_names.get(number, "-") if has_names else which
        lines.append(f"{number:>8}{level.size(number):>11,}{len(members):>10,}  {words}")
    more = len(level) - SHOWN_ROWS
    return "\n".join([*lines, f"{'...':>8}  {more:,} more" if more > 0 else ""]).rstrip()


def describe_levels(tree: ClusterTree, levels: Mapping[int, Level]) -> str:
    """List levels, a line each, with the height of their last merge and of the next one."""
    lines = [f"{'level':>8}{'height':>9}{'next':>9}{'largest':>11}{'smallest':>11}"]
    for n, level in levels.items():
        sizes = [level.size(number) for number in level.members]
        higher = tree.heights[tree.heights > level.height]
        following = f"{higher[0]:.3f}" if len(higher) else "-"
        lines.append(f"{n:>8,}{level.height:>9.3f}{following:>9}{max(sizes):>11,}{min(sizes):>11,}")
    return "\n".join(lines)


def _cut(
    tree: ClusterTree,
    clusters: int | None,
    height: float | None,
    keep: Sequence[Sequence[int]],
    join: Sequence[Sequence[int]],
) -> Level:
    try:
        return tree.cut(clusters, height, keep=keep, join=join)
    except TreeError as error:
        raise ValueError(f"there is no such cut: {error}") from error


def _parse_integers(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise argparse.ArgumentTypeError(f"{text!a} is not a list of whole numbers, such as 3,17")
    return [int(part) for part in text.split(",")]
