"""Write the feature of every image or recording of a data set, as a trained run computes it.

  hf-plr embed --model out --dataset DATA --output features.parquet

`out` is the output folder or Hub id of a run, or any backbone that `AutoModel` loads. DATA is a Hub id, a folder of
images or recordings, a folder of parquet files, an archive or a table. The output has one row per sample: its index,
its file if that is known, and its feature, a list of floats of the backbone's width; with --segment_seconds one row per
segment of a recording, with its start and end in seconds. Pooling, layer, length and segments are those of the run if
the model is its output folder or a checkpoint, unless they are given.

A large data set is embedded by many processes, on any machines. Each writes one file into a folder, of rows that are
numbered in the whole data set:

  hf-plr embed --model out --dataset DATA --shard 3/16 --output features/    # for 0/16 to 15/16

A file is complete or does not exist, so that a job array is repeated with --skip_existing until all files are there.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING

import numpy as np

from hf_plr.cli.samples import (
    add_sample_arguments,
    add_segment_arguments,
    load_samples,
    prepare_output,
    segment_settings,
)
from hf_plr.utils.files import check_folder
from hf_plr.utils.shards import Shard

if TYPE_CHECKING:
    from hf_plr.data.media_kinds import Kind

SUMMARY = "write the features of images or recordings"
POOLINGS = ("cls", "mean", "cls+mean", "pooler")  # of hf_plr.models.pooling, which imports torch
DATA_SETTINGS = ("image_column", "audio_column", "pixel_range", "transparency_background")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr embed`."""
    add_sample_arguments(parser, "images or recordings", "features")
    parser.add_argument("--image_column", metavar="NAME", help="column with the images (default: the only one)")
    parser.add_argument("--audio_column", metavar="NAME", help="column with the recordings (default: the only one)")
    parser.add_argument(
        "--pooling", choices=POOLINGS, help="which feature (default: as in the run, or the backbone's own)"
    )
    parser.add_argument("--layer", type=int, metavar="L", help="layer of the tokens or frames (default: as in the run)")
    parser.add_argument(
        "--max_seconds", type=float, metavar="S", help="use only the first so many seconds (default: as in the run)"
    )
    add_segment_arguments(parser, "as in the run", "as in the run")
    parser.add_argument(
        "--shard", metavar="I/N", help="only the I-th of N parts of the rows, from 0; the output is then a folder"
    )
    parser.add_argument("--skip_existing", action="store_true", help="with --shard: do nothing if its file is there")
    parser.add_argument(
        "--pixel_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="images of more than 8 bits: pixels that become 0 and 255 (default: as kept with the model, or found)",
    )
    parser.add_argument(
        "--transparency_background",
        metavar="COLOUR",
        help="colour behind transparent pixels (default: as kept with the model, or white)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=256, metavar="B", help="images, or seconds, per batch (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Load, extract, write.

    Raises:
        ValueError, OSError: if the arguments, the model or the data do not fit.
    """
    shard = None if args.shard is None else Shard.parse(args.shard)
    if args.skip_existing and shard is None:
        raise ValueError("--skip_existing needs --shard: it is for job arrays that are repeated")
    if shard is not None:
        check_folder(args.output, "the features of shards")
        os.makedirs(args.output, exist_ok=True)
        args.output = os.path.join(args.output, shard.name(".parquet"))
        if args.skip_existing and os.path.exists(args.output):
            print(f"Kept {args.output}")
            return
    prepare_output(args, "features")

    # Imported here: `hf-plr refine` needs no torch.
    from hf_plr.jobs.embedding import describe_data, embed, write_table
    from hf_plr.jobs.run_settings import SEGMENT_SETTINGS, read_run_settings
    from hf_plr.modality import find_modality

    settings = {name: getattr(args, name) for name in DATA_SETTINGS}
    run_settings = read_run_settings(args.model)
    for name in ("pooling", "layer", "max_seconds"):
        value = getattr(args, name)
        settings[name] = run_settings.get(name) if value is None else value
    settings |= {name: run_settings[name] for name in SEGMENT_SETTINGS if name in run_settings} | segment_settings(args)
    kind: Kind | None = "image" if args.image_column else "audio" if args.audio_column else None
    extractor, dataset = load_samples(args, find_modality, settings, kind)
    rows = range(len(dataset)) if shard is None else shard.rows(len(dataset))
    if shard is not None and len(rows) == 0:
        raise ValueError(f"--shard {shard} has no rows: {args.dataset} has {len(dataset)}")
    record, folder = describe_data(dataset, extractor.modality.column)
    start = time.perf_counter()
    try:
        numbers = None if shard is None else np.arange(rows.start, rows.stop)
        table = embed(extractor, dataset.select(rows), numbers, record, folder)
    except ValueError as error:
        if shard is None:
            raise
        raise ValueError(f"shard {shard}: {error}") from error
    seconds = time.perf_counter() - start
    write_table(table, args.output)
    width = table.schema.field("feature").type.list_size
    print(
        f"Wrote {args.output}: {len(table):,} features of {width} numbers in {seconds:.1f} s "
        f"({len(table) / seconds:.0f} {extractor.modality.plural} per second)"
    )
