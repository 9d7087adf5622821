"""Features of parts of a data set, as tables whose rows are numbered in the whole."""

from __future__ import annotations

import dataclasses
import os
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from accelerate import Accelerator
from datasets import Dataset

from hf_plr.clustering.checks import NotFiniteError, find_nonfinite_rows
from hf_plr.data.loader import StoreLoader
from hf_plr.data.media_columns import expose_media, flatten_nested
from hf_plr.data.sample_store import list_stored_paths, select_undecoded
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.features.first_pass import check_samples
from hf_plr.features.kept_features import KeptFeatures
from hf_plr.jobs.feature_files import BLOCK_BYTES, FEATURE_COLUMN
from hf_plr.jobs.run_settings import read_run_settings
from hf_plr.modality import find_modality
from hf_plr.pseudo_labels.data_digest import record_data
from hf_plr.pseudo_labels.data_record import DataRecord
from hf_plr.pseudo_labels.label_files import INDEX_COLUMN, SPAN_COLUMNS
from hf_plr.training_args import PLRTrainingArguments
from hf_plr.utils.files import replacing

KEEPS_NOTHING: dict[str, Any] = {"dataloader_num_workers": 0, "image_cache_gib": 0.0, "sound_cache_gib": 0.0}
PATH_ROWS = 1 << 16  # rows whose paths are in memory together


