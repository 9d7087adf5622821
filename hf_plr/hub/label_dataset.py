"""The labels of a run as a data set on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Image, concatenate_datasets
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

import hf_plr
from hf_plr.hub.model_card import find_template
from hf_plr.hub.push import open_repo, push_with_retries

LABEL_FILES = ("pseudo_labels.parquet", "units.parquet")  # of a run on images or recordings, and of one on frames
TEMPLATE = "labels.md"
TAGS = ("pseudo-label-refinement", "pseudo-labels", "self-supervised", "hf-plr")
COLUMNS = {
    "index": "row of the sample in the data that the run was given",
    "file": "its file, below the folder that all files are in",
    "label": "its cluster, refined by those of the epochs before; -1 is none",
    "previous_label": "its cluster in the epoch before; a cluster that lived on has the same number",
    "confidence": "share of its soft label that lies on its cluster, in [0, 1]",
    "units": "one unit (cluster of frames) a frame; -1 is none",
    "image": "the image",
    "audio": "the recording",
}


def find_label_file(folder: str | os.PathLike[str]) -> Path:
    """The file with the labels of a run.

    Raises:
        ValueError: if the folder has none.
    """
    for name in LABEL_FILES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ValueError(f"{folder} holds no labels: neither {' nor '.join(LABEL_FILES)}")


def select_labelled_media(folder: str | os.PathLike[str], dataset: Dataset, column: str) -> Dataset:
    """The images or recordings that a run's labels are of, row for row.

    Args:
        folder: the run's output folder.
        dataset: the data that the run was given.
        column: its column of images or recordings.

    Raises:
        ValueError: if the labels are not of these data.
    """
    from hf_plr.data.sample_store import list_stored_paths, select_undecoded

    path = find_label_file(folder)
    table = pq.read_table(path, columns=["index", *({"file"} & set(pq.read_schema(path).names))])
    index = table["index"].to_numpy()
    if len(index) and int(index.max()) >= len(dataset):
        raise ValueError(
            f"{path} labels row {int(index.max())}, but the data set has {len(dataset)} rows: it is not the one that "
            "the run was given"
        )
    media = select_undecoded(dataset, column).select(index)
    names = [os.path.basename(name) for name in table["file"].to_pylist()] if "file" in table.column_names else None
    found = list_stored_paths(media, column) if names else None
    if names and found and names != [os.path.basename(name) for name in found]:
        row = next(i for i, name in enumerate(found) if os.path.basename(name) != names[i])
        raise ValueError(
            f"{path} labels {names[row]} in row {index[row]}, but there the data set has "
            f"{os.path.basename(found[row])}: it is not the one that the run was given"
        )
    return media


def push_labels(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    media: Dataset | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[str, str]:
    """Push the labels of a run as a data set, which is made if it is not there.

    Args:
        folder: the run's output folder.
        repo_id: user/name, or a name of one's own.
        media: images or recordings to push with them, undecoded, row for row; one column. Their bytes are pushed, and
            of their paths the file names.
        private: whether the repository is private; None leaves that to the Hub.
        revision: branch to push to, made if it is not there; None for the main one.
        token: a token that may write; None takes the one of `hf auth login` or HF_TOKEN.

    Returns:
        The data set's full name, and where it can be seen.

    Raises:
        ValueError: if there are no labels in the folder.
        HubError: if they did not get there. Pushing them once more is safe.
    """
    table = pq.read_table(find_label_file(folder))
    labels = Dataset(table.replace_schema_metadata(None))
    if media is not None:
        labels = concatenate_datasets([labels, _as_media(media)], axis=1)

    def push(api: HfApi) -> tuple[str, str]:
        name, url = open_repo(api, repo_id, private=private, repo_type="dataset")
        if revision is not None:
            api.create_branch(name, branch=revision, repo_type="dataset", exist_ok=True)
        card = make_labels_card(labels, name)
        # The card first: the data set adds to its metadata where its files are and what its columns are.
        api.upload_file(
            path_or_fileobj=str(card).encode(),
            path_in_repo="README.md",
            repo_id=name,
            repo_type="dataset",
            revision=revision,
            commit_message="Describe the labels",
        )
        labels.push_to_hub(name, split="train", token=token, revision=revision, commit_message="Upload the labels")
        return name, url

    return push_with_retries(push, repo_id, token)


def make_labels_card(labels: Dataset, repo_id: str) -> DatasetCard:
    """The card of a data set of labels."""
    return DatasetCard.from_template(
        DatasetCardData(pretty_name=f"Pseudo-labels {repo_id.split('/')[-1]}", tags=sorted(TAGS)),
        template_path=str(find_template(TEMPLATE)),
        repo_id=repo_id,
        hf_plr_version=hf_plr.__version__,
        n_samples=f"{len(labels):,}",
        found=_found(labels.data.table),
        columns=[(name, COLUMNS[name]) for name in labels.column_names],
        of_frames="units" in labels.column_names,
        media=next((name for name in ("image", "audio") if name in labels.column_names), None),
    )


def _found(table: pa.Table) -> str:
    """How many clusters or units there are, in words."""
    if "units" in table.column_names:
        units = pc.list_flatten(table["units"])
        return f"{len(pc.unique(units).filter(pc.greater_equal(pc.unique(units), 0)))} units of {len(units):,} frames"
    labels = table["label"].to_numpy()
    return f"{len(np.unique(labels[labels >= 0])):,} clusters, {(labels < 0).mean():.1%} of the samples in none"


def _as_media(media: Dataset) -> Dataset:
    """A column of undecoded images or recordings under the usual name, as one that others decode."""
    (name,) = media.column_names
    kind = type(media.features[name])
    if kind not in (Image, Audio):
        raise ValueError(f"the column {name!r} holds {kind.__name__}, not Image or Audio: it cannot be pushed as media")
    usual = "image" if kind is Image else "audio"
    if name != usual:
        media = media.rename_column(name, usual)
    return media.cast_column(usual, kind())
