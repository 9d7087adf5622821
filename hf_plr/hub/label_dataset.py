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
from hf_plr.hub.people_card import describe_findings
from hf_plr.hub.push import open_repo, push_with_retries
from hf_plr.pseudo_labels.label_files import DIGEST_COLUMN, FILE_COLUMN, INDEX_COLUMN, SPAN_COLUMNS, find_level
from hf_plr.report.file_names import METRICS_FILE
from hf_plr.report.metrics_file import read_settings
from hf_plr.utils.words import count_noun

LABEL_FILES = ("pseudo_labels.parquet", "units.parquet")  # of a run on images or recordings, and of one on frames
TEMPLATE = "labels.md"
NO_MEDIA_OF_SEGMENTS = (
    "segments, and each would bring its whole recording along: push the labels without the recordings; their index, "
    "start and end find each segment"
)
TAGS = ("pseudo-label-refinement", "pseudo-labels", "self-supervised", "hf-plr")
COLUMNS = {
    "index": "row of the sample in the training data",
    "file": "file of the sample, relative to the folder of all files",
    "start": "second of the recording at which the segment begins; index, start and end name a sample",
    "end": "second of the recording at which the segment ends",
    "label": "cluster of the sample, refined by those of the epochs before; -1 is none",
    "previous_label": "cluster of the sample in the epoch before; a cluster that persists has the same number",
    "confidence": "fraction of its soft label, or of several clusterings, that speaks for its cluster, in [0, 1]",
    "digest": "digest of the stored image or recording, by which later runs know the sample",
    "units": "one unit (cluster of frames) per frame; -1 is none",
    "image": "the image",
    "audio": "the recording",
}


def find_label_file(folder: str | os.PathLike[str]) -> Path:
    """Find the file with the labels of a run.

    Raises:
        ValueError: if the folder has none.
    """
    for name in LABEL_FILES:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ValueError(f"{folder} holds no labels: neither {' nor '.join(LABEL_FILES)}")


def select_labelled_media(folder: str | os.PathLike[str], dataset: Dataset, column: str) -> Dataset:
    """Select the images or recordings of a run's labels, row for row.

    Args:
        folder: the run's output folder.
        dataset: the data of the run.
        column: column of images or recordings.

    Raises:
        ValueError: if the labels are not of these data, or of segments of recordings.
    """
    from hf_plr.data.sample_store import select_undecoded

    path = find_label_file(folder)
    columns = pq.read_schema(path).names
    looked_at = [name for name in (INDEX_COLUMN, FILE_COLUMN, DIGEST_COLUMN) if name in columns]
    table = pq.read_table(path, columns=looked_at)
    if SPAN_COLUMNS[0] in columns:
        raise ValueError(f"{path} labels {NO_MEDIA_OF_SEGMENTS}")
    index = table[INDEX_COLUMN].to_numpy()
    if len(index) and int(index.max()) >= len(dataset):
        raise ValueError(
            f"{path} labels row {int(index.max())}, but the data set has {len(dataset)} rows: it is not the one that "
            "the run was given"
        )
    media = select_undecoded(dataset, column).select(index)
    _check_media(path, table, media)
    return media


def _check_media(path: Path, table: pa.Table, media: Dataset) -> None:
    """Compare contents with the digests of the labels or, where they have none, file names; row for row.

    Raises:
        ValueError: naming the first row that differs.
    """
    from hf_plr.data.content_digest import digest_rows, format_digests
    from hf_plr.data.sample_store import list_stored_paths

    (column,) = media.column_names
    index = table[INDEX_COLUMN].to_numpy()
    paths = list_stored_paths(media, column) if FILE_COLUMN in table.column_names else None
    if DIGEST_COLUMN in table.column_names:
        expected = table[DIGEST_COLUMN].to_pylist()
        known = np.array([row for row, digest in enumerate(expected) if digest is not None], np.int64)
        for row, digest in zip(known.tolist(), format_digests(digest_rows(media, known)), strict=True):
            if digest != expected[row]:
                noun = "a recording" if isinstance(media.features[column], Audio) else "an image"
                told, found = ("", "") if paths is None else (f" ({table[FILE_COLUMN][row]})", f" ({paths[row]})")
                raise ValueError(
                    f"{path} labels {noun} with digest {expected[row]}{told} in row {index[row]}, but there the "
                    f"data set has one with digest {digest}{found}: it is not the one that the run was given"
                )
    elif paths is not None:
        names = [os.path.basename(name) for name in table[FILE_COLUMN].to_pylist()]
        for row, name in enumerate(names):
            if name != os.path.basename(paths[row]):
                raise ValueError(
                    f"{path} labels {name} in row {index[row]}, but there the data set has "
                    f"{os.path.basename(paths[row])}: it is not the one that the run was given"
                )


