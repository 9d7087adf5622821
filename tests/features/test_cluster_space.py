"""The space of the clusters: what a trial without labels finds, and that a resumed run keeps it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from hf_plr.clustering.whitening import Whitening, whiten
from hf_plr.features.centering import center_features
from hf_plr.features.cluster_space import CENTERED, SHRINKAGES, ClusterSpace, find_stable_shrinkage
from hf_plr.utils.mapped_arrays import allocate_array


def draw(loud: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of 600 samples and of a view of each: 12 groups, and two directions that change from view to view.

    Args:
        loud: deviation of the two directions, against 1 between the groups.
        seed: seed of both.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(12, 10, generator=generator)[torch.arange(600) % 12]

    def view() -> torch.Tensor:
        nuisance = loud * torch.randn(600, 2, generator=generator)
        return torch.cat([nuisance, groups + 0.1 * torch.randn(600, 10, generator=generator)], dim=1)

    return view(), view()


def make_trial(loud: float):
    clean, views = draw(loud, seed=0)
    center = clean.mean(dim=0)
    return F.normalize(clean - center, dim=1), F.normalize(views - center, dim=1)


def test_loud_directions_that_a_view_changes_are_whitened_away():
    clean, views = make_trial(loud=8.0)
    found = find_stable_shrinkage(Whitening(clean.double()), (CENTERED, *SHRINKAGES), clean, views, 12, seed=0)
    assert found <= 0.3


def test_quiet_ones_are_left_as_they_are():
    clean, views = make_trial(loud=0.05)
    found = find_stable_shrinkage(Whitening(clean.double()), (CENTERED, *SHRINKAGES), clean, views, 12, seed=0)
    assert found >= 3.0


def test_a_trial_is_held_once_and_kept():
    clean, views = draw(loud=8.0, seed=0)
    accelerator = Accelerator(cpu=True)
    features = center_features(clean, accelerator)
    space = ClusterSpace("auto", None, None, seed=0)
    assert space.state_dict() == {}
    space.decide(features, lambda positions: views[positions], 12, accelerator)
    assert space.shrinkage in SHRINKAGES
    assert torch.equal(space.map(features, accelerator), whiten(features.rows, space.shrinkage))

    def refuse(positions):
        raise AssertionError("a second trial")

    space.decide(features, refuse, 12, accelerator)
    resumed = ClusterSpace("auto", None, None, seed=0)
    resumed.load_state_dict(space.state_dict())
    resumed.decide(features, refuse, 12, accelerator)
    assert torch.equal(resumed.map(features, accelerator), space.map(features, accelerator))


def test_untrained_features_are_whitened_whatever_a_view_leaves_as_it_is():
    clean, views = draw(loud=0.05, seed=0)
    accelerator = Accelerator(cpu=True)
    features = center_features(clean, accelerator)
    for is_untrained in (False, True):
        space = ClusterSpace("auto", None, None, seed=0, is_untrained=is_untrained)
        space.decide(features, lambda positions: views[positions], 12, accelerator)
        assert (space.shrinkage <= 0.3) == is_untrained


def test_centered_features_are_not_copied():
    features = center_features(draw(1.0, 0)[0])
    space = ClusterSpace("centered", None, None, seed=0)
    space.decide(features, lambda positions: pytest.fail("a trial"), 12, Accelerator(cpu=True))
    assert space.map(features, Accelerator(cpu=True)) is features.rows
    resumed = ClusterSpace("auto", None, None, seed=0)
    resumed.load_state_dict(space.state_dict())
    assert resumed.shrinkage == CENTERED


def test_whitened_features_may_lie_in_a_file(tmp_path, monkeypatch):
    folders = []

    def allocate(shape, dtype, folder):
        folders.append(folder)
        return allocate_array(shape, dtype, folder)

    monkeypatch.setattr("hf_plr.features.cluster_space.allocate_array", allocate)
    features = center_features(draw(1.0, 0)[0])
    in_memory, in_file = (ClusterSpace("white", 0.1, folder, seed=0) for folder in (None, str(tmp_path)))
    mapped = in_file.map(features, Accelerator(cpu=True))
    assert torch.equal(mapped, in_memory.map(features, Accelerator(cpu=True)))
    assert folders == [str(tmp_path)]  # that in memory asks for none


@pytest.mark.parametrize("state", [{}, {"space.shrinkage": np.array([-1.0])}, {"space.shrinkage": np.array([1, 2])}])
def test_a_damaged_state_is_refused(state):
    with pytest.raises(ValueError, match="shrinkage"):
        ClusterSpace("auto", None, None, seed=0).load_state_dict(state)


def test_without_augmentation_nothing_is_tried(make_trainer):
    trainer = make_trainer(augmentation="none", num_train_epochs=1, save_strategy="no")
    assert trainer.describe_clusters().startswith("12 by KMeans in centered features")
    with pytest.raises(ValueError, match="cluster_space='white' needs whitening_shrinkage where nothing is augmented"):
        make_trainer(augmentation="none", cluster_space="white")
    assert make_trainer(augmentation="none", cluster_space="white", whitening_shrinkage=1.0)
