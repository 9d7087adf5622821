"""Does refinement help? Train with and without it from the same start, and print the paired differences.

  python -m benchmarks.evidence --suite quick --json quick.jsonl
      digits in under ten minutes on two CPU cores
  python -m benchmarks.evidence --suite cpu --data DATA --json cpu.jsonl
      five data sets, hours; DATA is a folder with omniglot, fsdd, cifar-5 and dinov2-small-saliency
  python -m benchmarks.evidence --suite gpu --data DATA --json gpu.jsonl
      the same with more epochs, larger batches, all 60,000 images of Fashion-MNIST and 10,000 of CIFAR-10
  python -m benchmarks.evidence --summary cpu.jsonl
  python -m benchmarks.evidence --default cpu.jsonl
      the tables of README and model cards

Every run ends with one line in the file of results. Called again, what is there is not run again; several processes may
write to one file if each takes its share (--share 0/2 and --share 1/2). True labels score and do nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

from benchmarks.evidence.defaults import off_settings, own_settings, parts
from benchmarks.evidence.runs import append_record, carry_out, read_records, runs_of
from benchmarks.evidence.selection import select
from benchmarks.evidence.summary import summarise
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.ways import AS_IT_IS, SUITES


def main() -> None:
    """Run what is not there yet, then print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=list(SUITES), default="quick", help="what to run (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of results, one line of JSON a run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)")
    parser.add_argument(
        "--starts", type=Path, default=Path("out/evidence"), help="folder for trained starts (default: %(default)s)"
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="only these of the suite's data sets")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="only these of the suite's ways")
    parser.add_argument("--seeds", type=int, metavar="N", help="only the first N seeds of the suite")
    parser.add_argument(
        "--settings",
        choices=("all", "own", "off"),
        default="all",
        help="the tasks' own settings, those that are off (half and double K, other eps), or all (default)",
    )
    parser.add_argument("--share", default="0/1", metavar="I/N", help="every N-th run from the I-th (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default: %(default)s)")
    parser.add_argument("--summary", nargs="+", type=Path, metavar="FILE", help="only print the tables of these files")
    parser.add_argument(
        "--default", nargs="+", type=Path, metavar="FILE", help="only print the default beside no refinement"
    )
    parser.add_argument(
        "--score", metavar="NAME", help="with --summary: compare this one, such as nmi or linear_probe_accuracy"
    )
    parser.add_argument(
        "--selection", nargs="+", type=Path, metavar="FILE", help="only print which scores without labels pick well"
    )
    args = parser.parse_args()
    if args.selection:
        print(select(args.selection))
        return
    if args.default:
        print("\n\n".join(table(args.default) for table in (own_settings, parts, off_settings)))
        return
    if args.summary:
        print(summarise(args.summary, args.score))
        return
    if args.json is None:
        parser.error("--json is needed: the file of results")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    share, shares = map(int, args.share.split("/"))
    runs = [
        run
        for run in runs_of(args.suite)
        if run.task in (args.tasks or TASKS)
        and (args.ways is None or run.way in args.ways)
        and (args.seeds is None or run.seed < args.seeds)
        and args.settings in ("all", "own" if run.variation == AS_IT_IS else "off")
    ]
    missing = sorted({run.task for run in runs if not TASKS[run.task].is_there(args.data)})
    if missing:
        print(f"Left out, their data are not there: {', '.join(missing)}", flush=True)
    for number, run in enumerate(run for run in runs if run.task not in missing):
        if number % shares != share or run in read_records(args.json):
            continue
        record = carry_out(run, args.data, args.starts)
        append_record(args.json, record)
        name = record["score"]
        print(
            f"{run.task:<14} {run.variation:<8} {run.way:<10} seed {run.seed}: {name} {record['start'][name]:.3f} to "
            f"{record['end'][name]:.3f} in {record['seconds']:.0f} s",
            flush=True,
        )
    print(summarise([args.json]))


if __name__ == "__main__":
    main()
