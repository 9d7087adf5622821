"""Isolated random generators, and random numbers by sample."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

RANDOM_NUMBERS = 16  # per sample, for augmentation


@contextlib.contextmanager
def isolate_rng(seed: int) -> Iterator[None]:
    """Seed all global random generators inside the context and restore them, so that resuming cannot see a stage."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    # A process has one GPU; torch would save the generators of all that it sees, and warn of it.
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def uniform(index: torch.Tensor, seed: int, epoch: int, n: int = RANDOM_NUMBERS) -> torch.Tensor:
    """Draw random numbers in [0, 1) by sample: shape (B, n), float32, on the device of index (B,).

    A counter-based generator: the SplitMix64 finaliser (Steele, Lea and Flood 2014), applied to the counter
    (index, position) and then keyed by the seed and by the epoch.
    """
    position = torch.arange(n, device=index.device)
    counter = index.to(torch.int64)[:, None] * n + position
    bits = _mix(
        _mix(_mix(counter) + _signed(0x9E3779B97F4A7C15 * (seed + 1))) + _signed(0xD1B54A32D192ED03 * (epoch + 1))
    )
    return _shift(bits, 40).to(torch.float32) / 2**24


def uniform_of_pairs(index: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Draw random numbers as `uniform`, different ones for the two views of a sample that follow each other.

    Args:
        index: shape (B,), every sample twice in a row.
        seed, epoch: as for `uniform`.
    """
    numbers = uniform(index, seed, epoch, n=2 * RANDOM_NUMBERS).unflatten(1, (2, RANDOM_NUMBERS))
    return torch.stack([numbers[0::2, 0], numbers[1::2, 1]], dim=1).flatten(0, 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Mix int64 bit patterns by SplitMix64's finaliser; products wrap around like unsigned ones."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right logically (torch shifts int64 arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
