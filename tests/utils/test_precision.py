"""Products that decide labels are computed in float32, whatever the run has allowed."""

from __future__ import annotations

import pytest
import torch

from hf_plr.utils.precision import LARGEST_ERROR_RATIO, exact_products

GPU_SETTINGS = torch.backends.cuda.matmul


@pytest.fixture
def allow():
    """Allow products of GPUs a precision, or those of everything; undone in the end."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch before 2.9")
    before = [(settings, settings.fp32_precision) for settings in (torch.backends, GPU_SETTINGS)]

    def set_precision(settings, precision):
        settings.fp32_precision = precision

    yield set_precision
    for settings, precision in before:
        settings.fp32_precision = precision


@pytest.mark.parametrize("settings", [torch.backends, GPU_SETTINGS], ids=["everything", "products"])
@pytest.mark.parametrize("allowed", ["ieee", "tf32"])
def test_a_gpu_computes_in_float32_inside_and_as_before_after(allow, settings, allowed):
    """`torch_compile` makes transformers allow TF32 for everything."""
    allow(settings, allowed)
    before = GPU_SETTINGS.fp32_precision
    with exact_products(torch.device("cuda")):
        assert GPU_SETTINGS.fp32_precision == "ieee"
        with exact_products(torch.device("cuda")):
            assert GPU_SETTINGS.fp32_precision == "ieee"
        assert GPU_SETTINGS.fp32_precision == "ieee"
    assert GPU_SETTINGS.fp32_precision == before
    with pytest.raises(KeyError), exact_products(torch.device("cuda", 1)):
        raise KeyError
    assert GPU_SETTINGS.fp32_precision == before


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_leave_the_settings_of_gpus(allow, device):
    allow(GPU_SETTINGS, "tf32")
    with exact_products(torch.device(device)):
        assert GPU_SETTINGS.fp32_precision == "tf32"


def test_products_on_a_cpu_are_as_exact_as_those_of_torch():
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, 300, 384, generator=generator)
    exact = left.double() @ right.double().T
    own_error = float((left @ right.T - exact).abs().max())
    with exact_products(torch.device("cpu")):
        error = float((left @ right.T - exact).abs().max())
    assert error <= LARGEST_ERROR_RATIO * own_error
