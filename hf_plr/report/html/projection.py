"""Features laid out in two dimensions."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

import numpy as np

logger = logging.getLogger(__name__)

DECIMALS = 4
LEAST_SAMPLES = 10  # of a map of neighbours
PERPLEXITY = 30.0
JITTER = 1e-3  # of the start of t-SNE, so that equal samples do not start at one place


def layouts(features: np.ndarray, seed: int, final: bool = False) -> dict[str, list[list[float]]]:
    """Lay features out as maps, by name, the one to show first at the front.

    Args:
        features: shape (M, D).
        seed: seed of t-SNE and UMAP.
        final: request t-SNE, and UMAP if it is installed, which take seconds, and not "PCA" alone.

    Returns:
        M pairs in [-1, 1] per map.
    """
    axes = pca(features)
    maps = {}
    if final and len(features) >= LEAST_SAMPLES and np.isfinite(axes).all() and np.ptp(axes) > 0:
        ways: dict[str, Callable[[], np.ndarray]] = {"t-SNE": lambda: t_sne(features, axes, seed)}
        if importlib.util.find_spec("umap") is not None:
            ways["UMAP"] = lambda: _umap(features, seed)
        for name, lay_out in ways.items():
            try:
                maps[name] = _scale(lay_out())
            except Exception as error:  # such as numba's, or those of a version that does not fit: PCA is enough
                logger.warning("The report has no %s: %s", name, error)
    return maps | {"PCA": _scale(axes)}


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


def t_sne(features: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    """Lay features (M, D) out by t-SNE, from the places of `pca`: float32 (M, 2), the same on any number of threads.

    scikit-learn's t-SNE takes memory that is not its own where a place is not a number, so that the process dies. Here
    none is: features are scaled, the start has an extent, and equal samples start apart.

    Args:
        features: finite, at least two different rows.
        start: finite places with an extent, (M, 2).
        seed: seed of what keeps equal samples apart.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    rows = (rows / np.abs(rows).max()).astype(np.float32)
    places = start / start.std(axis=0).max() + np.random.default_rng(seed).normal(scale=JITTER, size=start.shape)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    with threadpool_limits(1):  # threads of a machine that others use, too, wait for each other at every step
        model = TSNE(perplexity=perplexity, init=(places * 1e-4).astype(np.float32), random_state=seed)
        laid_out: np.ndarray = model.fit_transform(rows)
    if not np.isfinite(laid_out).all():
        raise ValueError("it came to places that are not numbers")
    return laid_out


def _umap(features: np.ndarray, seed: int) -> np.ndarray:
    import umap

    laid_out: np.ndarray = umap.UMAP(random_state=seed).fit_transform(features)
    return laid_out


def _scale(places: np.ndarray) -> list[list[float]]:
    """Scale places into a square from -1 to 1, the same on both axes, and round them."""
    places = places - (places.max(axis=0) + places.min(axis=0)) / 2
    scale = float(np.abs(places).max())
    scaled: list[list[float]] = np.round(places / scale if scale > 0 else places, DECIMALS).tolist()
    return scaled
