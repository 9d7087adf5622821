"""Manifest of a data set: which rows cannot be read and how long recordings are, from an earlier run."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from hf_plr.utils.files import replacing
from hf_plr.utils.serialization import read_tensors, validate_array

logger = logging.getLogger(__name__)

FORMAT = "hf-plr-manifest-1"
FOLDER = "hf_plr_manifests"  # in the cache of `datasets`


@dataclass(frozen=True)
class Manifest:
    """What a run found out when it decoded every row of a data set.

    Attributes:
        unreadable: rows that cannot be decoded, ascending, int64.
        totals: samples of each recording at the model's rate, -1 where its header cannot be read, int64 (N,); None for
            images.
        rates: lowest and highest samples per second (Hz) of the recordings as they are stored; None for images.
    """

    unreadable: np.ndarray
    totals: np.ndarray | None = None
    rates: tuple[int, int] | None = None


class ManifestFile:
    """File of a manifest, which is whole or absent at any moment.

    It is named after what its content depends on. A file that is damaged, or of another number of rows, counts as
    absent.

    Args:
        folder: folder of the file, made if missing.
        key: text that changes when the data or their decoding change.
        n_rows: rows N of the data set.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, n_rows: int):
        digest = hashlib.sha256(f"{FORMAT}|{n_rows}|{key}".encode()).hexdigest()[:24]
        self.path = Path(folder) / f"manifest-{digest}.safetensors"
        self.n_rows = n_rows

    def read(self) -> Manifest | None:
        """Read the manifest; None if there is none that can be used."""
        try:
            arrays = read_tensors(self.path, FORMAT)
            unreadable = validate_array(arrays, "unreadable", "integers", (None,), 0, self.n_rows - 1)
            totals = None
            if "totals" in arrays:
                totals = validate_array(arrays, "totals", "integers", (self.n_rows,), -1).astype(np.int64)
            rates = None
            if "rates" in arrays:
                lowest, highest = validate_array(arrays, "rates", "integers", (2,), 1).tolist()
                rates = lowest, highest
        except (ValueError, OSError):
            return None
        return Manifest(np.unique(unreadable).astype(np.int64), totals, rates)

    def write(self, manifest: Manifest) -> None:
        """Write the manifest; a folder that cannot be written is only a warning."""
        arrays = {"unreadable": np.asarray(manifest.unreadable, np.int64)}
        if manifest.totals is not None:
            arrays["totals"] = np.asarray(manifest.totals, np.int64)
        if manifest.rates is not None:
            arrays["rates"] = np.asarray(manifest.rates, np.int64)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                save_file(arrays, temporary, metadata={"format": FORMAT})
        except (OSError, SafetensorError) as error:  # the second one: a full disk, or a folder without permission
            logger.warning("The next run checks all samples again: %s cannot be written (%s).", self.path, error)


def find_manifest_folder(cache_dir: str | None) -> Path:
    """Folder of the manifests: that of the decoded samples if there is one, else one in the cache of `datasets`."""
    return Path(datasets.config.HF_DATASETS_CACHE) / FOLDER if cache_dir is None else Path(cache_dir)
