"""Cluster features in files of any size by k-means: memory holds a block of them and the centroids.

  hf-plr cluster features/ --num_clusters 500 --output clusters/0
  hf-plr cluster next_features/ --start clusters/0 --output clusters/1

The features are files of `hf-plr embed`, or your own: .npy arrays (N, D), .parquet files with a column of lists of D
numbers (--column names it, where there are several and none is called feature), or folders of these. The output folder
gets one file of labels per file of features, of the same name, and centroids.safetensors. --start begins at the
centroids of the epoch before, which keeps the clusters of two epochs alike. Centroids and labels are those of one
process with everything in memory, and the arithmetic is that of training: features relative to their mean, of unit
length.

Where fitting on a sample is enough, a job array can write the labels:

  hf-plr cluster features/ --num_clusters 500 --fit_samples 1000000 --fit_only --output clusters/0
  hf-plr cluster features/ --assign_only --shard 3/16 --output clusters/0    # for 0/16 to 15/16
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_plr.utils.files import check_folder
from hf_plr.utils.run_files import refuse_run_files
from hf_plr.utils.shards import Shard, list_files, name_by_file

if TYPE_CHECKING:
    import torch

    from hf_plr.jobs.clustering import Centroids
    from hf_plr.jobs.feature_files import FeatureFile, FeatureFiles

SUMMARY = "cluster features in files of any size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr cluster`."""
    parser.add_argument("features", nargs="+", metavar="FEATURES", help="files or folders, in the order of the samples")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for labels and centroids")
    parser.add_argument(
        "--column", metavar="NAME", help="column with the features (default: 'feature', or the only one of lists)"
    )
    parser.add_argument(
        "--num_clusters", type=int, metavar="K", help="default: those of --start, or 1.5 times the square root of N"
    )
    parser.add_argument("--start", metavar="DIR", help="output of the epoch before, whose centroids are the start")
    parser.add_argument(
        "--cluster_space",
        choices=("centered", "white"),
        default="centered",
        help="centered features, or these whitened as well (default: %(default)s)",
    )
    parser.add_argument("--whitening_shrinkage", type=float, metavar="S", help="of --cluster_space white, such as 0.1")
    parser.add_argument(
        "--iterations", type=int, default=50, metavar="N", help="iterations at most (default: %(default)s)"
    )
    parser.add_argument("--fit_samples", type=int, metavar="N", help="fit on so many samples (default: on all)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the start and of the sample (default: %(default)s)"
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--fit_only", action="store_true", help="write the centroids alone")
    parts.add_argument(
        "--assign_only", action="store_true", help="write the labels alone, by the centroids of the output"
    )
    parser.add_argument("--shard", metavar="I/N", help="with --assign_only: the I-th of N parts of the files, from 0")
    parser.add_argument("--skip_existing", action="store_true", help="leave files alone that are there already")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run(args: argparse.Namespace) -> None:
    """Fit, assign, write.

    Raises:
        ValueError, OSError: if the arguments or the files do not fit.
    """
    _check_arguments(args)
    shard = None if args.shard is None else Shard.parse(args.shard)
    check_folder(args.output, "labels and centroids")

    # Imported here: `hf-plr refine` needs no torch.
    import torch

    from hf_plr.jobs.clustering import CENTROIDS_FILE, Centroids
    from hf_plr.jobs.feature_files import ENDINGS, FeatureFile, FeatureFiles

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = list_files(args.features, ENDINGS, "features")
    tasks: Sequence[tuple[str, str]] = list(zip(paths, name_by_file(paths, args.output), strict=True))
    tasks = tasks if shard is None else shard.select(tasks)
    centroids_path = os.path.join(args.output, CENTROIDS_FILE)
    outputs = [*([] if args.assign_only else [centroids_path]), *(output for _, output in tasks if not args.fit_only)]
    _check_outputs(outputs, paths, args)
    if not args.assign_only and not _is_done(centroids_path, args):
        start = time.perf_counter()
        features = FeatureFiles(paths, args.column)
        centroids = _fit(args, features, device)
        centroids.save(args.output)
        rounds = f"{centroids.iterations} iteration{'s' * (centroids.iterations != 1)}"
        print(
            f"Wrote {centroids_path}: {len(centroids.centers):,} centroids of {len(features):,} samples after "
            f"{rounds} in {time.perf_counter() - start:.1f} s"
        )
    if args.fit_only:
        return
    centroids = Centroids.load(args.output, device)
    for path, output in tasks:
        if not _is_done(output, args):
            _assign(FeatureFile(path, args.column), centroids, output)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.shard is not None and not args.assign_only:
        raise ValueError("--shard needs --assign_only: centroids are fitted on all files, by one process")
    if args.skip_existing and args.overwrite:
        raise ValueError("--skip_existing and --overwrite exclude each other")
    if (args.cluster_space == "white") != (args.whitening_shrinkage is not None):
        raise ValueError(
            "--cluster_space white and --whitening_shrinkage need each other: nothing is augmented here to find a "
            "shrinkage by; the log of a training run names the one that it has found"
        )
    for name in ("num_clusters", "start", "fit_samples", "whitening_shrinkage"):
        if args.assign_only and getattr(args, name) is not None:
            raise ValueError(
                f"--{name} is for fitting, and --assign_only takes the centroids of the output: leave one out"
            )
    for name in ("num_clusters", "iterations", "fit_samples", "whitening_shrinkage"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} {value} must be above 0")


def _check_outputs(outputs: Sequence[str], inputs: Sequence[str], args: argparse.Namespace) -> None:
    """Reject outputs that are features, are a run's own, or are there and nothing is said of what shall become of them.

    Raises:
        ValueError, FileExistsError: naming the first.
    """
    refuse_run_files([path for path in outputs if not (args.skip_existing and os.path.exists(path))])
    features = {_identify(path) for path in inputs}
    for path in filter(os.path.exists, outputs):
        if _identify(path) in features:
            raise ValueError(f"--output {args.output}: {path} would take the place of features: name another folder")
        if not (args.skip_existing or args.overwrite):
            raise FileExistsError(
                f"{path} exists already: give --skip_existing to keep it, or --overwrite to replace it"
            )


def _identify(path: str) -> tuple[int, int]:
    """Identify a file by more than its name, as `os.path.samefile` does."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_done(path: str, args: argparse.Namespace) -> bool:
    """True if a file is there and shall stay."""
    if not os.path.exists(path) or args.overwrite:
        return False
    print(f"Kept {path}")
    return True


def _fit(args: argparse.Namespace, features: FeatureFiles, device: torch.device) -> Centroids:
    from hf_plr.clustering import KMeans
    from hf_plr.jobs.clustering import Centroids, fit_centroids
    from hf_plr.pseudo_labels.stage import default_num_clusters

    start = None if args.start is None else Centroids.load(args.start, device)
    of_start = None if start is None else len(start.centers)
    num_clusters = args.num_clusters or of_start or default_num_clusters(len(features))
    if num_clusters > len(features):
        is_of_start = args.num_clusters is None and start is not None
        what = (
            f"--start {args.start} has {num_clusters} clusters," if is_of_start else f"--num_clusters {num_clusters} is"
        )
        raise ValueError(f"{what} more than the {len(features):,} samples: have at most as many clusters as samples")
    if args.fit_samples is not None and args.fit_samples < num_clusters:
        raise ValueError(f"--fit_samples {args.fit_samples} must be at least the {num_clusters:,} of --num_clusters")
    kmeans = KMeans(
        num_clusters,
        max_iter=args.iterations,
        seed=args.seed,
        fit_samples=args.fit_samples,
        device=device,
    )
    return fit_centroids(features, kmeans, args.whitening_shrinkage, start, device)


def _assign(file: FeatureFile, centroids: Centroids, output: str) -> None:
    from hf_plr.jobs.clustering import assign_file

    start = time.perf_counter()
    n_labels = assign_file(file, centroids, output)
    print(f"Wrote {output}: {n_labels:,} labels in {time.perf_counter() - start:.1f} s")
