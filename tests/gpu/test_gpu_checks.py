"""The checks of a machine with a GPU as tests: `pytest -m gpu`, half an hour on one H100."""

from __future__ import annotations

import pytest
import torch
import transformers

from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.findings import Bench, carry_out

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU; `python -m benchmarks.gpu_check --device cpu --quick` is a dry run")
    if torch.cuda.device_count() > 1:
        pytest.skip("one process sees several GPUs: show it one by CUDA_VISIBLE_DEVICES=0")
    transformers.logging.set_verbosity_error()
    return Bench(torch.device("cuda", 0), is_quick=False, folder=tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_check(check, bench):
    found = carry_out(check, bench)
    if found["passed"] is None:
        pytest.skip(found["note"])
    assert found["passed"], (found["note"], found["value"], found["bound"])