def push_labels(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    media: Dataset | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[str, str]:
    """Push the labels of a run as a data set, which is created if it does not exist.

    Args:
        folder: the run's output folder.
        repo_id: user/name, or a name in the user's own namespace.
        media: images or recordings to push with the labels, undecoded, row for row; one column. Their bytes and file
            names are pushed.
        private: True for a private repository; None leaves that to the Hub.
        revision: branch to push to, created if it does not exist; None for the main one.
        token: a token with write access; None takes the one of `hf auth login` or HF_TOKEN.

    Returns:
        The data set's full name, and its URL.

    Raises:
        ValueError: if the folder has no labels, or a damaged file.
        HubError: if the push failed. It is safe to repeat it.
    """
    table = pq.read_table(find_label_file(folder))
    labels = Dataset(table.replace_schema_metadata(None))
    if media is not None:
        labels = concatenate_datasets([labels, _prepare_media(media)], axis=1)

    def push(api: HfApi) -> tuple[str, str]:
        name, url = open_repo(api, repo_id, private=private, repo_type="dataset")
        if revision is not None:
            api.create_branch(name, branch=revision, repo_type="dataset", exist_ok=True)
        card = make_labels_card(labels, name, folder)
        # The card first: push_to_hub adds the files and columns to its metadata.
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


def make_labels_card(labels: Dataset, repo_id: str, folder: str | os.PathLike[str]) -> DatasetCard:
    """Make the card of a data set of labels.

    Args:
        labels: the labels, a row per sample.
        repo_id: name on the Hub.
        folder: the run's output folder, whose files tell how the labels came about and what people found.
    """
    metrics = Path(folder) / METRICS_FILE
    settings = read_settings(metrics) if metrics.is_file() else None
    return DatasetCard.from_template(
        DatasetCardData(pretty_name=f"Pseudo-labels {repo_id.split('/')[-1]}", tags=sorted(TAGS)),
        template_path=str(find_template(TEMPLATE)),
        repo_id=repo_id,
        hf_plr_version=hf_plr.__version__,
        n_samples=f"{len(labels):,}",
        clusters=_count_clusters(labels.data.table),
        are_given=settings is not None and "labels" in settings,
        are_refined=settings is not None and settings.get("refinement") != "none",  # else it is not known
        people=describe_findings(folder),
        columns=[(name, _describe_column(name)) for name in labels.column_names],
        has_units="units" in labels.column_names,
        media=next((name for name in ("image", "audio") if name in labels.column_names), None),
    )


def _describe_column(name: str) -> str:
    n_clusters = find_level(name)
    if n_clusters is None:
        return COLUMNS[name]
    return f"cluster of the sample where the tree of the clusters is cut into {n_clusters:,}; -1 is none"


def _count_clusters(table: pa.Table) -> str:
    """Count clusters or units, in words."""
    if "units" in table.column_names:
        units = pc.list_flatten(table["units"])
        n_units = len(pc.unique(units).filter(pc.greater_equal(pc.unique(units), 0)))
        return f"{count_noun(n_units, 'unit')} of {len(units):,} frames"
    labels = table["label"].to_numpy()
    clusters = count_noun(len(np.unique(labels[labels >= 0])), "cluster")
    return f"{clusters}, {(labels < 0).mean():.1%} of the samples in none"


def _prepare_media(media: Dataset) -> Dataset:
    """Prepare a column of undecoded images or recordings: the usual name, decoded by its users."""
    (name,) = media.column_names
    kind = type(media.features[name])
    if kind not in (Image, Audio):
        raise ValueError(f"the column {name!r} holds {kind.__name__}, not Image or Audio: it cannot be pushed as media")
    column_name = "image" if kind is Image else "audio"
    if name != column_name:
        media = media.rename_column(name, column_name)
    return media.cast_column(column_name, kind())
