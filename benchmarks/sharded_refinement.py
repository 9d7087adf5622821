"""Seconds and peak memory of `hf-plr refine` over shard files, and whether its labels are those of one process.

Labels of two epochs are drawn: 30% of the samples change their cluster, three quarters of them to one beside their own
and a quarter to any. They are written as shard files and as one file. Then `hf-plr refine` runs on the folders of
shards and on the two files, each in a process of its own, whose peak memory the system tells (of the two files, which
are memory-mapped, the pages that were read count too). Equal digests are equal labels of all samples.

  python -m benchmarks.sharded_refinement --samples 100000000 --clusters 15000 --shards 16 --directory DISK
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hf_plr.utils.shards import Shard

CHURN = 0.3
ANYWHERE = 0.25  # of the churn
BLOCK = 1 << 20
MEASURED = """
import json, resource, sys, time
from hf_plr.cli import main
start = time.perf_counter()
status = main(sys.argv[1:])
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": round(seconds, 1), "peak_mib": round(peak / 1024)}))
sys.exit(status)
"""


def main() -> None:
    """Read the arguments, measure, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="number of samples (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=1500, help="clusters in either epoch (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=16, help="number of shard files (default: %(default)s)")
    parser.add_argument("--preset", default="soft", help="of the refinement (default: %(default)s)")
    parser.add_argument("--directory", help="where to put the files, some 50 bytes a sample (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.directory))
    try:
        line = measure(folder, args)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(line) if args.json else json.dumps(line, indent=2))


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure both ways on the same labels."""
    write_labels(folder, args.samples, args.clusters, args.shards)
    shards, whole = folder / "refined", folder / "refined.npy"
    by_shards = refine(folder / "previous", folder / "current", shards, args.preset)
    in_one = refine(folder / "previous.npy", folder / "current.npy", whole, args.preset)
    start = time.perf_counter()
    digests = [digest(read_shards(shards)), digest(read_whole(whole))]
    return {
        "samples": args.samples, "clusters": args.clusters, "shards": args.shards, "preset": args.preset,
        **{f"shards_{name}": value for name, value in by_shards.items()},
        **{f"one_{name}": value for name, value in in_one.items()},
        "same_labels": digests[0] == digests[1], "digest": digests[0],
        "output_mib": round(sum(path.stat().st_size for path in shards.iterdir()) / 2**20),
        "digest_seconds": round(time.perf_counter() - start, 1),
        "numpy": np.__version__, "machine": platform.machine(),
    }  # fmt: skip


def write_labels(folder: Path, n_samples: int, n_clusters: int, n_shards: int) -> None:
    """Write int32 labels of two epochs, as previous.npy and current.npy and as folders of shards of these names."""
    rng = np.random.default_rng(0)
    names = ("previous", "current")
    wholes = [np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int32, (n_samples,)) for name in names]
    for start in range(0, n_samples, BLOCK):
        n = min(BLOCK, n_samples - start)
        previous = rng.integers(0, n_clusters, n, np.int32)
        beside = (previous + rng.integers(-3, 4, n, np.int32)) % n_clusters
        anywhere = rng.integers(0, n_clusters, n, np.int32)
        elsewhere = np.where(rng.random(n, np.float32) < ANYWHERE, anywhere, beside)
        wholes[0][start : start + n] = previous
        wholes[1][start : start + n] = np.where(rng.random(n, np.float32) < CHURN, elsewhere, previous)
    for name, whole in zip(names, wholes, strict=True):
        whole.flush()
        (folder / name).mkdir()
        for number in range(n_shards):
            shard = Shard(number, n_shards)
            rows = shard.rows(n_samples)
            np.save(folder / name / shard.name(".npy"), whole[rows.start : rows.stop])


def refine(previous: Path, current: Path, output: Path, preset: str) -> dict[str, Any]:
    """Run `hf-plr refine` in a process of its own; returns its seconds and the peak of its memory in MiB."""
    arguments = ["--previous", previous, "--current", current, "--preset", preset, "--output", output]
    command = [sys.executable, "-c", MEASURED, "refine", *map(str, arguments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    return result | {"summary": lines[0]}


def read_shards(folder: Path) -> Iterator[np.ndarray]:
    """Read the refined labels shard by shard."""
    for path in sorted(folder.glob("*.parquet")):
        yield pq.read_table(path, columns=["label"])["label"].to_numpy()


def read_whole(path: Path) -> Iterator[np.ndarray]:
    """Read the refined labels of one file in blocks."""
    labels = np.lib.format.open_memmap(path, "r")
    for start in range(0, len(labels), BLOCK):
        yield labels[start : start + BLOCK]


def digest(blocks: Iterator[np.ndarray]) -> str:
    """Compute a digest of labels that does not depend on the blocks in which they are read."""
    total = hashlib.sha256()
    for block in blocks:
        total.update(np.ascontiguousarray(block, np.int64).data)
    return total.hexdigest()[:16]


if __name__ == "__main__":
    main()
