"""Features laid out in two dimensions."""

from __future__ import annotations

import importlib.util
import logging

import numpy as np

logger = logging.getLogger(__name__)

DECIMALS = 4


def layouts(features: np.ndarray, seed: int, with_umap: bool = False) -> dict[str, list[list[float]]]:
    """Lay features out as maps, by name: "PCA", and "UMAP" if it is requested and installed.

    Args:
        features: shape (M, D).
        seed: seed of UMAP.
        with_umap: request UMAP, which takes seconds.

    Returns:
        M pairs in [-1, 1] per map.
    """
    maps = {"PCA": _scale(pca(features))}
    if with_umap and importlib.util.find_spec("umap") is not None and len(features) > 15:
        try:
            import umap

            maps["UMAP"] = _scale(umap.UMAP(random_state=seed).fit_transform(features))
        except Exception as error:  # numba's, or those of a version that does not fit: PCA is enough
            logger.warning("The report has no UMAP: %s", error)
    return maps


def pca(features: np.ndarray) -> np.ndarray:
    """Compute the two principal components of features (M, D): float64 (M, 2), zeros where there are fewer.

    The sign of each is such that its entry of largest size is positive.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    if centred.shape[1] <= len(centred):
        _, axes = np.linalg.eigh(centred.T @ centred)
        places = centred @ axes[:, ::-1][:, :2]
    else:
        values, axes = np.linalg.eigh(centred @ centred.T)
        places = (axes * np.sqrt(np.maximum(values, 0.0)))[:, ::-1][:, :2]
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    extremes = places[np.abs(places).argmax(axis=0), [0, 1]]
    return places * np.where(extremes < 0, -1.0, 1.0)


def _scale(places: np.ndarray) -> list[list[float]]:
    """Scale places into a square from -1 to 1, the same on both axes, and round them."""
    places = places - (places.max(axis=0) + places.min(axis=0)) / 2
    scale = float(np.abs(places).max())
    scaled: list[list[float]] = np.round(places / scale if scale > 0 else places, DECIMALS).tolist()
    return scaled
