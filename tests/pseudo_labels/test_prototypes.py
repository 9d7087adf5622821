"""The memory of prototypes, against cross-entropy and means from their definitions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.pseudo_labels.prototypes import PrototypeMemory


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def test_memory_loss_is_cross_entropy_over_cosines_and_noise_has_none():
    memory = PrototypeMemory(temperature=0.1, momentum=0.5)
    features, targets = unit(12, 8), torch.arange(12) % 3
    memory.reset(torch.zeros(8), average_clusters(features, targets, 3).directions)
    for cluster in range(3):
        expected = F.normalize(features[targets == cluster].mean(dim=0), dim=0)
        torch.testing.assert_close(memory.prototypes[cluster], expected)
    batch = unit(5, 8).requires_grad_()
    labels = torch.tensor([0, -1, 2, -1, 1])
    loss = memory.loss(batch, labels)
    kept = labels >= 0
    expected = F.cross_entropy(batch[kept] @ memory.prototypes.T / 0.1, labels[kept])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (batch.grad[~kept] == 0).all()
    assert memory.loss(batch, torch.full((5,), -1)).item() == 0.0
    weights = torch.tensor([0.5, 9.0, 2.0, 9.0, 0.0])
    each = F.cross_entropy(batch[kept] @ memory.prototypes.T / 0.1, labels[kept], reduction="none")
    torch.testing.assert_close(memory.loss(batch, labels, weights), (0.5 * each[0] + 2.0 * each[1]) / 3)
    onehot = F.one_hot(labels.clamp(min=0), 3) * kept[:, None]
    torch.testing.assert_close(memory.loss(batch, onehot.float(), weights), memory.loss(batch, labels, weights))


def test_soft_targets_that_are_one_hot_equal_hard_ones():
    memory = PrototypeMemory(temperature=0.1, momentum=0.5)
    memory.reset(torch.zeros(8), average_clusters(unit(12, 8), torch.arange(12) % 3, 3).directions)
    batch, hard = unit(4, 8), torch.tensor([2, 0, -1, 1])
    soft = F.one_hot(hard.clamp(min=0), 3).float() * (hard >= 0)[:, None]
    torch.testing.assert_close(memory.loss(batch, soft), memory.loss(batch, hard))


def test_update_moves_only_the_prototypes_of_the_batch():
    memory = PrototypeMemory(temperature=0.1, momentum=0.25)
    memory.reset(torch.zeros(8), average_clusters(unit(12, 8), torch.arange(12) % 4, 4).directions)
    before = memory.prototypes.clone()
    features, targets = unit(3, 8), torch.tensor([1, 1, -1])
    memory.update(features, targets)
    assert torch.equal(memory.prototypes[[0, 2, 3]], before[[0, 2, 3]])
    mean = F.normalize(features[:2].mean(dim=0), dim=0)
    torch.testing.assert_close(memory.prototypes[1], F.normalize(0.25 * before[1] + 0.75 * mean, dim=0))
