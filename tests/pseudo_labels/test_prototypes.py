"""The memory of prototypes, against cross-entropy and means from their definitions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.soft_targets import SparseTargets


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def test_memory_loss_is_cross_entropy_over_cosines_and_noise_has_none():
    memory = PrototypeMemory(temperature=0.1, momentum=0.5)
    features, targets = unit(12, 8), torch.arange(12) % 3
    memory.reset(torch.zeros(8), [average_clusters(features, targets, 3).directions])
    for cluster in range(3):
        expected = F.normalize(features[targets == cluster].mean(dim=0), dim=0)
        torch.testing.assert_close(memory.prototypes[0][cluster], expected)
    batch = unit(5, 8).requires_grad_()
    labels = torch.tensor([0, -1, 2, -1, 1])
    loss = memory.loss(batch, [labels], [None])
    kept = labels >= 0
    expected = F.cross_entropy(batch[kept] @ memory.prototypes[0].T / 0.1, labels[kept])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (batch.grad[~kept] == 0).all()
    assert memory.loss(batch, [torch.full((5,), -1)], [None]).item() == 0.0
    weights = torch.tensor([0.5, 9.0, 2.0, 9.0, 0.0])
    each = F.cross_entropy(batch[kept] @ memory.prototypes[0].T / 0.1, labels[kept], reduction="none")
    torch.testing.assert_close(memory.loss(batch, [labels], [weights]), (0.5 * each[0] + 2.0 * each[1]) / 3)
    onehot = SparseTargets(labels.clamp(min=0)[:, None], kept.float()[:, None])
    torch.testing.assert_close(memory.loss(batch, [onehot], [weights]), memory.loss(batch, [labels], [weights]))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 7), st.integers(1, 9))
def test_soft_targets_give_the_cross_entropy_of_their_dense_rows(seed, n_samples, n_entries, n_clusters):
    generator = torch.Generator().manual_seed(seed)
    memory = PrototypeMemory(temperature=0.1, momentum=0.5)
    memory.reset(torch.zeros(8), [F.normalize(torch.randn(n_clusters, 8, generator=generator), dim=1)])
    columns = torch.randint(n_clusters, (n_samples, n_entries), generator=generator)
    shares = torch.rand(n_samples, n_entries, generator=generator)
    shares[torch.rand(n_samples, generator=generator) < 0.3] = 0.0  # no loss
    dense = torch.zeros(n_samples, n_clusters).scatter_add_(1, columns, shares)
    features = F.normalize(torch.randn(n_samples, 8, generator=generator), dim=1)
    gradients = []
    for soft in (True, False):
        batch = features.clone().requires_grad_()
        if soft:
            loss = memory.loss(batch, [SparseTargets(columns, shares)], [None])
        else:
            log_probabilities = F.log_softmax(batch @ memory.prototypes[0].T / 0.1, dim=1)
            loss = -(dense * log_probabilities).sum() / (dense.sum(dim=1) > 0).sum().clamp(min=1)
        loss.backward()
        gradients.append(batch.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_update_moves_only_the_prototypes_of_the_batch():
    memory = PrototypeMemory(temperature=0.1, momentum=0.25)
    memory.reset(torch.zeros(8), [average_clusters(unit(12, 8), torch.arange(12) % 4, 4).directions])
    before = memory.prototypes[0].clone()
    features, targets = unit(3, 8), torch.tensor([1, 1, -1])
    memory.update(features, [targets])
    assert torch.equal(memory.prototypes[0][[0, 2, 3]], before[[0, 2, 3]])
    mean = F.normalize(features[:2].mean(dim=0), dim=0)
    torch.testing.assert_close(memory.prototypes[0][1], F.normalize(0.25 * before[1] + 0.75 * mean, dim=0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.lists(st.integers(0, 12), min_size=1, max_size=3))
def test_an_update_has_the_bits_of_its_definition_for_any_batch(seed, n_samples, sizes):
    generator = torch.Generator().manual_seed(seed)
    memory = PrototypeMemory(temperature=0.1, momentum=0.2)
    memory.reset(torch.zeros(8), [F.normalize(torch.randn(size, 8, generator=generator), dim=1) for size in sizes])
    directions = F.normalize(torch.randn(n_samples, 8, generator=generator), dim=1)
    targets = [torch.randint(-1, size, (n_samples,), generator=generator, dtype=torch.int32) for size in sizes]
    before = [prototypes.clone() for prototypes in memory.prototypes]
    memory.update(directions, targets)
    for found, expected, own in zip(memory.prototypes, before, targets, strict=True):
        present, row = torch.unique(own[own >= 0], return_inverse=True)
        means = average_clusters(directions[own >= 0], row, len(present)).directions
        expected[present] = F.normalize(memory.momentum * expected[present] + (1.0 - memory.momentum) * means, dim=1)
        assert torch.equal(found, expected)


def test_the_loss_is_the_mean_of_the_labelings_that_have_clusters():
    memory = PrototypeMemory(temperature=0.1, momentum=0.2)
    tables = [unit(3, 8), unit(0, 8), unit(5, 8)]
    memory.reset(torch.zeros(8), tables)
    batch = unit(6, 8)
    targets = [torch.arange(6) % 3, torch.full((6,), -1), torch.arange(6) % 5]
    expected = [F.cross_entropy(batch @ tables[i].T / 0.1, targets[i]) for i in (0, 2)]
    torch.testing.assert_close(memory.loss(batch, targets, [None] * 3), torch.stack(expected).mean())
