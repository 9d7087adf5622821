"""The pair term: its losses, pairs that are drawn and augmented apart, a head that resumes and serves processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.absent_gpu import GPU
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_plr.pseudo_labels.pair_term import LEARNING_RATE, PAIR_LOSSES, PairTerm, nt_xent, vicreg_loss
from hf_plr.pseudo_labels.sampler import ClusterSampler
from hf_plr.utils.rng import uniform, uniform_of_pairs

VICREG, SIMCLR = PAIR_LOSSES["vicreg"], PAIR_LOSSES["simclr"]


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_vicreg_by_hand():
    # Two samples, two columns: deviations sqrt(2) and 0, so that the second column lacks 1 - sqrt(1e-4) = 0.99.
    first = torch.tensor([[1.0, 3.0], [-1.0, 3.0]])
    second = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    invariance = 25.0 * (4.0 + 4.0) / 4.0
    variance = 25.0 * 2 * 0.99 / 2
    assert vicreg_loss(first, second).item() == pytest.approx(invariance + variance)
    # Equal columns: covariance 2 off the diagonal, twice a view, over two columns.
    both = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert vicreg_loss(both, both).item() == pytest.approx(2 * (2 * 2.0**2) / 2)


def test_vicreg_is_the_sum_of_its_three_terms():
    generator = np.random.default_rng(0)
    first, second = (generator.normal(scale=0.5, size=(5, 3)) for _ in range(2))
    expected = 25 * np.mean((first - second) ** 2)
    for view in (first, second):
        covariance = np.cov(view.T)
        expected += 25 * np.mean(np.maximum(0.0, 1 - np.sqrt(covariance.diagonal() + 1e-4)))
        expected += sum(covariance[i, j] ** 2 for i in range(3) for j in range(3) if i != j) / 3
    assert vicreg_loss(torch.from_numpy(first), torch.from_numpy(second)).item() == pytest.approx(expected)


def test_nt_xent_is_the_sum_over_all_other_rows():
    projections, temperature = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.3
    unit = (projections / projections.norm(dim=1, keepdim=True)).numpy()
    losses = []
    for i in range(6):
        cosines = {j: math.exp(unit[i] @ unit[j] / temperature) for j in range(6) if j != i}
        losses.append(-math.log(cosines[i + 1 if i % 2 == 0 else i - 1] / sum(cosines.values())))
    assert nt_xent(projections, temperature).item() == pytest.approx(np.mean(losses))


def test_spread_and_equal_views_have_no_loss():
    rows = torch.eye(4).sub(0.25).mul(4.0)
    rows = torch.linalg.svd(rows)[0][:, :3] * 2.0  # centered, uncorrelated, deviation above 1
    assert vicreg_loss(rows, rows).item() == pytest.approx(0.0, abs=1e-6)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_every_sample_is_drawn_twice_in_a_row(half, group_size, n_clusters, seed):
    n_samples = 2 * half
    targets = np.random.default_rng(seed).integers(0, n_clusters, n_samples)
    sampler = ClusterSampler(n_samples, group_size, seed, views=2)
    sampler.set_targets(targets, epoch=0)
    drawn = np.array(list(sampler))
    assert len(drawn) == n_samples
    assert (drawn[0::2] == drawn[1::2]).all()
    assert len(set(drawn)) == half  # half of the samples in an epoch, each of them once


def test_views_are_augmented_by_different_numbers():
    index = torch.tensor([7, 7, 3, 3])
    numbers = uniform_of_pairs(index, seed=1, epoch=2)
    assert numbers.shape == uniform(index, 1, 2).shape
    assert (numbers[0] != numbers[1]).all()
    assert torch.equal(uniform_of_pairs(index[2:], seed=1, epoch=2), numbers[2:])  # whatever else is in the batch
    assert len(numbers.unique()) == numbers.numel()


def test_the_head_learns_and_its_gradient_reaches_the_features(accelerator):
    term = PairTerm(VICREG.compute, 8, 0.5, 0, accelerator)
    before = {name: value.clone() for name, value in term.head.state_dict().items()}
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = term.loss(features)
    embeddings = term.head(features.detach())
    assert loss.item() == pytest.approx(0.5 * vicreg_loss(embeddings[0::2], embeddings[1::2]).item(), rel=1e-5)
    loss.backward()
    assert features.grad.abs().sum() > 0
    term.step(schedule=0.5)
    changes = {name: (value - before[name]).abs().max() for name, value in term.head.state_dict().items()}
    assert all(change > 0 for change in changes.values())
    assert max(changes.values()) <= 0.5 * LEARNING_RATE * 1.1  # Adam's first step is one learning rate
    assert all(parameter.grad is None for parameter in term.head.parameters())


def test_a_seed_gives_a_head_and_leaves_other_random_numbers_alone(accelerator):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    terms = [PairTerm(VICREG.compute, 8, 1.0, seed, accelerator) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    first, same, other = (term.head[0].weight for term in terms)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_restored_term_goes_on_by_the_same_bits(accelerator):
    batches = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))

    def train(term, steps):
        for step in steps:
            term.loss(batches[step].requires_grad_(False)).backward()
            term.step(schedule=1.0)

    whole, first = PairTerm(VICREG.compute, 8, 1.0, 0, accelerator), PairTerm(VICREG.compute, 8, 1.0, 0, accelerator)
    train(whole, range(5))
    train(first, range(2))
    resumed = PairTerm(VICREG.compute, 8, 1.0, 9, accelerator)
    resumed.load_state_dict(first.state_dict())
    train(resumed, range(2, 5))
    for name, value in whole.head.state_dict().items():
        assert torch.equal(value, resumed.head.state_dict()[name]), name


def test_a_damaged_state_is_refused(accelerator):
    term = PairTerm(VICREG.compute, 8, 1.0, 0, accelerator)
    state = term.state_dict()
    with pytest.raises(ValueError, match=r"head\.0\.weight"):
        term.load_state_dict(state | {"head.0.weight": np.zeros((3, 8), np.float32)})


@pytest.mark.parametrize(
    ("arguments", "loss", "weight"),
    [
        ({}, VICREG, 0.3),
        ({"clusterer": "agglomerative"}, VICREG, 0.3),
        ({"clusterer": "dbscan", "num_clusters": None}, SIMCLR, 1.0),
        ({"clusterer": "reciprocal_hdbscan", "num_clusters": None}, SIMCLR, 1.0),
        ({"clusterer": "dbscan", "num_clusters": None, "pair_loss": "vicreg"}, VICREG, 0.3),
        ({"pair_loss": "simclr", "pair_weight": 0.5}, SIMCLR, 0.5),
    ],
)
def test_many_small_clusters_get_the_loss_of_simclr(make_trainer, arguments, loss, weight):
    term = make_trainer(**arguments).pair_term
    embeddings = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    features = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    assert term.weight == weight
    assert term._loss(embeddings) == loss.compute(embeddings)
    assert VICREG.compute(embeddings) != SIMCLR.compute(embeddings)
    torch.testing.assert_close(term.loss(features), weight * loss.compute(term.head(features)))


@pytest.mark.parametrize(("batch", "is_refused"), [(2, True), (5, True), (4, False)])
def test_a_batch_must_hold_every_sample_twice(make_trainer, batch, is_refused):
    if not is_refused:
        assert make_trainer(per_device_train_batch_size=batch).pair_term is not None
        return
    with pytest.raises(ValueError, match=f"per_device_train_batch_size={batch}: .* even number of at least 4"):
        make_trainer(per_device_train_batch_size=batch)
    assert make_trainer(per_device_train_batch_size=batch, pair_weight=0.0).pair_term is None


def train_with_own_loader(trainer, monkeypatch, batch_size=16, **order):
    def load():
        return DataLoader(trainer.train_dataset, batch_size, collate_fn=trainer.data_collator, **order)

    monkeypatch.setattr(trainer, "get_train_dataloader", load)
    trainer.train()
    return trainer.state.epoch


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (16, r"does not hold every sample twice.*_get_train_sampler\(\).*pair_weight=0"),
        (15, "a batch of 15 views cuts a pair in two.* use an even batch size, or pair_weight=0"),
    ],
)
def test_a_loader_of_ones_own_without_pairs_is_refused(make_trainer, monkeypatch, batch_size, message):
    trainer = make_trainer(num_train_epochs=1, save_strategy="no")
    with pytest.raises(ValueError, match=message):
        train_with_own_loader(trainer, monkeypatch, batch_size, shuffle=True)


def test_a_loader_of_ones_own_trains_with_pairs_or_without_their_term(make_trainer, monkeypatch):
    arguments = {"num_train_epochs": 1, "save_strategy": "no"}
    trainer = make_trainer(**arguments)
    assert train_with_own_loader(trainer, monkeypatch, sampler=trainer._get_train_sampler()) == 1.0
    assert train_with_own_loader(make_trainer(pair_weight=0.0, **arguments), monkeypatch, shuffle=True) == 1.0


def test_a_batch_on_a_gpu_is_read_once_in_an_epoch(accelerator, monkeypatch):
    term = PairTerm(VICREG.compute, 8, 1.0, 0, accelerator)
    index, n_read = torch.arange(4, device=GPU), []
    monkeypatch.setattr(torch, "equal", lambda *_: n_read.append(1) or True)
    for epoch in (0, 0, 1, 1):
        assert term.draw(index, seed=0, epoch=epoch).shape == (4, 16)
    assert len(n_read) == 2


def test_without_augmentation_there_are_no_two_views(make_trainer):
    trainer = make_trainer(augmentation="none")
    assert trainer.pair_term is None
    assert trainer.views == 1


def test_a_batch_size_that_may_become_odd_is_refused(make_trainer):
    with pytest.raises(ValueError, match="auto_find_batch_size=True needs pair_weight=0"):
        make_trainer(auto_find_batch_size=True)


def test_an_augmentation_of_ones_own_gives_two_views(make_trainer):
    trainer = make_trainer({"augmentation": lambda images, numbers: images}, augmentation="none")
    assert trainer.pair_term is not None
