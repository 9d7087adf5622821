"""Small models and data sets that the tests share."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share it
    home = tempfile.TemporaryDirectory(prefix="hf_plr_tests_", ignore_cleanup_errors=True)
    os.environ["HF_HOME"] = home.name  # neither caches nor tokens of who runs the tests, and nothing left there
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would mostly wait for each other

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from helpers import tiny
from hypothesis import settings

from hf_plr import PLRTrainer, UnitTrainer
from hf_plr.data.example_data import digits, make_synthetic_recordings
from hf_plr.data.loading import draw_rows
from hf_plr.trainer.base_trainer import BaseTrainer

# `make test` draws the same few examples every time, `make test-all` many new ones. Other processors are slower.
settings.register_profile("quick", deadline=None, max_examples=25, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=150, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

FIRST = ("docs", "distributed", "end_to_end", "benchmarks")  # folders whose files take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no worker begins one when the others are done."""
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def manifests(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of this test's manifests: what other tests found out about their data is not known in it."""
    folder = tmp_path_factory.mktemp("manifests")
    monkeypatch.setattr("hf_plr.data.manifest.FOLDER", str(folder))  # an absolute path stays as it is
    return folder


@pytest.fixture(scope="session")
def all_digits() -> Dataset:
    return digits()


@pytest.fixture(scope="session")
def some_digits(all_digits: Dataset) -> Dataset:
    """203 digits: divisible by no batch size in use."""
    return all_digits.select(draw_rows(len(all_digits), 203, seed=0))


@pytest.fixture
def tiny_vit() -> Callable[[], torch.nn.Module]:
    return tiny.tiny_vit


@pytest.fixture
def make_trainer(tmp_path: Path, some_digits: Dataset) -> Callable[..., PLRTrainer]:
    """Make a trainer of a tiny ViT on 203 digits; keywords go to the arguments, those of the trainer to it."""

    def make(trainer: dict[str, Any] | None = None, **arguments: Any) -> PLRTrainer:
        return tiny.image_trainer(tmp_path / "out", some_digits, trainer, **arguments)

    return make


@pytest.fixture(scope="session")
def some_sounds() -> Dataset:
    """83 synthetic sounds of 0.3 to 1 s at 8 kHz: divisible by no batch size in use."""
    return make_synthetic_recordings(n_per_class=11).select(range(83))


@pytest.fixture
def tiny_hubert() -> Callable[[], torch.nn.Module]:
    return tiny.tiny_hubert


@pytest.fixture
def make_sound_trainer(tmp_path: Path, some_sounds: Dataset) -> Callable[..., BaseTrainer]:
    """Make a trainer of a tiny HuBERT on 83 sounds; keywords go to the arguments, those of the trainer to it."""

    def make(
        kind: type[BaseTrainer] = UnitTrainer, trainer: dict[str, Any] | None = None, **arguments: Any
    ) -> BaseTrainer:
        return tiny.sound_trainer(tmp_path / "out", some_sounds, kind, trainer, **arguments)

    return make
