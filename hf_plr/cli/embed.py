"""Write the feature of every image or recording of a data set, as a trained run computes it.

  hf-plr embed --model out --dataset DATA --output features.parquet

`out` is the output folder or Hub id of a run, or any backbone that `AutoModel` loads. DATA is a Hub id, a folder of
images or recordings, or a folder of parquet files. The output has one row per sample: its index, its file if that is
known, and its feature, a list of floats of the backbone's width; with --segment_seconds one row per segment of a
recording, with its start and end in seconds. Pooling, layer, length and segments are those of the run if the model is
its output folder or a checkpoint, unless they are given.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_plr.cli.samples import (
    add_sample_arguments,
    add_segment_arguments,
    check_output,
    open_samples,
    segment_settings,
)

if TYPE_CHECKING:
    from hf_plr.data.media_kinds import Kind

SUMMARY = "write the features of images or recordings"
POOLINGS = ("cls", "mean", "cls+mean", "pooler")  # of hf_plr.models.pooling, which imports torch
DATA_SETTINGS = ("image_column", "audio_column", "pixel_range", "transparency_background")
RUN_SETTINGS: dict[str, type] = {"pooling": str, "layer": int, "max_seconds": float}
SEGMENT_SETTINGS: dict[str, type] = {"segment_seconds": float, "segment_overlap": float}


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
    check_output(args, "features")

    # Imported here: `hf-plr refine` needs no torch.
    from hf_plr.modality import find_modality

    settings = {name: getattr(args, name) for name in DATA_SETTINGS}
    run_settings = read_run_settings(args.model)
    for name in RUN_SETTINGS:
        value = getattr(args, name)
        settings[name] = run_settings.get(name) if value is None else value
    settings |= {name: run_settings[name] for name in SEGMENT_SETTINGS if name in run_settings} | segment_settings(args)
    kind: Kind | None = "image" if args.image_column else "audio" if args.audio_column else None
    extractor, store = open_samples(args, find_modality, settings, kind)
    start = time.perf_counter()
    features = extractor.extract_all(store).cpu().numpy()
    seconds = time.perf_counter() - start
    write_features(args.output, store.rows, features, store.files(), store.segments)
    print(
        f"Wrote {args.output}: {len(features):,} features of {features.shape[1]} numbers in {seconds:.1f} s "
        f"({len(features) / seconds:.0f} {extractor.modality.plural} per second)"
    )


def read_run_settings(model: str) -> dict[str, Any]:
    """Read how a backbone's run computed its features: from `metrics.json`, or from the state in a checkpoint.

    Empty for a backbone without either.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    from hf_plr.report.outputs import METRICS_FILE
    from hf_plr.trainer.checkpointing import STATE_FILE, load_state

    folder = os.path.dirname(os.path.normpath(model)) if _is_adapter_of_run(model) else model
    path = os.path.join(folder, METRICS_FILE)
    if not os.path.isdir(model):
        try:
            path = hf_hub_download(model, METRICS_FILE)
        except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError):
            return {}
    try:
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                settings = json.load(file)["settings"]
        elif os.path.isfile(path := os.path.join(folder, STATE_FILE)):
            settings = {name: value for name, value in load_state(folder)[1].items() if value is not None}
        else:
            return {}
        kinds = RUN_SETTINGS | SEGMENT_SETTINGS
        return {name: kind(settings[name]) for name, kind in kinds.items() if name in settings}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give --pooling, --layer or --max_seconds") from error


def _is_adapter_of_run(model: str) -> bool:
    """True for the folder of adapters in the output folder of a run."""
    from hf_plr.models.adapter_files import ADAPTER_FOLDER, is_adapter_folder

    return os.path.basename(os.path.normpath(model)) == ADAPTER_FOLDER and is_adapter_folder(model)


def write_features(
    path: str | os.PathLike[str],
    rows: np.ndarray,
    features: np.ndarray,
    files: list[str] | None = None,
    segments: np.ndarray | None = None,
) -> None:
    """Write one row per sample: index, file and feature (D floats), by index, and for segments by start.

    Args:
        path: a parquet file; it is complete or does not exist.
        rows: index of each sample, (N,).
        features: float32 (N, D).
        files: file of each sample, (N,); None leaves the column out.
        segments: start and end in seconds of each sample, (N, 2); None leaves the columns out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    starts = np.zeros(len(rows)) if segments is None else segments[:, 0]
    order = np.lexsort((starts, rows))  # a store of recordings is ordered by length
    columns = {"index": pa.array(rows[order], pa.int64())}
    if files is not None:
        columns["file"] = pa.array([files[i] for i in order])
    if segments is not None:
        columns["start"], columns["end"] = (pa.array(column, pa.float64()) for column in segments[order].T)
    flat = pa.array(np.ascontiguousarray(features[order]).reshape(-1), pa.float32())
    columns["feature"] = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    pq.write_table(pa.table(columns), f"{path}.tmp")
    os.replace(f"{path}.tmp", path)
