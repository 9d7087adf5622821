"""Arithmetic of GPUs that gives the same bits each time: what can be seen of it without one."""

from __future__ import annotations

import os

import pytest
import torch

from hf_plr.models.vision import small_vit
from hf_plr.models.vision_backbone import VisionBackbone
from hf_plr.utils.determinism import ENVIRONMENT, require_determinism


@pytest.fixture
def torch_settings(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("torch_settings")
def test_everything_that_may_differ_is_fixed_or_raises(monkeypatch):
    monkeypatch.setenv("NCCL_ALGO", "Tree")  # the user's own
    require_determinism()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["NCCL_ALGO"] == "Tree"


@pytest.mark.usefixtures("torch_settings")
def test_an_exact_run_on_a_gpu_asks_for_it(make_trainer, monkeypatch):
    monkeypatch.setattr("hf_plr.training_args.PLRTrainingArguments.is_exact_gpu", True)
    make_trainer()
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("size", "is_trained"), [(32, True), (64, False)])
def test_interpolated_positions_have_no_gradient(size, is_trained):
    model = small_vit(32, 8)
    VisionBackbone(model, "cls", (size, size)).freeze_positions(model)
    assert model.embeddings.position_embeddings.requires_grad is is_trained
    assert model.embeddings.cls_token.requires_grad
