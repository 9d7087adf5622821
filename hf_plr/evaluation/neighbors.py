"""Weighted nearest neighbours, the field's way to score features without training on them."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

N_NEIGHBORS = 20
TEMPERATURE = 0.07


def make_weighted_knn(
    n_samples: int, n_neighbors: int = N_NEIGHBORS, temperature: float = TEMPERATURE
) -> KNeighborsClassifier:
    """Make a classifier by the votes of the nearest neighbours, exp(cosine / temperature) each.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018. DINO (Caron
    et al., ICCV 2021) has 20 neighbours and a temperature of 0.07.

    Args:
        n_samples: number of samples that it will be fitted on, a bound of the neighbours.
        n_neighbors: number of neighbours that vote, at least 1.
        temperature: divisor of the cosines, above 0.

    Returns:
        Classifier of features of unit length, (N, D).

    Raises:
        ValueError: if an argument is outside its range.
    """
    if n_samples < 1 or n_neighbors < 1:
        raise ValueError(f"n_samples={n_samples} and n_neighbors={n_neighbors} must be at least 1")
    if not temperature > 0.0:
        raise ValueError(f"temperature={temperature} must be above 0")

    def votes(distances: np.ndarray) -> np.ndarray:
        cosines = 1.0 - distances**2 / 2.0
        return np.exp((cosines - 1.0) / temperature)  # relative to a cosine of 1: nothing overflows

    return KNeighborsClassifier(min(n_neighbors, n_samples), weights=votes, algorithm="brute")


def normalize_rows(features: np.ndarray) -> np.ndarray:
    """Normalize rows of features (N, D) to unit length; a row of zeros stays."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
