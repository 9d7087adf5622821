"""Centroids of a trained run, which encode any recording as units."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors.numpy import save_file

from hf_plr.clustering import KMeans
from hf_plr.clustering.checks import NotFiniteError, find_nonfinite_rows
from hf_plr.data.audio_store import AudioStore
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.refinement import NOISE
from hf_plr.refinement.cooccurrence import iterate_blocks
from hf_plr.units.frames import Frames
from hf_plr.units.space import SCALINGS, FrameSpace, number_recordings, number_speakers
from hf_plr.utils.files import replacing
from hf_plr.utils.hub_files import download_if_there
from hf_plr.utils.serialization import name_file_in_errors, read_formatted, validate_array

CENTROIDS_FILE = "centroids.safetensors"
FORMAT = "hf-plr-centroids-1"  # of frames as they are; releases before 0.2 read no other
SPACE_FORMAT = "hf-plr-centroids-2"  # of frames that are standardised or whitened first
SPACE_ARRAYS = ("mean", "std", "origin", "matrix")
WRITTEN_ROWS = 1 << 16  # recordings that are written together


@dataclass(frozen=True)
class UnitEncoder:
    """Encoder of recordings by the centroids of a layer of the backbone, each with the number of its unit.

    Attributes:
        centroids: float32 (K, D).
        units: number of each centroid's unit, int64 (K,); several centroids may have the same.
        layer: the layer whose frames are compared with them, 0 for the input of the first.
        space: the space in which they are compared, on the CPU.
    """

    centroids: np.ndarray
    units: np.ndarray
    layer: int
    space: FrameSpace = field(default_factory=FrameSpace)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `centroids.safetensors`; the file is complete or does not exist."""
        path = os.path.join(directory, CENTROIDS_FILE)
        arrays: dict[str, np.ndarray] = {
            "centroids": np.ascontiguousarray(self.centroids, np.float32),
            "units": self.units.astype(np.int64),
            "layer": np.array([self.layer]),
        }
        space_format = FORMAT if self.space.is_identity else SPACE_FORMAT
        if space_format == SPACE_FORMAT:
            arrays |= _store_space(self.space)
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata={"format": space_format})

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> UnitEncoder:
        """Read the centroids in a backbone's folder.

        Args:
            name: a folder or a Hub id.

        Raises:
            ValueError: if they are missing, damaged or of another format.
        """
        path: str | None = os.path.join(name, CENTROIDS_FILE)
        if not os.path.isdir(name):
            try:
                path = download_if_there(os.fspath(name), CENTROIDS_FILE)
            except (HFValidationError, RepositoryNotFoundError) as error:
                raise ValueError(
                    f"{name} is not a folder here, and the Hub has no {CENTROIDS_FILE}: {error}"
                ) from error
        if path is None or not os.path.isfile(path):
            raise ValueError(
                f"{name} has no {CENTROIDS_FILE}: give the output folder of `hf-plr train audio --objective frames`, "
                "or call UnitTrainer.save_labels"
            )
        stored_format, arrays = read_formatted(path, (FORMAT, SPACE_FORMAT))
        with name_file_in_errors(path):
            centroids = validate_array(arrays, "centroids", "floats", (None, None)).astype(np.float32, copy=False)
            if centroids.size == 0:
                raise ValueError(f"'centroids' are empty: they have shape {centroids.shape}")
            units = validate_array(arrays, "units", "integers", (len(centroids),), NOISE, np.iinfo(np.int32).max)
            return cls(
                centroids,
                units.astype(np.int64, copy=False),
                int(validate_array(arrays, "layer", "integers", (1,), 0)[0]),
                FrameSpace() if stored_format == FORMAT else _validate_space(arrays, centroids.shape[1]),
            )

    def encode(
        self, extractor: FeatureExtractor, store: AudioStore, speakers: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Encode a store on this process alone; yields per sample its row of the data set and units (frames,).

        Args:
            extractor: the backbone.
            store: the recordings.
            speakers: speaker of each row of the data set, any integers, below 0 if unknown, for a space that is
                standardised by speaker: a pass over all frames measures them. Unknown speakers, and all of them with
                None, are standardised by recording.

        Raises:
            ValueError: if the centroids do not fit the backbone.
            NotFiniteError: if frames of a sample are NaN or infinite, naming its row.
        """
        width, n_layers = extractor.width, int(extractor.modality.model.config.num_hidden_layers)
        if self.centroids.shape[1] != width or self.layer > n_layers:
            raise ValueError(
                f"the centroids have {self.centroids.shape[1]} columns and are of layer {self.layer}, but the backbone "
                f"has {n_layers} layers of width {width}: they belong to another backbone"
            )
        frames = Frames(extractor, store, self.layer)
        kmeans = KMeans(len(self.centroids), spherical=False)
        kmeans.load_state_dict({"cluster_centers": torch.from_numpy(self.centroids)})
        space = self.space.to(extractor.accelerator.device)
        known = None if speakers is None or space.scaling != "speaker" else number_speakers(speakers[store.rows])
        if known is not None and known.max(initial=-1) < 0:  # a space cannot look up speakers where it knows of none
            known = None
        if store.segments is not None and space.scaling in ("recording", "speaker"):
            known = number_recordings(store.rows, known)
        if known is not None:
            space = space.with_speakers(frames, known, extractor.accelerator)
        for rows, positions in frames.stream_recordings(torch.arange(len(store))):
            chosen = positions.numpy()
            bad = find_nonfinite_rows(rows)
            if len(bad):
                sample = int(np.searchsorted(np.cumsum(frames.counts[chosen]), int(bad[0]), side="right"))
                raise NotFiniteError(
                    f"the frames of row {store.rows[chosen[sample]]} are NaN or infinite: check that recording, and "
                    "the weights of the model"
                )
            mapped = space.map(rows, frames.counts[chosen], None if known is None else known[chosen])
            units = np.split(self.units[kmeans.predict(mapped)], np.cumsum(frames.counts[chosen])[:-1])
            yield from zip(store.rows[chosen].tolist(), units, strict=True)


def _store_space(space: FrameSpace) -> dict[str, np.ndarray]:
    """Arrays of a space by name, without speakers."""
    values = {name: getattr(space, name) for name in SPACE_ARRAYS}
    arrays = {f"frame_{name}": value.cpu().numpy() for name, value in values.items() if value is not None}
    return arrays | {"frame_scaling": np.array([SCALINGS.index(space.scaling)])}


def _validate_space(arrays: dict[str, np.ndarray], width: int) -> FrameSpace:
    """Validate the output of `_store_space` for frames of `width` columns.

    Raises:
        ValueError: naming an array and its fault.
    """
    number = validate_array(arrays, "frame_scaling", "integers", (1,), 0, len(SCALINGS) - 1)[0]
    scaling = SCALINGS[int(number)]

    def read(name: str, shape: tuple[int, ...], lowest: float | None = None) -> torch.Tensor:
        array = validate_array(arrays, f"frame_{name}", "floats", shape, lowest)
        return torch.from_numpy(array.astype(np.float32, copy=False))

    mean = std = origin = matrix = None
    if scaling != "none":
        mean, std = read("mean", (width,)), read("std", (width,), float(np.finfo(np.float32).tiny))
    if "frame_matrix" in arrays:
        origin, matrix = read("origin", (width,)), read("matrix", (width, width))
    return FrameSpace(scaling, mean, std, origin, matrix)


def write_units(
    path: str | os.PathLike[str],
    rows: np.ndarray,
    units: list[np.ndarray],
    files: list[str] | None = None,
    segments: np.ndarray | None = None,
) -> None:
    """Write one row per recording: index (its row of the data set), file, and units (int32, one per frame), by index.

    Segments of recordings are rows of their own, by index and start.

    Args:
        path: a parquet file; it is complete or does not exist.
        rows: index of each recording, (N,).
        units: its units, -1 = none.
        files: its file, (N,); None leaves the column out.
        segments: start and end in seconds of each, (N, 2); None leaves the columns out.
    """
    fields = [("index", pa.int64())]
    fields += [] if files is None else [("file", pa.string())]
    fields += [] if segments is None else [("start", pa.float64()), ("end", pa.float64())]
    schema = pa.schema([*fields, ("units", pa.list_(pa.int32()))])
    order = np.argsort(rows, kind="stable") if segments is None else np.lexsort((segments[:, 0], rows))
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for part in iterate_blocks(len(order), WRITTEN_ROWS):
            columns = {
                "index": np.asarray(rows)[order[part]],
                "units": [units[i].astype(np.int32) for i in order[part]],
            }
            if files is not None:
                columns["file"] = [files[i] for i in order[part]]
            if segments is not None:
                columns["start"], columns["end"] = segments[order[part]].T
            writer.write_table(pa.table(columns, schema))
