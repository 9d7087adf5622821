"""Shared parts of the commands that run a backbone over a data set: arguments, samples, output file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hf_plr.pseudo_labels import label_files

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_plr.data.media_kinds import Kind
    from hf_plr.features.extractor import FeatureExtractor
    from hf_plr.modality import Modality
    from hf_plr.training_args import PLRTrainingArguments


def add_sample_arguments(
    parser: argparse.ArgumentParser, samples: str, output: str, endings: Sequence[str] = (".parquet",)
) -> None:
    """Declare the arguments for model, samples and output, which is a file with one of the endings."""
    parser.add_argument("--model", required=True, help="folder or Hub id of the backbone")
    parser.add_argument("--dataset", required=True, help=f"Hub id, folder of {samples}, archive or table")
    parser.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a Hub data set")
    parser.add_argument("--split", default="train", help="split of the data set (default: %(default)s)")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help=f"where the {output} go, a {' or '.join(endings)} file"
    )
    parser.add_argument("--skip_unreadable", action="store_true", help="leave unreadable samples out and say how many")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def add_segment_arguments(parser: argparse.ArgumentParser, default: str, default_overlap: str) -> None:
    """Declare the arguments that cut recordings into segments; the defaults are for the help."""
    parser.add_argument(
        "--segment_seconds",
        type=float,
        metavar="S",
        help=f"cut recordings into segments of so many seconds, each with a row of its own (default: {default})",
    )
    parser.add_argument(
        "--segment_overlap",
        type=float,
        metavar="S",
        help=f"seconds that neighbouring segments have in common (default: {default_overlap})",
    )


def segment_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the training arguments of segments that are given."""
    given = {name: getattr(args, name) for name in ("segment_seconds", "segment_overlap")}
    return {name: value for name, value in given.items() if value is not None}


def prepare_output(args: argparse.Namespace, content: str, endings: Sequence[str] = (".parquet",)) -> None:
    """Make the folder of an output, or reject one that cannot be written, before any work; hide bars in logs.

    Raises:
        ValueError, OSError: naming it.
    """
    if not args.output.lower().endswith(tuple(endings)):
        raise ValueError(f"--output {args.output}: {content} are written as {' or '.join(endings)}; name such a file")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {args.output}: its folder cannot be made: {error}") from error
    label_files.check_output(args.output, args.overwrite)
    if args.batch_size < 1:
        raise ValueError(f"--batch_size {args.batch_size} must be at least 1")
    if not sys.stderr.isatty():
        from hf_plr.recipe_tools.running import hide_bars  # here: `hf-plr refine` needs no torch

        hide_bars()


def load_samples(
    args: argparse.Namespace,
    find_modality: Callable[[Dataset, str, PLRTrainingArguments], Modality],
    settings: dict[str, Any],
    kind: Kind | None = None,
) -> tuple[FeatureExtractor, Dataset]:
    """Load the data set and the backbone; returns the extractor and the data set.

    Args:
        args: the arguments of `add_sample_arguments`, and batch_size.
        find_modality: makes the modality from (data set, name of the model, arguments).
        settings: further training arguments.
        kind: "image" or "audio", where a folder may hold both; None for what is more.
    """
    from accelerate import Accelerator

    from hf_plr.data.loader import StoreLoader
    from hf_plr.data.loading import choose_split, load_splits
    from hf_plr.features.extractor import FeatureExtractor
    from hf_plr.training_args import PLRTrainingArguments

    dataset = choose_split(load_splits(args.dataset, args.dataset_config_name, kind), args.dataset, args.split)
    training = PLRTrainingArguments(  # nothing is written there
        output_dir=".", skip_unreadable=args.skip_unreadable, report_to="none", **settings
    )
    modality = find_modality(dataset, args.model, training)
    accelerator = Accelerator()
    model = modality.model.to(accelerator.device)
    loader = StoreLoader(training, modality.collate)
    return FeatureExtractor(model, modality, accelerator, args.batch_size, loader, progress=True), dataset
