"""Push the labels of a run to the Hugging Face Hub, as a data set that `datasets.load_dataset` loads.

  hf-plr push-labels out --repo USER/NAME
  hf-plr push-labels out --repo USER/NAME --with_media DATA

`out` is the output folder of a run. The data set has one row per sample: its index, its file if that is known, its
label, previous label and confidence, or its units; of segments of recordings also start and end. The images or
recordings themselves are pushed only with --with_media and the run's data: a Hub id, a folder, a folder of parquet
files, an archive or a table. Of a folder that `hf-plr train reid` was given, the training part is taken. Labels of
segments go without them.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from hf_plr.cli.push import add_hub_arguments

if TYPE_CHECKING:
    from datasets import Dataset

SUMMARY = "push a run's labels to the Hub, as a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr push-labels`."""
    add_hub_arguments(parser)
    media = parser.add_argument_group("the images or recordings")
    media.add_argument("--with_media", metavar="DATA", help="push the samples of these data too")
    media.add_argument("--dataset_config_name", metavar="NAME", help="configuration of a Hub data set")
    media.add_argument("--split", default="train", help="split that the run trained on (default: %(default)s)")
    media.add_argument("--image_column", metavar="NAME", help="column with the images (default: the only one)")
    media.add_argument("--audio_column", metavar="NAME", help="column with the recordings (default: the only one)")


def run(args: argparse.Namespace) -> None:
    """Push, and print the address.

    Raises:
        ValueError: if the folder holds no labels, or they are not of these data.
        HubError: if the push fails.
    """
    from hf_plr.hub.label_dataset import find_label_file, push_labels

    path = find_label_file(args.folder)
    media = None if args.with_media is None else _select_media(args)
    name, url = push_labels(args.folder, args.repo, media=media, private=args.private, revision=args.revision)
    description = path.name if media is None else f"{path.name} and {len(media):,} {media.column_names[0]}s"
    print(f"{description} on the Hub: {url}")
    print(f'  from datasets import load_dataset; labels = load_dataset("{name}", split="train")')


def _select_media(args: argparse.Namespace) -> Dataset:
    """Select the images or recordings of the labels, from the data as one of the recipes takes them."""
    from hf_plr.data.columns import find_modality_column
    from hf_plr.data.loading import choose_split, load_splits
    from hf_plr.hub.label_dataset import select_labelled_media
    from hf_plr.reid.reid_data import find_reid_folder, load_reid_folder

    def select(splits: Any) -> Dataset:
        dataset = choose_split(splits, args.with_media, args.split)
        _, column = find_modality_column(dataset, args.image_column, args.audio_column)
        return select_labelled_media(args.folder, dataset, column)

    try:
        return select(load_splits(args.with_media, args.dataset_config_name))
    except ValueError:
        with contextlib.suppress(ValueError):  # the first refusal says more of data in no such layout
            folder = find_reid_folder(args.with_media)
            if folder is not None:
                return select(load_reid_folder(folder))
        raise
