"""oneDNN's fp32 products on CPUs, where they are as exact as the ones that torch takes by itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

LARGEST_ERROR_RATIO = 4.0  # against torch's own fp32 product; rounding to bf16 is some thousand times off


@contextlib.contextmanager
def fast_fp32_products() -> Iterator[None]:
    """Take oneDNN's fp32 products on the CPU inside, and what was taken before after.

    torch asks MKL for fp32 products, and MKL takes an older path on processors of other makers. oneDNN can be asked
    instead by allowing it bf16 arithmetic: without matrix units (AMX) it then still computes in fp32, with them it
    rounds to bf16. Which of the two holds is tried once; where it rounds, nothing is changed.
    """
    if not _onednn_keeps_fp32():
        yield
        return
    settings = _product_settings()
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _product_settings() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", None)


@functools.cache
def _onednn_keeps_fp32() -> bool:
    settings = _product_settings()
    if settings is None or not hasattr(settings, "fp32_precision") or not torch.backends.mkldnn.is_available():
        return False  # torch before 2.9
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 512, generator=generator)
    exact = left.double() @ right.double().T
    own = ((left @ right.T) - exact).abs().max()
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "bf16"
        other = ((left @ right.T) - exact).abs().max()
    except RuntimeError:  # a build that knows the setting but not this value
        return False
    finally:
        settings.fp32_precision = before
    return bool(other <= LARGEST_ERROR_RATIO * own)
