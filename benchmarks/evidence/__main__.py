"""Is it worth it? The default beside no refinement and beside peers, at equal image passes, from the same start.

  python -m benchmarks.evidence --suite quick --json quick.jsonl
      digits in minutes on one CPU core
  python -m benchmarks.evidence --suite cpu --data DATA --json cpu.jsonl
      seven tasks, hours; DATA is a folder with omniglot, fsdd, cifar-5, magnetic-tile and dinov2-small-saliency
  python -m benchmarks.evidence --suite gpu --data DATA --json gpu.jsonl
      the same with more epochs, larger batches, all 60,000 images of Fashion-MNIST and 10,000 of CIFAR-10
  python -m benchmarks.evidence --tune --data DATA --json tuning.jsonl
      the grid that peers' settings come from
  python -m benchmarks.evidence --summary cpu.jsonl
      the tables
  python -m benchmarks.evidence --default labelings.jsonl
      the tables of docs/explanation/evidence_of_0.1.md, from version 0.1's records
  python -m benchmarks.evidence --brief peers.jsonl
      the table of the README; --overview prints that of docs/explanation/does_it_help.md

DATA has a folder for each, as `datasets.load_dataset` reads it, with the columns that tasks.py beside this names:
omniglot (characters; its folders target and source), fsdd (the Free Spoken Digit Dataset), cifar-5 (five classes of
CIFAR-10) and magnetic-tile (magnetic-tile defects); and in dinov2-small-saliency the weights and the processor of a
DINOv2-small.

Every run ends with one line in the file of results. Called again, what is there is not run again; several processes may
write to one file if each takes its share (--share 0/2 and --share 1/2). True labels score and do nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

from benchmarks.evidence import tuning
from benchmarks.evidence.defaults import off_settings, own_settings, parts
from benchmarks.evidence.readout import SPACES
from benchmarks.evidence.runs import Run, append_record, carry_out, read_records, runs_of
from benchmarks.evidence.selection import select
from benchmarks.evidence.summary import BETTER, CHOICES, FURTHER_PEERS, brief, overview, summarise
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.ways import AS_IT_IS, SUITES, WAYS, Peer


def main() -> None:
    """Run what is not there yet, then print the tables."""
    parser = make_parser()
    args = parser.parse_args()
    if args.selection:
        print(select(args.selection))
    elif args.default:
        print("\n\n".join(table(args.default) for table in (own_settings, parts, off_settings)))
    elif args.overview:
        choices = FURTHER_PEERS if args.further_peers else CHOICES
        print(overview(args.overview, args.from_seed, choices, args.space))
    elif args.brief:
        print(brief(args.brief))
    elif args.summary:
        print(summarise(args.summary, args.space))
    elif args.json is None:
        parser.error("--json is needed: the file of results")
    else:
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(args.threads)
        run_all(choose_runs(args), args)
        print(tuning.report([args.json]) if args.tune else summarise([args.json], args.space))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=list(SUITES), default="quick", help="what to run (default: %(default)s)")
    parser.add_argument("--tune", action="store_true", help="run the grid of peers' settings in place of a suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of results, one line of JSON a run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)")
    parser.add_argument(
        "--starts", type=Path, default=Path("out/evidence"), help="folder for trained starts (default: %(default)s)"
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="only these of the suite's data sets")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), metavar="WAY", help="only these of the suite's ways")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 (default: the suite's)")
    parser.add_argument("--budget", type=int, default=1, help="multiple of the tasks' epochs (default: %(default)s)")
    parser.add_argument(
        "--settings",
        choices=("all", "own", "off"),
        default="all",
        help="the tasks' own settings, those that are off (half and double K, another eps or rate), or all (default)",
    )
    parser.add_argument("--share", default="0/1", metavar="I/N", help="every N-th run from the I-th (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default: %(default)s)")
    parser.add_argument("--brief", nargs="+", type=Path, metavar="FILE", help="only print the table of the README")
    parser.add_argument(
        "--overview", nargs="+", type=Path, metavar="FILE", help="the same with intervals, of does_it_help.md"
    )
    parser.add_argument(
        "--further_peers", action="store_true", help="SwAV, BYOL and DIET in --overview, not the others"
    )
    parser.add_argument("--from_seed", type=int, default=0, metavar="N", help="only seeds from N on in --overview")
    parser.add_argument("--summary", nargs="+", type=Path, metavar="FILE", help="only print the tables of these files")
    parser.add_argument(
        "--space",
        choices=[*SPACES, BETTER],
        default="centered",
        help="space of the scores; better: of each way the one in which it scores higher (default: %(default)s)",
    )
    parser.add_argument(
        "--default", nargs="+", type=Path, metavar="FILE", help="only print the tables of version 0.1's records"
    )
    parser.add_argument(
        "--selection",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="only print which scores without labels pick well, by version 0.1's records",
    )
    return parser


def choose_runs(args: argparse.Namespace) -> dict[Run, Peer | None]:
    """Choose the runs that the command line names, with the settings that a run of the grid has."""
    runs: dict[Run, Peer | None] = {}
    runs |= tuning.grid() if args.tune else dict.fromkeys(runs_of(args.suite, args.seeds, args.budget))
    return {
        run: peer
        for run, peer in runs.items()
        if run.task in (args.tasks or TASKS)
        and run.way in (args.ways or WAYS)
        and (args.tune or args.settings in ("all", "own" if run.variation == AS_IT_IS else "off"))
    }


def run_all(runs: dict[Run, Peer | None], args: argparse.Namespace) -> None:
    """Carry out this process's share of the runs that have no record yet."""
    missing = sorted({run.task for run in runs if not TASKS[run.task].is_there(args.data)})
    if missing:
        print(f"Left out, their data are not there: {', '.join(missing)}", flush=True)
    share, shares = map(int, args.share.split("/"))
    for number, run in enumerate(run for run in runs if run.task not in missing):
        if number % shares != share or run in read_records(args.json):
            continue
        record = carry_out(run, args.data, args.starts, runs[run])
        append_record(args.json, record)
        scores = record["readout"]["centered"]
        print(
            f"{run.task:<14} {run.variation:<10} {run.way:<8} seed {run.seed}: kNN {scores['knn']:.3f}, linear "
            f"{scores['linear']:.3f}, NMI {scores['nmi']:.3f} in {record['seconds']['all']:.0f} s, "
            f"{record['passes']:.0f} passes",
            flush=True,
        )


if __name__ == "__main__":
    main()
