"""Labels of two epochs to refine, and what comes out of them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from hf_plr import PseudoLabelRefiner

label_pairs = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(arrays(np.int64, n, elements=st.integers(-1, 6)) for _ in range(2)))
)


def refined(first, second, **options):
    refiner = PseudoLabelRefiner(**options)
    refiner.refine(np.asarray(first))
    return refiner.refine(np.asarray(second))


def churned(n, k, rate, seed=0, noise=0.0):
    """Labels of two epochs: a share `rate` of the samples moves to a random cluster, a share becomes noise."""
    rng = np.random.default_rng(seed)
    previous = rng.integers(0, k, n)
    current = np.where(rng.random(n) < rate, rng.integers(0, k, n), previous)
    previous = np.where(rng.random(n) < noise, -1, previous)
    return previous, np.where(rng.random(n) < noise, -1, current)


def same_partition(a, b):
    return adjusted_rand_score(a, b) == 1.0
