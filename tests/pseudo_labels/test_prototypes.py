"""The memory of prototypes, against cross-entropy and means from their definitions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.soft_targets import SparseTargets

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=3).filter(any)


def unit(*shape, generator=None):
    return F.normalize(torch.randn(*shape, generator=generator), dim=1)


def memory_of(*tables, momentum=0.5):
    memory = PrototypeMemory(temperature=0.1, momentum=momentum)
    memory.reset(torch.zeros(8), tables)
    return memory


def test_memory_loss_is_cross_entropy_over_cosines_and_noise_has_none():
    features, targets = unit(12, 8), torch.arange(12) % 3
    memory = memory_of(average_clusters(features, targets, 3).directions)
    (prototypes,) = memory.prototypes
    for cluster in range(3):
        expected = F.normalize(features[targets == cluster].mean(dim=0), dim=0)
        torch.testing.assert_close(prototypes[cluster], expected)
    batch = unit(5, 8).requires_grad_()
    labels = torch.tensor([0, -1, 2, -1, 1])
    kept = labels >= 0
    loss = memory.loss(batch, labels[:, None])
    expected = F.cross_entropy(batch[kept] @ prototypes.T / 0.1, labels[kept])
    torch.testing.assert_close(loss, expected * 3 / 5)
    loss.backward()
    assert (batch.grad[~kept] == 0).all()
    assert memory.loss(batch, torch.full((5, 1), -1)).item() == 0.0
    weights = torch.tensor([0.5, 9.0, 2.0, 9.0, 0.0])[:, None]
    each = F.cross_entropy(batch[kept] @ prototypes.T / 0.1, labels[kept], reduction="none")
    torch.testing.assert_close(memory.loss(batch, labels[:, None], weights), (0.5 * each[0] + 2.0 * each[1]) / 5)
    onehot = SparseTargets(labels.clamp(min=0)[:, None, None], kept.float()[:, None, None])
    torch.testing.assert_close(memory.loss(batch, onehot, weights), memory.loss(batch, labels[:, None], weights))


@given(SEEDS, st.integers(1, 6), st.integers(1, 7), SIZES)
def test_soft_targets_give_the_cross_entropy_of_their_dense_rows(seed, n_samples, n_entries, sizes):
    generator = torch.Generator().manual_seed(seed)
    tables = [unit(size, 8, generator=generator) for size in sizes]
    memory = memory_of(*tables)
    columns, shares = [], []
    for start, size in zip(memory.starts, sizes, strict=True):
        columns.append(torch.randint(max(size, 1), (n_samples, n_entries), generator=generator) + start * (size > 0))
        shares.append(torch.rand(n_samples, n_entries, generator=generator) * (size > 0))
        shares[-1][torch.rand(n_samples, generator=generator) < 0.3] = 0.0  # no loss
    features = unit(n_samples, 8, generator=generator)
    batch = features.clone().requires_grad_()
    memory.loss(batch, SparseTargets(torch.stack(columns, dim=1), torch.stack(shares, dim=1))).backward()
    expected = features.clone().requires_grad_()
    losses = []
    for table, start, column, share in zip(tables, memory.starts, columns, shares, strict=True):
        if len(table):
            dense = torch.zeros(n_samples, len(table)).scatter_add_(1, column - start, share)
            log_probabilities = F.log_softmax(expected @ table.T / 0.1, dim=1)
            losses.append(-(dense * log_probabilities).sum() / n_samples)
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(batch.grad, expected.grad, rtol=1e-4, atol=1e-4)


@given(SEEDS, st.integers(1, 4), st.integers(1, 5), SIZES)
def test_the_loss_of_equal_parts_is_that_of_the_whole_wherever_targets_are_missing(seed, n_parts, n_each, sizes):
    generator = torch.Generator().manual_seed(seed)
    n_samples = n_parts * n_each
    memory, batch = memory_of(*(unit(size, 8, generator=generator) for size in sizes)), unit(n_samples, 8)
    targets = torch.stack([torch.randint(-1, size, (n_samples,), generator=generator) for size in sizes], dim=1)
    weights = torch.rand(n_samples, len(sizes), generator=generator)
    rows = torch.arange(n_samples).split(n_each)
    parts = torch.stack([memory.loss(batch[part], targets[part], weights[part]) for part in rows])
    torch.testing.assert_close(parts.mean(), memory.loss(batch, targets, weights))


def test_the_loss_is_the_mean_of_the_labelings_that_have_clusters():
    tables = [unit(3, 8), unit(0, 8), unit(5, 8)]
    memory, batch = memory_of(*tables), unit(6, 8)
    targets = torch.stack([torch.arange(6) % 3, torch.full((6,), -1), torch.arange(6) % 5], dim=1)
    expected = [F.cross_entropy(batch @ tables[i].T / 0.1, targets[:, i]) for i in (0, 2)]
    torch.testing.assert_close(memory.loss(batch, targets), torch.stack(expected).mean())


def test_update_moves_only_the_prototypes_of_the_batch():
    memory = memory_of(average_clusters(unit(12, 8), torch.arange(12) % 4, 4).directions, momentum=0.25)
    (prototypes,) = memory.prototypes
    before = prototypes.clone()
    features, targets = unit(3, 8), torch.tensor([1, 1, -1])
    memory.update(features, targets[:, None])
    assert torch.equal(prototypes[[0, 2, 3]], before[[0, 2, 3]])
    mean = F.normalize(features[:2].mean(dim=0), dim=0)
    torch.testing.assert_close(prototypes[1], F.normalize(0.25 * before[1] + 0.75 * mean, dim=0))


@given(SEEDS, st.integers(1, 40), SIZES)
def test_an_update_has_the_bits_of_its_definition_for_any_batch(seed, n_samples, sizes):
    generator = torch.Generator().manual_seed(seed)
    memory = memory_of(*(unit(size, 8, generator=generator) for size in sizes), momentum=0.2)
    directions = unit(n_samples, 8, generator=generator)
    targets = [torch.randint(-1, size, (n_samples,), generator=generator, dtype=torch.int32) for size in sizes]
    before = [prototypes.clone() for prototypes in memory.prototypes]
    memory.update(directions, torch.stack(targets, dim=1))
    for found, expected, own in zip(memory.prototypes, before, targets, strict=True):
        present, row = torch.unique(own[own >= 0], return_inverse=True)
        means = average_clusters(directions[own >= 0], row, len(present)).directions
        expected[present] = F.normalize(memory.momentum * expected[present] + (1.0 - memory.momentum) * means, dim=1)
        assert torch.equal(found, expected)
