"""Peers: each objective against its formula, the price of training, and two steps of each on digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.evidence.passes import PassCounter, count_peer_steps, count_plr_passes
from benchmarks.evidence.peer_trainer import HEAD_LEARNING_RATE, ViewSampler
from benchmarks.evidence.peers import (
    BYOL,
    DIET,
    PEERS,
    Batch,
    SwAV,
    byol,
    sinkhorn,
    swapped_prediction,
)
from benchmarks.evidence.tasks import TASKS, arguments_of
from benchmarks.evidence.ways import BASELINE, WAYS, Peer
from hf_plr import PLRTrainer


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _batch(n: int, epoch: int = 0) -> Batch:
    return Batch(torch.arange(n), epoch, lambda backbone: torch.zeros(n, 4))


def test_sinkhorn_spreads_samples_evenly():
    codes = sinkhorn(_draw(12, 4) / 4, iterations=100)
    assert codes.sum(dim=1) == pytest.approx(np.ones(12))
    assert codes.sum(dim=0) == pytest.approx(np.full(4, 3.0), rel=1e-3)
    # All samples like the first prototype, and still half of the weight goes to the second.
    scores = torch.tensor([[0.4, 0.0], [0.4, 0.0]])
    assert sinkhorn(scores) == pytest.approx(np.full((2, 2), 0.5), abs=1e-6)


def test_swav_predicts_the_codes_of_the_other_view():
    first, second = (_draw(5, 3, seed=seed) / 4 for seed in (1, 2))
    expected = 0.0
    for predicting, predicted in ((first, second), (second, first)):
        codes, logits = sinkhorn(predicted), predicting / 0.1
        expected -= (codes * (logits - torch.logsumexp(logits, dim=1, keepdim=True))).sum(dim=1).mean().item() / 2
    assert swapped_prediction(first, second, 0.1).item() == pytest.approx(expected)


def test_swav_keeps_its_prototypes_for_an_epoch():
    peer = SwAV(4, n_prototypes=3)
    for epoch, moves in ((0, False), (1, True)):
        peer(torch.randn(8, 4), _batch(8, epoch)).backward()
        assert (peer.prototypes.grad is not None) == moves


def test_byol_compares_with_the_other_view():
    predictions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    targets = torch.tensor([[0.0, 3.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    # Cosines of row 0 with target 1, 1 with 0, 2 with 3, 3 with 2: 1, 1, 0, -1.
    assert byol(predictions, targets).item() == pytest.approx(2 - 2 * (1 + 1 + 0 - 1) / 4)


def test_byol_lets_its_copy_follow_ever_slower():
    backbone = torch.nn.Linear(4, 4, bias=False)
    peer = BYOL(4, backbone)
    start = peer.target_backbone.weight.clone()
    with torch.no_grad():
        backbone.weight += 1.0
    peer.follow(backbone, progress=0.0)
    assert torch.allclose(peer.target_backbone.weight, start + 0.01)
    peer.follow(backbone, progress=1.0)
    assert torch.allclose(peer.target_backbone.weight, start + 0.01)


def test_diet_has_a_class_for_each_sample():
    peer = DIET(4, n_samples=5)
    features, index = torch.randn(3, 4), torch.tensor([4, 0, 2])
    logs = F.log_softmax(features @ peer.head.weight.T, dim=1)
    expected = -(0.2 * logs[torch.arange(3), index] + 0.8 * logs.mean(dim=1)).mean()
    assert peer(features, Batch(index, 0, lambda backbone: features)).item() == pytest.approx(expected.item())


def test_views_of_a_sample_follow_each_other():
    sampler = ViewSampler(n_samples=5, views=2, batch_size=4, seed=0)
    sampler.begin(0)
    rows = np.array(list(sampler))
    assert len(rows) == len(sampler) == 12  # 10, and whole batches
    assert (rows[0::2] == rows[1::2]).all()
    assert sorted(rows[:10]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def _make(folder, changes=None, way=BASELINE, peer=None, **arguments):
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 600, **(changes or {})}
    args = arguments_of(TASKS["digits"], str(folder), 0, {**WAYS[way].changes, **settings}, **arguments)
    return TASKS["digits"].make(PLRTrainer if peer is None else peer.trainer, args, 0, folder, folder)


def test_passes_of_an_epoch_by_hand(tmp_path):
    trainer = _make(tmp_path, {"feature_dtype": "float32"})  # no trial of bfloat16, which some CPUs have
    counter = PassCounter(trainer.modality)
    trainer.train()
    assert counter.passes == 1_800 + 2 * 1_797 / 3  # three batches of 600, one extraction, and one trial
    assert count_plr_passes(trainer.args, 1_797) == pytest.approx(counter.passes)
    assert count_peer_steps(trainer.args, 1_797, 0.0) == 5  # 2,998 / 600
    assert count_peer_steps(trainer.args, 1_797, 1 / 3) == 4  # 2,998 / 800
    tripled = arguments_of(
        TASKS["digits"], str(tmp_path), 0, {"num_train_epochs": 1, "per_device_train_batch_size": 600}, budget=3
    )
    assert count_plr_passes(tripled, 1_797) == pytest.approx(3 * (1_800 + 1_797 / 3) + 1_797 / 3)


@pytest.mark.parametrize("name", PEERS)
def test_two_steps_change_the_weights(tmp_path, name):
    small = {"num_train_epochs": 0.06, "per_device_train_batch_size": 64}
    trainer = _make(tmp_path, small, peer=Peer(name), rate=0.5)
    trainer.args.max_steps = 2
    counter = PassCounter(trainer.modality)
    start = {key: value.clone() for key, value in trainer.backbone.state_dict().items()}
    others = {key: value.clone() for key, value in _make(tmp_path).backbone.state_dict().items()}
    assert all(torch.equal(start[key], others[key]) for key in start)  # everybody starts from the same weights
    trainer.train()
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups if group["params"]}
    assert rates == {5e-4, HEAD_LEARNING_RATE}
    trained = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert trained == sum(parameter.requires_grad for parameter in trainer.model.parameters())
    moved = [key for key, value in trainer.backbone.state_dict().items() if not torch.equal(value, start[key])]
    assert len(moved) > len(start) / 2
    assert counter.passes == pytest.approx(2 * 64 * (1 + (1 / 3 if name == "byol" else 0)))


@pytest.mark.parametrize("peer", [Peer("vicreg"), Peer("byol"), None])
def test_peers_compute_in_bfloat16_where_the_default_does(tmp_path, peer):
    small = {"num_train_epochs": 0.06, "per_device_train_batch_size": 64, "bf16": True, "feature_dtype": "float32"}
    trainer = _make(tmp_path, small, peer=peer)
    trainer.args.max_steps = 1
    found = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if torch.is_autocast_enabled("cpu"):
            found.append((inputs[0].dtype, output.dtype))

    backbones = [trainer.backbone]
    if peer is not None:
        backbones += [part for name, part in trainer.peer.named_children() if name == "target_backbone"]
    images = []
    for backbone in backbones:
        next(part for part in backbone.modules() if isinstance(part, torch.nn.Linear)).register_forward_hook(note)
        backbone.register_forward_pre_hook(
            lambda _, __, given: images.append(given["pixel_values"].dtype), with_kwargs=True
        )
    trainer.train()
    assert len(found) >= len(backbones)  # the default's stages extract in it, too
    assert {output for _, output in found} == {torch.bfloat16}
    assert set(images) == {torch.float32}  # augmented as they are without autocast


def test_both_views_differ_and_are_drawn_anew(tmp_path):
    trainer = _make(tmp_path, peer=Peer("vicreg"))
    index = torch.tensor([7, 7, 3, 3])
    numbers = trainer.draw_numbers(index)
    assert not torch.isclose(numbers[0::2], numbers[1::2]).any()
    assert torch.equal(numbers, trainer.draw_numbers(index))
    trainer.begin_epoch(1)
    trainer._epoch = 1
    assert not torch.isclose(numbers, trainer.draw_numbers(index)).all()
