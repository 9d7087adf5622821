"""Re-identification data: images with their identity and camera."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value

from hf_plr.data.archives import archive_stem, unpack
from hf_plr.data.columns import check_column, find_image_column
from hf_plr.data.loading import choose_split, load_splits, load_tables
from hf_plr.data.media_kinds import identify_name
from hf_plr.data.true_labels import encode_labels

logger = logging.getLogger(__name__)

JUNK = -1  # identity of images that show nobody in particular; as in `score_retrieval`
UNKNOWN = -1  # camera; as there
NUMBER = "[0-9]{1,18}"  # what int64 holds
FEATURES = Features({"image": Image(), "identity": Value("int64"), "camera": Value("int64")})
SPLITS = ("train", "query", "gallery")

# Folders or lists of each split. The first tells the layouts apart.
MARKET1501 = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
VERI776 = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
MSMT17_LISTS = {
    "train": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}
MSMT17_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))  # V1 and V2: for training, for both others
MARKERS = (MARKET1501["train"], MSMT17_LISTS["train"][0], VERI776["train"])
LAYOUTS = "Market-1501 (bounding_box_train), MSMT17 (list_train.txt), VeRi-776 (image_train)"


@dataclass(frozen=True)
class ReidSplit:
    """Images, and apart from them the identities and cameras for scoring.

    Attributes:
        images: N images in a column "image" and no other column, so that training sees no identity.
        identities: int64 array of shape (N,), -1 = junk or not known.
        cameras: int64 array of shape (N,), -1 = not known; None if none is.
    """

    images: Dataset
    identities: np.ndarray
    cameras: np.ndarray | None

    def select(self, rows: np.ndarray) -> ReidSplit:
        """Select rows."""
        cameras = None if self.cameras is None else self.cameras[rows]
        return ReidSplit(self.images.select(rows), self.identities[rows], cameras)


@dataclass(frozen=True)
class ReidData:
    """Re-identification data set.

    Attributes:
        train: split to train on.
        query, gallery: splits to score, both None if the training images take both parts.
    """

    train: ReidSplit
    query: ReidSplit | None
    gallery: ReidSplit | None

    def select_train(self, rows: np.ndarray) -> ReidData:
        """Select rows of the training split, and keep query and gallery."""
        return replace(self, train=self.train.select(rows))


def load_reid_data(
    name: str,
    config_name: str | None = None,
    image_column: str | None = None,
    identity_column: str | None = None,
    camera_column: str | None = None,
    train_split: str = "train",
) -> ReidData:
    """Load a re-identification data set, with the identities and cameras that it has.

    Args:
        name: a folder or archive in one of the layouts of `load_reid_folder`, whose columns are known, or a name for
            `load_train_and_test` of hf_plr.data.loading. Splits "query" and "gallery" (in a folder: files
            `query.parquet` and `gallery.parquet`) are scored. Without them every training image asks among all others,
            except those of its own identity and camera.
        config_name: configuration of a Hub data set.
        image_column: its column of images; by default the only one.
        identity_column: its column of identities: class labels, text or integers, -1 or missing = junk. By default
            "identity" or, in a folder with one folder a person, "label"; without such a column, none are known.
        camera_column: its column of cameras, as those of identities; -1 or missing = unknown, and the same as no other.
            By default "camera"; without such a column, none are known.
        train_split: its split to train on.

    Raises:
        ValueError: if the data set or a column is missing, or a split is empty, naming it.
    """
    folder = _open_folder(name)
    if find_reid_folder(folder) is not None:
        splits = load_reid_folder(folder)
        image_column, identity_column, camera_column, train_split = "image", "identity", "camera", "train"
    else:
        files = {split: [str(path)] for split in SPLITS if (path := Path(folder, f"{split}.parquet")).exists()}
        # By file names alone, datasets finds neither query nor gallery.
        splits = load_tables(files, name) if len(files) > 1 else load_splits(name, config_name, "image")
    train = choose_split(splits, name, train_split)
    parts = {"train": train} | {part: splits[part] for part in ("query", "gallery") if part in splits}
    if len(parts) == 2:
        logger.warning("%s has only one of the splits query and gallery, so neither is scored", name)
        parts = {"train": train}
    identities: dict[str, int] = {}  # shared by all splits, so that an identity has one number
    cameras: dict[str, int] = {}
    reid_splits = {}
    for part, rows in parts.items():
        if len(rows) == 0:
            raise ValueError(f"dataset_name={name!r}: the split {train_split if part == 'train' else part!r} is empty")
        column = find_image_column(rows, image_column)
        by = _choose_column(rows, "identity_column", identity_column, ("identity", "label"))
        seen_by = _choose_column(rows, "camera_column", camera_column, ("camera",))
        reid_splits[part] = ReidSplit(
            rows.select_columns([column]).rename_columns({column: "image"} if column != "image" else {}),
            np.full(len(rows), JUNK) if by is None else encode_labels(rows, by, identities),
            None if seen_by is None else encode_labels(rows, seen_by, cameras),
        )
        _warn_of_unknown_cameras(reid_splits[part], part, seen_by)
    return ReidData(reid_splits["train"], reid_splits.get("query"), reid_splits.get("gallery"))


def _warn_of_unknown_cameras(split: ReidSplit, part: str, column: str | None) -> None:
    """Warn of the images with an identity whose camera is not known."""
    has_identity = split.identities != JUNK
    n_unknown = 0 if split.cameras is None else int((has_identity & (split.cameras == UNKNOWN)).sum())
    if n_unknown:
        logger.warning(
            "%d of %d images of %s that have an identity have no camera in column %r (missing, or -1): "
            "each counts as of a camera of its own",
            *(n_unknown, has_identity.sum(), part, column),
        )


def _open_folder(name: str) -> str:
    """The folder that a name stands for, unpacked from an archive; what is not on this machine as it is."""
    path = os.path.expanduser(name)
    return unpack(path) if archive_stem(path) is not None and os.path.isfile(path) else path


def _choose_column(rows: Dataset, argument: str, name: str | None, usual: tuple[str, ...]) -> str | None:
    """The named column, or the first usual one that is there."""
    if name is not None:
        check_column(rows, argument, name)
        return name
    return next((column for column in usual if column in rows.column_names), None)


def find_reid_folder(path: str | os.PathLike[str]) -> Path | None:
    """Find the folder in a known layout: the path itself or the only such folder in it; None without one.

    Raises:
        ValueError: if several folders in it are in a known layout.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    if _has_known_layout(folder):
        return folder
    candidates = [child for child in sorted(folder.iterdir()) if child.is_dir() and _has_known_layout(child)]
    if len(candidates) > 1:
        raise ValueError(
            f"{folder} holds several data sets ({', '.join(child.name for child in candidates)}): give the path of one"
        )
    return candidates[0] if candidates else None