class Embedder:
    """Function of tables of samples to tables of their features, for engines that map over tables.

    The backbone is loaded at the first table and held, so that a worker makes one embedder and calls it many times:
    `ray.data.read_parquet(files).map_batches(Embedder, fn_constructor_args=["out"], batch_format="pyarrow",
    concurrency=8)`.

    Args:
        model: folder or Hub id of the backbone; of a run, its pooling, layer and segments are those of the run.
        batch_size: images, or seconds of sound, that are computed together.
        **settings: arguments of `PLRTrainingArguments`, such as `pooling` or `skip_unreadable`. Give `pixel_range` for
            images of more than 8 bits where the backbone does not keep one: else each worker finds its own. By default
            tables are decoded in this process, and nothing is kept of them.
    """

    def __init__(self, model: str, batch_size: int = 256, **settings: Any):
        self.model = model
        self.batch_size = batch_size
        self.settings = KEEPS_NOTHING | read_run_settings(model) | settings
        self._extractor: FeatureExtractor | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Compute features.

        Args:
            table: a column of images or recordings, as `datasets` stores it, or of bytes or paths; and a column index
                of their rows in the whole data set.

        Returns:
            One row per sample with the columns that `hf-plr embed` writes.

        Raises:
            ValueError: if there is no column index of integers, samples cannot be read, or features are not finite.
        """
        if INDEX_COLUMN not in table.column_names or not pa.types.is_integer(table.schema.field(INDEX_COLUMN).type):
            raise ValueError(f"the table needs a column {INDEX_COLUMN!r}: the row of each sample in the whole data set")
        rows = table[INDEX_COLUMN].to_numpy()
        # Without a name of its own, all bytes of the table would be hashed for one.
        dataset = Dataset(table.drop_columns([INDEX_COLUMN]), fingerprint=uuid.uuid4().hex)
        dataset = expose_media(dataset, os.getcwd())
        if self._extractor is None:
            self._extractor = make_extractor(dataset, self.model, self.batch_size, self.settings)
        return embed(self._extractor, dataset, rows, has_manifest=False)


def make_extractor(
    dataset: Dataset, model: str, batch_size: int, settings: dict[str, Any], progress: bool = False
) -> FeatureExtractor:
    """Load a backbone, and make an extractor for samples like those of a data set.

    Args:
        dataset: samples that tell the modality, and what becomes of their pixels where the backbone does not.
        model: folder or Hub id of the backbone.
        batch_size: images, or seconds of sound, that are computed together.
        settings: arguments of `PLRTrainingArguments`.
        progress: show progress.

    Raises:
        ValueError: if they do not fit together.
    """
    args = PLRTrainingArguments(output_dir=".", report_to="none", disable_tqdm=not progress, **settings)
    modality = find_modality(dataset, model, args)
    accelerator = Accelerator()
    backbone = modality.model.to(accelerator.device)
    loader = StoreLoader(args, modality.collate)
    return FeatureExtractor(backbone, modality, accelerator, batch_size, loader, progress=progress)


def embed(
    extractor: FeatureExtractor,
    dataset: Dataset,
    numbers: np.ndarray | None = None,
    record: DataRecord | None = None,
    folder: str | None = None,
    has_manifest: bool = True,
) -> pa.Table:
    """Compute the features of a data set, or of a part of one.

    Args:
        extractor: holds the backbone.
        dataset: the samples.
        numbers: their rows in the whole data set, (N,); None where this is the whole.
        record: the whole data set, for the metadata of the table.
        folder: folder that files are named relative to; None names them as the data set does.
        has_manifest: see `Modality.open`.

    Returns:
        One row per sample, in the order of the data set and for segments by start: index (row of the whole data set),
        file if that is known, start and end in seconds for segments, and feature, a list of D floats.

    Raises:
        ValueError: if samples cannot be read.
        NotFiniteError: if features are NaN or infinite, naming the first row.
    """
    store = extractor.modality.open(dataset, None, {}, numbers, has_manifest)
    extractor = dataclasses.replace(extractor, kept=KeptFeatures())
    check_samples(extractor, store)
    extracted = extractor.extract_all(store).cpu()
    rows, segments = store.rows, store.segments
    index = rows if numbers is None else numbers[rows]
    bad, features = find_nonfinite_rows(extracted).numpy(), extracted.numpy()
    if len(bad):
        others = f", as are {len(bad) - 1} others" if len(bad) > 1 else ""
        raise NotFiniteError(
            f"the feature of row {index[bad].min()} is NaN or infinite{others}: check that sample, and the weights of "
            "the model"
        )
    paths = list_stored_paths(store.undecoded_column, extractor.modality.column)
    starts = np.zeros(len(rows)) if segments is None else segments[:, 0]
    order = np.lexsort((starts, rows))  # a store of recordings is ordered by length
    columns: dict[str, pa.Array] = {INDEX_COLUMN: pa.array(index[order], pa.int64())}
    if paths is not None:
        files = (paths[row] for row in rows[order])
        columns["file"] = pa.array([file if folder is None else os.path.relpath(file, folder) for file in files])
    if segments is not None:
        columns |= dict(zip(SPAN_COLUMNS, (pa.array(each, pa.float64()) for each in segments[order].T), strict=True))
    flat = pa.array(np.ascontiguousarray(features[order]).reshape(-1), pa.float32())
    columns[FEATURE_COLUMN] = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    return pa.table(columns).replace_schema_metadata(None if record is None else record.metadata())


def describe_data(dataset: Dataset, column: str) -> tuple[DataRecord, str | None]:
    """Describe a whole data set: its record, and the folder around all its files, None where paths are not absolute.

    Args:
        dataset: the data set.
        column: its column of images or recordings.
    """
    undecoded = select_undecoded(flatten_nested(dataset), column)
    return record_data(undecoded, column), _find_folder(undecoded, column)


def _find_folder(undecoded: Dataset, column: str) -> str | None:
    """Find the innermost folder that holds the files of all rows: that of the first and the last path by alphabet.

    None where paths are not absolute, or there is no row.
    """
    bounds: list[str] = []
    arrow = undecoded.with_format("arrow")
    for start in range(0, len(undecoded), PATH_ROWS):
        values = arrow[start : start + PATH_ROWS][column]
        if not pa.types.is_struct(values.type) or values.type.get_field_index("path") < 0:
            return None
        for chunk in values.chunks:
            paths = chunk.field("path")
            found = pc.min_max(paths).as_py()
            if paths.null_count or not (os.path.isabs(found["min"]) and os.path.isabs(found["max"])):
                return None
            bounds = [min([*bounds, found["min"]]), max([*bounds, found["max"]])]
    return os.path.commonpath([os.path.dirname(path) for path in bounds]) if bounds else None


def write_table(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Write the table of `embed` as parquet; the file is complete or does not exist."""
    width = table.schema.field(FEATURE_COLUMN).type.list_size
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=max(1, BLOCK_BYTES // (4 * width)))
