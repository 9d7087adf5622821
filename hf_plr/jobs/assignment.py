"""Assignment of new data to the clusters of a finished run, and groups of what fits none of them."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_plr.clustering.novelty import KNOWN_CLUSTERS_FILE, KnownClusters
from hf_plr.data.audio_store import AudioStore
from hf_plr.data.loading import choose_split, load_splits
from hf_plr.data.media_columns import flatten_nested
from hf_plr.jobs.embedding import describe_data, make_extractor
from hf_plr.jobs.run_settings import is_adapter_of_run, read_run_settings
from hf_plr.jobs.sample_assigner import SampleAssigner
from hf_plr.modality import Modality
from hf_plr.pseudo_labels.label_files import INDEX_COLUMN, LABEL_COLUMN, SPAN_COLUMNS, level_column
from hf_plr.refinement.cluster_tree import Level
from hf_plr.report.assigned import AssignedSamples
from hf_plr.report.drift import TimeBins, bin_times
from hf_plr.report.html.assigned_files import write_assigned
from hf_plr.report.html.assigned_report import assigned_report, choose_shown
from hf_plr.report.html.previews import MEDIA_TYPES, Preview, Previews
from hf_plr.report.level_table import name_samples
from hf_plr.report.names import NAMES_FILE, read_cluster_names
from hf_plr.report.tree_file import TREE_FILE, read_levels
from hf_plr.utils.hub_files import download_if_there

logger = logging.getLogger(__name__)

FALSE_ALARMS = 0.01
KEEPS_NOTHING = {"image_cache_gib": 0.0, "sound_cache_gib": 0.0}  # every sample is needed once


@dataclass(frozen=True)
class AssignedData:
    """A data set that has been assigned to known clusters.

    Attributes:
        table: one row per sample, ordered by index and start: index (row of the data set), file if that is known, start
            and end in seconds of segments, label (known cluster, -1 = new), name where clusters have names, level_N for
            each level of the run (the level's cluster, -1 = new), name_N where levels or clusters have names, nearest
            (nearest known cluster, of new samples too), similarity (its cosine), second and second_similarity, novelty,
            p_value, and group (number of the proposed pattern of a new sample, -1 = none).
        report: what the page shows, as JSON can hold it.
    """

    table: pa.Table
    report: dict[str, Any] = field(repr=False)

    @property
    def n_new(self) -> int:
        """Number of samples that fit no known cluster."""
        return int(self.report["new"]["count"])

    @property
    def plural(self) -> str:
        """Name of the samples in messages: "images", "recordings" or "segments"."""
        return str(self.report["run"]["plural"])

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the table, and what it shows beside it: `assigned.parquet` gets `assigned.json` and `assigned.html`.

        Each file is complete or as it was before; the table is the last.

        Args:
            path: a .csv or .parquet file.
            overwrite: True to replace what exists.

        Raises:
            ValueError, OSError: if they cannot be written.
        """
        write_assigned(path, self.table, self.report, overwrite)


def assign(
    model: str | os.PathLike[str],
    dataset: Dataset | str,
    *,
    false_alarms: float | None = None,
    time_column: str | None = None,
    split: str = "train",
    dataset_config_name: str | None = None,
    batch_size: int = 256,
    progress: bool = False,
    **settings: Any,
) -> AssignedData:
    """Assign the samples of a data set to the clusters of a finished run.

    Pooling, layer, length and segments are those of the run. Features are computed and assigned batch by batch; only
    those of new samples are kept, in a file without a name.

    Args:
        model: output folder or Hub id of a run.
        dataset: the data set, or its name as `hf-plr embed` takes it.
        false_alarms: fraction of samples of known clusters that may be taken for new, in (0, 1). By default 0.01, or
            the finest that fewer than 99 known samples can tell.
        time_column: column of dates or numbers, for shares over time; None for none.
        split, dataset_config_name: of a data set that is given by its name.
        batch_size: images, or seconds of sound, that are computed together.
        progress: show progress.
        **settings: arguments of `PLRTrainingArguments`, such as `skip_unreadable` or `image_column`.

    Raises:
        ValueError: if the arguments, the model or the data do not fit, naming them.
        FileNotFoundError: if the run left no known clusters.

    Example:
        >>> import hf_plr
        >>> assigned = hf_plr.assign("out", "photos_of_this_week")  # doctest: +SKIP
        >>> assigned.table.to_pandas().query("label == -1")  # doctest: +SKIP
        >>> assigned.write("assigned.parquet")  # doctest: +SKIP
    """
    if false_alarms is not None and not 0.0 < false_alarms < 1.0:
        raise ValueError(f"false_alarms={false_alarms} must be above 0 and below 1")
    model = os.fspath(model)
    known, names, levels = read_known_clusters(model)
    finest = 1 / (len(known.known_scores) + 1)
    least = math.ceil(finest * 1e5) / 1e5
    if false_alarms is None:
        false_alarms = max(FALSE_ALARMS, least)
    elif false_alarms < finest:
        raise ValueError(
            f"false_alarms={false_alarms} is finer than the {len(known.known_scores):,} known samples can tell: use at "
            f"least {least:g}"
        )
    title = dataset if isinstance(dataset, str) else "the data set"
    if isinstance(dataset, str):
        kind: Any = "image" if settings.get("image_column") else "audio" if settings.get("audio_column") else None
        dataset = choose_split(load_splits(dataset, dataset_config_name, kind), dataset, split)
    dataset = flatten_nested(dataset)
    times = None if time_column is None else bin_times(dataset, time_column)
    extractor = make_extractor(
        dataset, model, batch_size, KEEPS_NOTHING | read_run_settings(model) | settings, progress
    )
    modality = extractor.modality
    record, _ = describe_data(dataset, modality.column)
    store = modality.open(dataset, None, {}, has_manifest=False)
    known = known.to(extractor.accelerator.device)
    samples = SampleAssigner(known, false_alarms, store, bool(settings.get("skip_unreadable"))).run(extractor)
    # Of both sides the nearest cluster: refined labels, which sizes count, are not always that.
    shown = choose_shown(samples, known.labels, known.nearest_counts, isinstance(store, AudioStore))
    report = assigned_report(
        samples,
        known.labels,
        known.nearest_counts,
        shown=shown,
        media=_make_previews(modality, dataset, samples, shown.list_keys()),
        media_types=MEDIA_TYPES[store.noun],
        false_alarms=false_alarms,
        names=names,
        times=_bins_of_samples(times, samples),
        words={
            "title": title,
            "model": model,
            "noun": modality.noun,
            "plural": modality.plural,
            "unreadable": len(store.unreadable),
        },
    )
    return AssignedData(_make_table(samples, names, levels).replace_schema_metadata(record.metadata()), report)


def read_known_clusters(model: str) -> tuple[KnownClusters, dict[int, str], dict[int, Level]]:
    """Read the clusters that a run left, their names by label, and the levels of their tree by number of clusters.

    Names and levels are empty where there are none, and with a warning where the Hub cannot be reached to tell.

    Args:
        model: output folder or Hub id of the run, or the folder of its adapters.

    Raises:
        FileNotFoundError: if the run left none.
        ValueError: if a file is damaged, naming it, or the Hub cannot be reached and the clusters are not in the cache.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    folder = os.path.dirname(os.path.normpath(model)) if is_adapter_of_run(model) else model
    if not os.path.isdir(model):
        try:
            downloaded = download_if_there(model, KNOWN_CLUSTERS_FILE)
        except (HFValidationError, RepositoryNotFoundError) as error:
            raise ValueError(f"{model} is neither a folder here nor a model on the Hub: check the name") from error
        if downloaded is not None:
            folder = os.path.dirname(downloaded)
            for name in (NAMES_FILE, TREE_FILE):
                try:
                    download_if_there(model, name)
                except ValueError as error:  # of a copy of the whole repository, which is good offline without them
                    logger.warning("%s: if the run has one, it is left out.", error)
    path = os.path.join(folder, KNOWN_CLUSTERS_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{model} holds no {KNOWN_CLUSTERS_FILE}: give the output folder of a finished run of hf-plr 0.2 or later "
            "that labels whole samples"
        )
    known = KnownClusters.load(path)
    levels = read_levels(folder) if os.path.isfile(os.path.join(folder, TREE_FILE)) else {}
    for level in levels.values():
        if not np.isin(known.labels, level.labels).all():
            raise ValueError(f"{folder}: {TREE_FILE} and {KNOWN_CLUSTERS_FILE} are not of one run: take both from it")
    return known, read_cluster_names(folder), levels


def _bins_of_samples(times: TimeBins | None, samples: AssignedSamples) -> TimeBins | None:
    return None if times is None else dataclasses.replace(times, bins=times.bins[samples.row])


def _make_previews(
    modality: Modality, dataset: Dataset, samples: AssignedSamples, keys: list[str]
) -> dict[str, Preview]:
    """Make previews of samples, by their position as text; their rows are decoded once more."""
    if not keys:
        return {}
    positions = np.array(keys, np.int64)
    rows = np.unique(samples.row[positions])
    store = modality.open(dataset.select(rows), None, {}, rows, has_manifest=False)
    starts = np.zeros(len(store)) if store.segments is None else store.segments[:, 0]
    place = {(int(rows[row]), float(start)): i for i, (row, start) in enumerate(zip(store.rows, starts, strict=True))}
    own_starts = np.zeros(len(samples)) if samples.spans is None else samples.spans[:, 0]
    wanted = {
        key: place.get((int(samples.row[p]), float(own_starts[p]))) for key, p in zip(keys, positions, strict=True)
    }
    previews = Previews(store).make(str(position) for position in wanted.values() if position is not None)
    return {key: previews[str(position)] for key, position in wanted.items() if str(position) in previews}


def _make_table(samples: AssignedSamples, names: dict[int, str], levels: dict[int, Level]) -> pa.Table:
    label = samples.label
    columns: dict[str, pa.Array] = {INDEX_COLUMN: pa.array(samples.row, pa.int64())}
    if samples.files is not None:
        columns["file"] = pa.array(samples.files)
    if samples.spans is not None:
        columns |= dict(zip(SPAN_COLUMNS, (pa.array(each, pa.float64()) for each in samples.spans.T), strict=True))
    columns[LABEL_COLUMN] = pa.array(label, pa.int64())
    if names:
        columns["name"] = name_samples(label, names)
    numbers = {n: level.apply(label) for n, level in levels.items()}
    columns |= {level_column(n): pa.array(each) for n, each in numbers.items()}
    if names or any(level.own_names for level in levels.values()):
        columns |= {f"name_{n}": name_samples(numbers[n], level.names(names)) for n, level in levels.items()}
    return pa.table(
        {
            **columns,
            "nearest": pa.array(samples.nearest, pa.int64()),
            "similarity": pa.array(samples.similarity, pa.float32()),
            "second": pa.array(samples.second, pa.int64()),
            "second_similarity": pa.array(samples.second_similarity, pa.float32()),
            "novelty": pa.array(samples.novelty, pa.float32()),
            "p_value": pa.array(samples.p_value, pa.float64()),
            "group": pa.array(samples.group, pa.int64()),
        }
    )