def load_reid_folder(path: str | os.PathLike[str]) -> DatasetDict:
    """Load a re-identification data set from the folder as it was unpacked, or from the folder around it.

    The contents of the folder tell the layouts apart; other files and folders are ignored:

    * Market-1501: `bounding_box_train`, `query`, `bounding_box_test`, with names like `0002_c1s1_000451_03.jpg` for
      identity 2 and camera 1. Junk (`-1_...`) is left out of the training split and has identity -1 in the gallery;
      distractors (`0000_...`) have identity 0, which no query has.
    * MSMT17: `list_train.txt`, `list_val.txt`, `list_query.txt`, `list_gallery.txt` with lines `path identity`, for
      images in `train` and `test` (V1) or `mask_train_v2` and `mask_test_v2` (V2); the third number of an image's name
      is its camera. Training takes both the training and the validation list, as TransReID-SSL does.
    * VeRi-776: `image_train`, `image_query`, `image_test`, with names like `0002_c002_00030600_0.jpg`.

    Images whose names tell neither identity nor camera are trained on, with identity and camera -1, but not scored.

    Returns:
        Splits "train", "query" and "gallery", as far as they are there, sorted by path, with the columns "image" (an
        absolute path, not read yet), "identity" and "camera" (int64).

    Raises:
        ValueError: if the folder or a listed image is missing, the layout is unknown, a list cannot be read, or there
            is nothing to train on.
    """
    if not os.path.isdir(path):
        raise ValueError(f"{path} is not a folder: give the path of one")
    folder = find_reid_folder(path)
    if folder is None:
        raise ValueError(f"{path} is in no known layout, nor is one folder in it: use {LAYOUTS}")
    folder = Path(os.path.abspath(folder))  # so that rows are the same from whatever folder the path was named
    names = next((names for names in (MARKET1501, VERI776) if (folder / names["train"]).is_dir()), None)
    splits = {}
    for split in SPLITS:
        rows = sorted(
            _iterate_msmt17(folder, split) if names is None else _iterate_named_images(folder, split, names[split])
        )
        if not rows and split == "train":
            raise ValueError(f"{folder}: the split {split!r} is empty")
        if not rows:
            continue
        paths, identities, cameras = zip(*rows, strict=True)
        columns = {"image": list(paths), "identity": list(identities), "camera": list(cameras)}
        splits[split] = Dataset.from_dict(columns, features=FEATURES, split=split)
    return DatasetDict(splits)


