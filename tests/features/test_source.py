"""Where the stage's features come from: precision, memory-mapped files, features seen while training."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import tiny
from transformers import TrainerCallback

from hf_plr import KMeans, ReciprocalDBSCAN
from hf_plr.features.centering import CenteredFeatures
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.features.source import FeatureSource, count_moved, has_bf16_arithmetic
from hf_plr.utils.mapped_arrays import allocate_array
from hf_plr.utils.precision import _onednn_keeps_fp32, fast_fp32_products

CPU = torch.device("cpu")


def test_the_fast_product_is_as_exact_and_the_setting_restored():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    left, right = torch.randn(2, 300, 400)
    with fast_fp32_products(CPU):
        product = left @ right.T
        assert (settings.fp32_precision != before) == _onednn_keeps_fp32()
    assert settings.fp32_precision == before
    with pytest.raises(RuntimeError, match="inside"), fast_fp32_products(CPU):
        raise RuntimeError("inside")
    assert settings.fp32_precision == before
    exact = left.double() @ right.double().T
    assert (product - exact).abs().max() < 1e-5 * exact.abs().max()


def test_moved_samples_are_those_whose_nearest_prototype_differs():
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(20, 16, generator=generator), dim=1)
    exact = prototypes[torch.arange(400) % 20] + 0.02 * torch.randn(400, 16, generator=generator)
    assert count_moved(exact, exact.bfloat16().float(), prototypes) == 0
    moved = exact.clone()
    moved[[3, 7]] = prototypes[[4, 8]]
    assert count_moved(exact, moved, prototypes) == 2


@pytest.mark.skipif(not has_bf16_arithmetic(CPU), reason="this processor has no bfloat16 arithmetic")
@pytest.mark.parametrize(("allowed", "chosen"), [(1.0, "bfloat16"), (-1.0, "float32")])
def test_auto_precision_follows_the_trial_at_the_runs_own_clusters_and_is_kept(
    make_trainer, monkeypatch, allowed, chosen
):
    monkeypatch.setattr("hf_plr.features.source.LARGEST_MOVED_SHARE", allowed)
    seen = []
    counted = FeatureSource.decide_dtype

    def recorded(self, extractor, store, features, prototypes):
        seen.append((self.dtype, len(prototypes)))
        counted(self, extractor, store, features, prototypes)

    monkeypatch.setattr(FeatureSource, "decide_dtype", recorded)
    trainer = make_trainer(num_train_epochs=2)
    trainer.train()
    assert seen == [("auto", 12), (chosen, trainer.pseudo_labels.n_clusters)]  # the first stage is in float32
    assert trainer._feature_source.dtype == chosen
    assert 0 <= trainer._feature_source.moved_share <= 1
    monkeypatch.setattr("hf_plr.features.source.LARGEST_MOVED_SHARE", -allowed)  # a resumed run does not try again
    resumed = make_trainer(num_train_epochs=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._feature_source.dtype == chosen


def test_training_in_bfloat16_extracts_in_it(make_trainer):
    trainer = make_trainer(num_train_epochs=1, save_strategy="no", bf16=True)
    trainer.train()
    assert trainer._feature_source.dtype == "bfloat16"
    assert trainer._feature_source.moved_share is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_computed_as_told_whatever_training_is_in(make_trainer, dtype):
    in_float32, found = [], []

    class Compare(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            bare = tiny.tiny_vit().eval()
            bare.load_state_dict(trainer.model.state_dict())
            with torch.inference_mode():
                batch = next(iter(trainer.extractor.batches(trainer.train_dataset, torch.arange(16))))
                in_float32.append(trainer.modality.features(bare, batch))
            found.append(trainer._feature_source.extract_local(trainer.extractor, trainer.train_dataset)[:16])

    settings = {"bf16": True, "feature_dtype": dtype, "num_train_epochs": 1, "save_strategy": "no"}
    trainer = make_trainer({"callbacks": [Compare()]}, **settings)
    trainer.train()
    difference = (found[0] - in_float32[0]).abs().max()
    assert (difference < 1e-3) == (dtype == "float32")
    assert hasattr(trainer.model.forward, "__wrapped__")  # training goes on in bfloat16


def test_the_trial_takes_positions_beyond_float32(monkeypatch):
    """float32 has no last position of 2**24 + 3 samples, and would round to one behind it."""
    asked = []

    class Extractor:
        accelerator = SimpleNamespace(device=CPU, mixed_precision="no", num_processes=1)

        def extract(self, store, positions, dtype):
            asked.append(positions)
            return torch.ones(len(positions), 2)

    monkeypatch.setattr("hf_plr.features.source.has_bf16_arithmetic", lambda _: True)
    n = 2**24 + 3
    features = CenteredFeatures(torch.ones(1, 2).expand(n, 2), torch.zeros(2), slice(0, n))
    FeatureSource("extract", "auto", 0.0, None).decide_dtype(Extractor(), range(n), features, torch.eye(2))
    assert asked[0][-1] == n - 1
    assert len(asked[0]) == 2048


def test_the_model_moves_to_its_batches_before_it_extracts(make_trainer):
    """FSDP and DeepSpeed leave it on the CPU until training begins; scores come before."""
    trainer = make_trainer()
    extractor = dataclasses.replace(
        trainer.extractor, accelerator=SimpleNamespace(device=torch.device("meta"), num_processes=1)
    )
    extractor._compute_in = lambda dtype: contextlib.nullcontext()
    with extractor.evaluation_mode():
        assert {parameter.device.type for parameter in extractor.model.parameters()} == {"meta"}


def test_features_in_a_file_give_the_same_run_and_leave_nothing(make_trainer, tmp_path):
    folder = tmp_path / "features"
    runs = []
    for feature_dir in (None, str(folder)):
        trainer = make_trainer(feature_dir=feature_dir, save_strategy="no")
        trainer.train()
        runs.append(trainer.pseudo_labels.labels)
        if feature_dir is not None:
            shard = trainer.extract_shard()
            assert str(folder) in Path("/proc/self/maps").read_text()
            assert os.listdir(folder) == []  # it has no name
            assert shard.shape == (203, 32)
    np.testing.assert_array_equal(*runs)


def test_features_larger_than_a_block_are_clustered_from_a_file(tmp_path):
    room = torch.from_numpy(allocate_array((5000, 8), np.float32, tmp_path))
    generator = torch.Generator().manual_seed(0)
    room.copy_(torch.randn(5000, 8, generator=generator))
    read_only = np.memmap(tmp_path / "features.f32", np.float32, "w+", shape=(5000, 8))
    read_only[:] = room.numpy()
    read_only.flush()
    read_only = np.memmap(tmp_path / "features.f32", np.float32, "r", shape=(5000, 8))
    expected = KMeans(30, seed=0).fit_predict(room.clone())
    np.testing.assert_array_equal(KMeans(30, seed=0).fit_predict(read_only), expected)


class Counting(FeatureExtractor):
    images = 0

    def _compute(self, batch, numbers):
        Counting.images += len(batch["index"])
        return super()._compute(batch, numbers)


def test_features_of_the_epoch_take_no_pass_but_for_samples_that_it_left_out(make_trainer, monkeypatch):
    monkeypatch.setattr("hf_plr.trainer.feature_trainer.FeatureExtractor", Counting)
    Counting.images = 0
    once = {"cluster_space": "centered", "pair_weight": 0.0}  # no trial, and every sample in an epoch
    trainer = make_trainer(feature_source="epoch", feature_dtype="float32", save_strategy="no", **once)
    trainer.train()
    assert Counting.images == 203  # k-means leaves nobody out
    Counting.images = 0
    clusterer = ReciprocalDBSCAN(eps=0.5, k1=8, k2=3)
    trainer = make_trainer(
        {"clusterer": clusterer},
        feature_source="epoch",
        num_train_epochs=2,
        feature_dtype="float32",
        save_strategy="no",
        **once,
    )
    trainer.train()
    left_out = int((trainer.pseudo_labels.previous_labels == -1).sum())
    assert left_out > 0
    assert Counting.images == 203 + left_out


def test_a_sample_that_was_nan_once_is_extracted_again(make_trainer, tmp_path):
    for folder in (None, str(tmp_path / "features")):
        settings = {"feature_source": "epoch", "feature_dir": folder, "feature_dtype": "float32"}
        trainer = make_trainer(**settings, num_train_epochs=1, save_strategy="no")
        trainer.train()
        source, store = trainer._feature_source, trainer.train_dataset
        features = source.extract_local(trainer.extractor, store)
        recorded = torch.cat([torch.full((1, 32), torch.nan), features[1:3]])
        source.record(torch.tensor([0, 1, 2]), recorded)
        found = source.extract_local(trainer.extractor, store)
        assert found.isfinite().all()
        torch.testing.assert_close(found[1:3], features[1:3])
        torch.testing.assert_close(found[:1], trainer.extract_now()[:1])
        if folder is not None:
            assert folder in Path("/proc/self/maps").read_text()
            assert source._rows.data_ptr() != found.data_ptr()


def test_nothing_is_kept_of_a_stage_that_was_nan():
    source = FeatureSource("epoch", "float32", 0.2, None)
    extracted = torch.tensor([[torch.nan, 1.0], [2.0, 2.0]])
    extractor = SimpleNamespace(
        accelerator=SimpleNamespace(mixed_precision="no", num_processes=1, device=CPU),
        local_slice=lambda store: slice(0, 2),
        width=2,
        extract=lambda store, positions, dtype, out=None: extracted[positions],
    )
    source.extract_local(extractor, range(2))
    assert all(np.isfinite(value).all() for value in source.state_dict().values())
    source.record(torch.tensor([0, 1]), torch.tensor([[1.0, 3.0], [4.0, 4.0]]))
    torch.testing.assert_close(source._rows, torch.tensor([[1.0, 3.0], [3.6, 3.6]]))  # 0.2 of the old feature stays


def test_features_of_the_epoch_are_near_to_those_of_a_pass(make_trainer):
    settings = {"augmentation": "none", "learning_rate": 1e-9, "feature_momentum": 0.0, "feature_dtype": "float32"}
    trainer = make_trainer(feature_source="epoch", num_train_epochs=1, save_strategy="no", **settings)
    trainer.train()
    np.testing.assert_allclose(trainer.extract_shard().numpy(), trainer.extract_features().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("argument", "value"), [("feature_source", "both"), ("feature_dtype", "float16"), ("feature_momentum", 1.0)]
)
def test_bad_settings_are_named(make_trainer, argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        make_trainer(**{argument: value})
