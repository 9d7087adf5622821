"""Write the units of recordings, as a trained run with frames would give them.

A unit is a cluster of frames: the backbone's hidden states are compared with the centroids that lie beside it.

  hf-plr units --model out --dataset RECORDINGS --output units.parquet

`out` is the output folder or Hub id of a run of recipes/hubert_plr.py --objective frames. RECORDINGS is a Hub id, a
folder of wav, flac, ogg or mp3 files, or a folder of parquet files. The output has one row a recording: its index, its
file where that is known, and a list with one unit a frame. Units are numbers below twice the run's --num_clusters, with
gaps: one that lived on from round to round kept its number.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

SUMMARY = "write the units of recordings by a trained run's centroids"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr units`."""
    parser.add_argument("--model", required=True, help="folder or Hub id of the trained backbone")
    parser.add_argument("--dataset", required=True, help="Hub id, folder of recordings, or folder of parquet files")
    parser.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a Hub data set")
    parser.add_argument("--split", default="train", help="split of the data set (default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the units go, a .parquet file")
    parser.add_argument("--audio_column", metavar="NAME", help="column with the recordings (default: the only one)")
    parser.add_argument(
        "--max_seconds",
        type=float,
        metavar="S",
        help="use only the first so many seconds, as the run did (default: all)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, metavar="S", help="seconds of sound a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="leave unreadable recordings out and say how many"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def run(args: argparse.Namespace) -> None:
    """Load backbone and centroids, encode, write.

    Raises:
        ValueError, OSError: if the arguments, the model or the data do not fit.
    """
    if not args.output.endswith(".parquet"):
        raise ValueError(f"--output {args.output}: units are written as .parquet")
    if os.path.exists(args.output) and not args.overwrite:
        raise FileExistsError(f"{args.output} exists already: give --overwrite to replace it")
    if not os.path.isdir(os.path.dirname(os.path.abspath(args.output))):
        raise FileNotFoundError(f"the folder of {args.output} does not exist")
    if args.batch_size < 1:
        raise ValueError(f"--batch_size {args.batch_size} must be at least 1")

    # Imported here: `hf-plr refine` needs no torch.
    from accelerate import Accelerator

    from hf_plr.data.columns import find_audio_column
    from hf_plr.data.loading import choose_split, load_splits
    from hf_plr.features import FeatureExtractor
    from hf_plr.media import Sounds
    from hf_plr.training_args import PLRTrainingArguments
    from hf_plr.units.encoder import UnitEncoder, write_units

    encoder = UnitEncoder.load(args.model)
    dataset = choose_split(load_splits(args.dataset, args.dataset_config_name), args.dataset, args.split)
    settings = PLRTrainingArguments(
        output_dir=".", max_seconds=args.max_seconds, skip_unreadable=args.skip_unreadable, report_to="none"
    )  # nothing is written there
    sounds = Sounds(args.model, settings, find_audio_column(dataset, args.audio_column))
    store = sounds.open(dataset, label_column=None, label_names={})
    accelerator = Accelerator()
    extractor = FeatureExtractor(
        sounds.model.to(accelerator.device), sounds, accelerator, args.batch_size, progress=True
    )
    started = time.perf_counter()
    rows, units = zip(*encoder.encode(extractor, store), strict=True)
    seconds = time.perf_counter() - started
    write_units(args.output, np.asarray(rows), list(units), store.files())
    heard = float(store.lengths.sum()) / sounds.format.sampling_rate
    used = len(np.unique(np.concatenate(units)))
    print(
        f"Wrote {args.output}: {sum(map(len, units)):,} frames of {len(rows):,} recordings, {used} units, from "
        f"{heard / 60:.1f} minutes of sound in {seconds:.1f} s ({heard / seconds:.0f} times as fast as it plays)"
    )