Row = tuple[str, int, int]  # path, identity, camera


def _has_known_layout(folder: Path) -> bool:
    return any((folder / marker).exists() for marker in MARKERS)


def _iterate_named_images(folder: Path, split: str, name: str) -> Iterator[Row]:
    """Iterate over the images of a folder whose names begin with identity and camera."""
    directory = folder / name
    unknown: list[str] = []
    for file in os.listdir(directory) if directory.is_dir() else ():
        media = identify_name(os.path.splitext(file)[1].lower())
        if file.startswith(".") or media is None or media.kind != "image":
            continue
        match = re.match(rf"(-1|{NUMBER})_c({NUMBER})(?![0-9])", file.lower())
        if match is None:
            unknown.append(file)
            if split == "train":
                yield str(directory / file), JUNK, JUNK
            continue
        identity, camera = int(match[1]), int(match[2])
        if identity != JUNK or split != "train":
            yield str(directory / file), identity, camera
    if unknown:
        used = "trained on, but not scored" if split == "train" else "left out"
        logger.warning(
            "%d images of %s are %s, such as %s: their names do not begin like 0002_c1, with identity and camera",
            *(len(unknown), directory, used, min(unknown)),
        )


def _iterate_msmt17(folder: Path, split: str) -> Iterator[Row]:
    directory = folder / _find_msmt17_folders(folder)[split != "train"]
    for name in MSMT17_LISTS[split]:
        if not (folder / name).is_file() and split != "train":
            continue
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no list {name!r} for the split {split!r}")
        for number, line in enumerate(_read_lines(folder / name), start=1):
            if not line.strip():
                continue
            path, _, identity = line.strip().rpartition(" ")
            camera = re.match(rf"[^_]+_[^_]+_({NUMBER})_", Path(path).name)
            if camera is None or re.fullmatch(NUMBER, identity) is None:
                raise ValueError(
                    f"{folder / name}, line {number}: {line.strip()!r} is not like '0000/0000_000_01_..._0.jpg 0', "
                    "with the camera as the third number of the name"
                )
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{folder / name}, line {number}: {path!r} is not below {directory}")
            if not os.path.isfile(directory / path):  # false for impossible names, too
                raise ValueError(f"{directory / path} is missing: add it, or remove it from {name}, line {number}")
            yield str(directory / path), int(identity), int(camera[1])


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def _find_msmt17_folders(folder: Path) -> tuple[str, str]:
    for names in MSMT17_FOLDERS:
        if all((folder / name).is_dir() for name in names):
            return names
    choices = " or ".join(f"{train!r} and {test!r}" for train, test in MSMT17_FOLDERS)
    raise ValueError(f"{folder} has lists of images but not the folders {choices}: unpack the images beside the lists")
