"""Write the units of recordings, by the centroids of a trained run with frames.

A unit is a cluster of frames: the backbone's hidden states are compared with the centroids that lie beside it.

  hf-plr units --model out --dataset RECORDINGS --output units.parquet

`out` is the output folder or Hub id of `hf-plr train audio --objective frames`. RECORDINGS is a Hub id, a folder
of wav, flac, ogg or mp3 files, a folder of parquet files, an archive or a table. The output has one row per recording:
its index, its file if that is known, and a list with one unit per frame. Recordings are cut into the segments of the
run, if it had any, or by --segment_seconds; there is then one row per segment, with its start and end in seconds. Units
are numbers below twice the run's --num_clusters. They have gaps, since a unit keeps its number from round to round.
Where the run standardised frames by speaker, name the column of the speakers with --speaker_column; without it, each
recording is standardised by itself.
"""

from __future__ import annotations

import argparse
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

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_plr.modality import AudioModality
    from hf_plr.training_args import PLRTrainingArguments

SUMMARY = "write the units of recordings by a trained run's centroids"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr units`."""
    add_sample_arguments(parser, "recordings", "units")
    parser.add_argument("--audio_column", metavar="NAME", help="column with the recordings (default: the only one)")
    parser.add_argument(
        "--speaker_column",
        metavar="NAME",
        help="column with the speakers, where the run had --frame_scaling speaker (default: each recording by itself)",
    )
    parser.add_argument(
        "--max_seconds",
        type=float,
        metavar="S",
        help="use only the first so many seconds (default: as in the run)",
    )
    add_segment_arguments(parser, "as in the run", "as in the run")
    parser.add_argument(
        "--batch_size", type=int, default=64, metavar="S", help="seconds of sound per batch (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Load backbone and centroids, encode, write.

    Raises:
        ValueError, OSError: if the arguments, the model or the data do not fit.
    """
    prepare_output(args, "units")

    # Imported here: `hf-plr refine` needs no torch.
    from hf_plr.data.audio_store import AudioStore
    from hf_plr.data.columns import check_column, find_audio_column
    from hf_plr.data.true_labels import encode_labels
    from hf_plr.features.first_pass import check_samples
    from hf_plr.jobs.run_settings import SEGMENT_SETTINGS, read_run_settings
    from hf_plr.modality import AudioModality
    from hf_plr.units.encoder import UnitEncoder, write_units

    encoder = UnitEncoder.load(args.model)
    is_by_speaker = encoder.space.scaling == "speaker"
    if args.speaker_column is not None and not is_by_speaker:
        raise ValueError(
            f"--speaker_column {args.speaker_column} has no effect: the units of {args.model} are not standardised by "
            "speaker; leave it out"
        )
    speakers: list[np.ndarray] = []

    def find_modality(dataset: Dataset, model: str, training: PLRTrainingArguments) -> AudioModality:
        if args.speaker_column is not None:
            check_column(dataset, "speaker_column", args.speaker_column)
            speakers.append(encode_labels(dataset, args.speaker_column))
        modality = AudioModality(model, training, find_audio_column(dataset, args.audio_column))
        _ = modality.frame_backbone  # raises before the recordings are read
        return modality

    run_settings = read_run_settings(args.model)
    settings = {name: run_settings[name] for name in SEGMENT_SETTINGS if name in run_settings} | segment_settings(args)
    settings["max_seconds"] = run_settings.get("max_seconds") if args.max_seconds is None else args.max_seconds
    extractor, dataset = load_samples(args, find_modality, settings, "audio")
    store = extractor.modality.open(dataset, label_column=None, label_names={})
    check_samples(extractor, store, extract=False)
    assert isinstance(store, AudioStore)
    start = time.perf_counter()
    if is_by_speaker and not speakers:
        print("No --speaker_column: the frames of each recording are standardised by themselves, not by speaker.")
    rows, units = zip(*encoder.encode(extractor, store, speakers[0] if speakers else None), strict=True)
    seconds = time.perf_counter() - start
    write_units(args.output, np.asarray(rows), list(units), store.files(), store.segments)
    duration = float(store.lengths.sum()) / store.audio_format.sampling_rate
    n_units = len(np.unique(np.concatenate(units)))
    print(
        f"Wrote {args.output}: {sum(map(len, units)):,} frames of {len(rows):,} {extractor.modality.plural}, {n_units} "
        f"units, from {duration / 60:.1f} minutes of sound in {seconds:.1f} s ({duration / seconds:.0f} times as fast "
        "as it plays)"
    )
