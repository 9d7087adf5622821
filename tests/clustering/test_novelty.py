"""Known clusters: which one is nearest to a new sample, and whether the sample fits any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from hf_plr.clustering.novelty import FORMAT, REFERENCES, KnownClusters, draw_references

WIDTH = 16
SPREADS = (0.03, 0.05, 0.08, 0.12)


def make_samples(n: int, seed: int, spreads: tuple[float, ...] = SPREADS) -> tuple[torch.Tensor, np.ndarray]:
    """Features of clusters of different spread, around the same centers for every seed, and the clusters."""
    centers = F.normalize(torch.from_numpy(np.random.default_rng(0).standard_normal((len(spreads) + 1, WIDTH))), dim=1)
    rng = np.random.default_rng(seed + 1)
    cluster = rng.integers(len(spreads), size=n)
    noise = rng.standard_normal((n, WIDTH)) * np.array(spreads)[cluster][:, None]
    return (centers[cluster] + torch.from_numpy(noise)).float() + 3.0, cluster


def make_strange(n: int) -> torch.Tensor:
    """Features (n, WIDTH) of no cluster, the same each time."""
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(7))


def fit(features: torch.Tensor, cluster: np.ndarray, labels: np.ndarray | None = None) -> KnownClusters:
    ids = np.unique(cluster)
    center = features.mean(dim=0)
    rows = F.normalize(features - center, dim=1)
    prototypes = F.normalize(torch.stack([rows[torch.from_numpy(cluster == i)].mean(dim=0) for i in ids]), dim=1)
    sizes = np.bincount(cluster)[ids]
    return KnownClusters.fit(draw_references(features), center, prototypes, ids if labels is None else labels, sizes)


@pytest.fixture(scope="module")
def known() -> KnownClusters:
    return fit(*make_samples(2000, seed=0), labels=np.array([2, 5, 7, 11]))


def test_samples_get_their_cluster_and_the_second_nearest(known):
    features, cluster = make_samples(500, seed=1)
    found = known.assign(features)
    assert (found.label == np.array([2, 5, 7, 11])[cluster]).mean() > 0.99
    assert (found.similarity >= found.second_similarity).all()
    assert (found.label != found.second_label).all()
    directions = F.normalize(features - known.center, dim=1)
    cosines = np.sort((directions @ known.prototypes.T).numpy(), axis=1)
    np.testing.assert_allclose(found.similarity, cosines[:, -1], atol=1e-5)
    np.testing.assert_allclose(found.second_similarity, cosines[:, -2], atol=1e-5)


def test_known_samples_are_flagged_as_often_as_promised(known):
    features, _ = make_samples(8000, seed=2)
    p_value = known.assign(features).p_value
    for rate in (0.01, 0.05, 0.2):
        assert rate / 2 < (p_value <= rate).mean() < rate * 2


def test_samples_of_no_known_cluster_are_novel(known):
    rng = np.random.default_rng(5)
    other = torch.from_numpy(F.normalize(torch.from_numpy(rng.standard_normal((3, WIDTH))), dim=1).numpy())
    strange = other[torch.arange(300) % 3] + 0.05 * torch.from_numpy(rng.standard_normal((300, WIDTH))) + 3.0
    found = known.assign(strange.float())
    assert (found.p_value <= 0.01).mean() > 0.8
    assert found.novelty.min() > np.quantile(known.assign(make_samples(500, seed=3)[0]).novelty, 0.5)


def test_p_values_fall_as_novelty_rises(known):
    found = known.assign(torch.cat([make_samples(300, seed=4)[0], make_strange(50)]))
    order = np.argsort(found.novelty)
    assert (np.diff(found.p_value[order]) <= 0).all()
    assert 0 < found.p_value.min() <= found.p_value.max() <= 1


def test_a_file_gives_the_same_answers(known, tmp_path):
    path = tmp_path / "known.safetensors"
    known.save(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    features, _ = make_samples(100, seed=6)
    before, after = known.assign(features), KnownClusters.load(path).assign(features)
    for name, values in vars(before).items():
        np.testing.assert_array_equal(values, getattr(after, name), err_msg=name)


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_answers_do_not_depend_on_the_scale_of_features(known, tmp_path, scale):
    features, cluster = make_samples(2000, seed=0)
    path = tmp_path / "known.safetensors"
    fit(features * scale, cluster, labels=np.array([2, 5, 7, 11])).save(path)
    new = torch.cat([make_samples(100, seed=6)[0], 3.0 + make_strange(20)])
    expected, found = known.assign(new), KnownClusters.load(path).assign(new * scale)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_allclose(found.p_value, expected.p_value, atol=0.01)


def test_a_single_cluster_has_no_second():
    known = fit(make_samples(50, seed=0)[0], np.zeros(50, np.int64))
    found = known.assign(make_samples(5, seed=1)[0])
    assert (found.second_label == -1).all()
    assert np.isnan(found.second_similarity).all()


def test_no_samples_are_assigned_to_nothing(known):
    found = known.assign(torch.empty(0, WIDTH))
    assert {len(values) for values in vars(found).values()} == {0}


def test_equal_samples_have_finite_scores():
    features = torch.ones(20, WIDTH)
    features[10:] = -1.0
    found = fit(features, np.arange(20) // 10).assign(torch.cat([features, 9.0 * make_strange(3)]))
    assert np.isfinite(found.novelty).all()
    assert (found.p_value[20:] < 0.05).all()


def test_a_file_of_equal_samples_can_be_read(tmp_path):
    features = torch.ones(20, WIDTH)
    features[18:] = -1.0  # most are alike, so that distances have no spread
    fit(features, np.arange(20) // 18).save(tmp_path / "known.safetensors")
    found = KnownClusters.load(tmp_path / "known.safetensors").assign(features[:3])
    assert (found.p_value > 0.05).all()


def test_few_references_are_drawn_of_many_samples():
    rows = torch.arange(2.0 * REFERENCES)[:, None].expand(-1, 2)
    drawn = draw_references(rows)
    assert drawn.shape == (REFERENCES, 2)
    assert (drawn[1:, 0] > drawn[:-1, 0]).all()
    assert drawn[:, 0].mean() == pytest.approx(REFERENCES, rel=0.05)


def test_without_clusters_or_samples_nothing_is_known():
    rows = F.normalize(torch.randn(10, 4), dim=1)
    none = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="0 clusters and 10 samples"):
        KnownClusters.fit(rows, torch.zeros(4), torch.empty(0, 4), none, none)


def test_other_widths_are_refused(known):
    with pytest.raises(ValueError, match="a width of 16"):
        known.assign(torch.zeros(2, 8))


@pytest.mark.parametrize("name", ["center", "prototypes", "references", "whitening", "known_scores", "sizes", "labels"])
def test_damaged_files_are_named(known, tmp_path, name):
    path = tmp_path / "known.safetensors"
    known.save(path)
    arrays = load_file(path)
    arrays[name] = arrays[name][:-1]
    save_file(arrays, path, metadata={"format": FORMAT})
    with pytest.raises(ValueError, match=r"known.safetensors: '\w+' holds"):
        KnownClusters.load(path)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "known.safetensors"
    with pytest.raises(FileNotFoundError, match=r"known.safetensors does not exist"):
        KnownClusters.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"known.safetensors cannot be read"):
        KnownClusters.load(path)


def test_a_sample_as_novel_as_all_known_ones_has_a_p_value_of_one():
    features = torch.zeros(50, 4)
    center, prototypes = torch.zeros(4), torch.eye(4)[:1]
    known = KnownClusters.fit(features, center, prototypes, np.array([0]), np.array([50]))
    assert (known.assign(features).p_value == 1).all()
