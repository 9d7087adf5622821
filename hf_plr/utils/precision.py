"""Products of float32 matrices that decide labels: exact on any device, and fast on CPUs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

LARGEST_ERROR_RATIO = 4.0  # against torch's own fp32 product; rounding to bf16 is some thousand times off


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Compute float32 products on a device in float32 inside the context, whatever the run has allowed.

    On GPUs `torch_compile` and `tf32` round operands to 10 bits (TF32), which changes labels. On CPUs products are
    those of `fast_fp32_products`.

    Args:
        device: device of the products.
    """
    if device.type != "cuda":
        with fast_fp32_products(device):
            yield
        return
    settings = torch.backends.cuda.matmul
    previous_setting = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = previous_setting


@contextlib.contextmanager
def fast_fp32_products(device: torch.device) -> Iterator[None]:
    """Use oneDNN's fp32 products inside the context, where the device is a CPU.

    torch calls MKL for fp32 products, and MKL takes a slower path on processors of other makers. A setting that allows
    bf16 arithmetic makes torch call oneDNN instead. Without matrix units (AMX) oneDNN then computes in fp32, with them
    it rounds to bf16. A trial decides once; where oneDNN rounds, the setting stays unchanged.

    Args:
        device: device of the products; on others than CPUs nothing changes.
    """
    if device.type != "cpu" or not _onednn_keeps_fp32():
        yield
        return
    settings = _product_settings()
    previous_setting = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = previous_setting


def _product_settings() -> Any:
    return getattr(torch.backends.mkldnn, "matmul", None)


@functools.cache
def _onednn_keeps_fp32() -> bool:
    settings = _product_settings()
    if settings is None or not hasattr(settings, "fp32_precision") or not torch.backends.mkldnn.is_available():
        return False  # torch before 2.9
    generator = torch.Generator().manual_seed(0)
    left_matrix, right_matrix = torch.randn(2, 256, 512, generator=generator)
    exact_product = left_matrix.double() @ right_matrix.double().T
    own_error = ((left_matrix @ right_matrix.T) - exact_product).abs().max()
    previous_setting = settings.fp32_precision
    try:
        settings.fp32_precision = "bf16"
        fast_error = ((left_matrix @ right_matrix.T) - exact_product).abs().max()
    except RuntimeError:  # a build that knows the setting but not this value
        return False
    finally:
        settings.fp32_precision = previous_setting
    return bool(fast_error <= LARGEST_ERROR_RATIO * own_error)
