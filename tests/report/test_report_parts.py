"""Parts of the report: hand-worked changes, chosen samples, previews, the map and curves."""

from __future__ import annotations

import base64
import io
import sys
import types

import numpy as np
import pytest
import soundfile
from PIL import Image

from hf_plr.report.html.curves import metric_curves
from hf_plr.report.html.flows import cluster_flow
from hf_plr.report.html.previews import image_preview, sound_preview, spectrogram
from hf_plr.report.html.projection import layouts, pca
from hf_plr.report.html.sheets import (
    Snapshot,
    cluster_sheets,
    contact_members,
    map_positions,
    random_check,
    size_table,
    typical_members,
)
from hf_plr.report.html.unit_examples import unit_sheets

# ---- what changed ----------------------------------------------------------------------------------------------------

#             0 splits     1 and 2 merge       5 dies     noise
PREVIOUS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 5, 5, 5, -1, -1]
CURRENT = [0, 0, 3, 3, 1, 1, 1, 1, 1, 1, -1, -1, -1, 4, -1]


def test_changes_of_a_hand_worked_case():
    flow = cluster_flow(np.array(PREVIOUS), np.array(CURRENT))
    assert flow["counts"] == {"kept": 0, "split": 1, "merged": 1, "reshaped": 0, "born": 1, "died": 1}
    assert flow["left_out"] == 0
    merged, split, died, born = flow["events"]
    assert merged == {
        "kind": "merged",
        "samples": 6,
        "previous": [[1, 4], [2, 2]],
        "current": [[1, 6]],
        "new": [],
        "links": [[1, 1, 4], [2, 1, 2]],
    }
    assert (split["kind"], split["new"], split["previous"]) == ("split", [3], [[0, 4]])
    assert sorted(split["links"]) == [[0, 0, 2], [0, 3, 2]]
    assert (died["kind"], died["current"], died["links"]) == ("died", [], [[5, -1, 3]])
    assert (born["kind"], born["new"], born["links"]) == ("born", [4], [[-1, 4, 1]])


def test_links_add_up_to_the_clusters_and_numbers_of_the_largest_events_alone_are_told():
    rng = np.random.default_rng(0)
    previous, current = rng.integers(-1, 120, 5000), rng.integers(-1, 120, 5000)
    flow = cluster_flow(previous, current)
    changes = sum(count for kind, count in flow["counts"].items() if kind != "kept")
    told = [event for event in flow["events"] if event["kind"] != "kept"]
    assert len(told) + flow["left_out"] == changes
    assert len(told) == 24
    for event in flow["events"]:
        for side, end in (("previous", 0), ("current", 1)):
            for cluster, size in event[side]:
                assert sum(link[2] for link in event["links"] if link[end] == cluster) == size


def test_where_little_changed_what_was_kept_is_told():
    labels = np.repeat(np.arange(10), 5)
    flow = cluster_flow(labels, labels)
    assert [event["kind"] for event in flow["events"]] == ["kept"] * 6


# ---- which samples ---------------------------------------------------------------------------------------------------


def test_the_random_check_is_a_uniform_draw_of_what_is_in_clusters():
    labels = np.where(np.arange(2000) % 4 == 0, 7, -1)  # a quarter is in a cluster: too few among the first candidates
    times = np.zeros(2000)
    for seed in range(300):
        found = random_check(labels, seed)
        assert len(np.unique(found)) == len(found) == 120
        times[found] += 1
    assert times[labels == -1].sum() == 0
    inside = times[labels == 7]
    expected = 300 * 120 / 500
    assert abs(inside - expected).max() < 5 * np.sqrt(expected)
    assert inside.var() == pytest.approx(expected * (1 - 120 / 500), rel=0.3)


def test_the_random_check_takes_all_there_are_and_none_of_noise():
    assert sorted(random_check(np.array([0, -1, 3, 3]), 0).tolist()) == [0, 2, 3]
    assert len(random_check(np.full(9, -1), 0)) == 0


def test_dots_are_the_same_at_every_stage():
    np.testing.assert_array_equal(map_positions(9_000, 3), map_positions(9_000, 3))
    assert len(map_positions(9_000, 3)) == len(np.unique(map_positions(9_000, 3))) == 1500
    np.testing.assert_array_equal(map_positions(5, 3), np.arange(5))


def test_sheets_of_a_hand_worked_cluster():
    labels = np.array([4, 4, 4, 4, 4, 9, -1])
    previous = np.array([4, 4, 9, -1, 4, 9, 9])
    confidence = np.array([0.5, 0.9, 0.6, 0.7, 0.8, 1.0, 0.0])
    four, nine = cluster_sheets(Snapshot(3, labels, previous, confidence), new={9}, per_sheet=2)
    assert (four["id"], four["size"], four["most"], four["least"]) == (4, 5, [1, 4], [0, 2])
    assert sorted(four["changed"]) == [2, 3]
    assert four["n_changed"] == 2
    assert four["confidence"] == pytest.approx(0.7)
    assert (nine["id"], nine["most"], nine["least"], nine["changed"]) == (9, [5], [], [])
    assert "new" in nine["why"]
    assert typical_members(Snapshot(3, labels, previous, confidence), np.array([4, 9]), 2) == {4: [1, 4], 9: [5]}
    assert typical_members(Snapshot(3, labels, previous, confidence), np.array([])) == {}
    assert typical_members(Snapshot(3, labels, previous, confidence), np.array([4, 9]), 2, np.array([1, 5])) == {
        4: [4, 3]
    }


def test_typical_members_are_those_of_all_chunks_together(monkeypatch):
    rng = np.random.default_rng(0)
    snapshot = Snapshot(0, rng.integers(-1, 9, 400), None, np.round(rng.random(400), 1))
    whole = typical_members(snapshot, np.arange(9), 5, excluded=np.arange(0, 400, 3))
    for label, members in whole.items():
        others = np.setdiff1d(np.flatnonzero(snapshot.labels == label), [*members, *range(0, 400, 3)])
        assert min(snapshot.confidence[members]) >= max(snapshot.confidence[others])
        assert snapshot.confidence[members].tolist() == sorted(snapshot.confidence[members], reverse=True)
    monkeypatch.setattr(sys.modules["hf_plr.refinement.cooccurrence"], "CHUNK", 7)
    assert typical_members(snapshot, np.arange(9), 5, excluded=np.arange(0, 400, 3)) == whole


def test_every_cluster_has_equally_many_pictures_in_the_contact_sheet():
    labels = np.repeat(np.arange(40), np.arange(1, 41))
    snapshot = Snapshot(0, np.append(labels, -1), confidence=np.linspace(0, 1, 821))
    counts = {room: [len(members) for members in contact_members(snapshot, room).values()] for room in (9, 100, 999)}
    assert counts[9] == [1] * 9
    assert counts[100] == [1] + [2] * 39
    assert counts[999] == [1, 2, 3, 4, 5] + [6] * 35
    assert sorted(contact_members(snapshot, 9)) == list(range(31, 40))  # the largest
    assert contact_members(snapshot, 9)[39] == [819]
    assert contact_members(Snapshot(0, np.full(5, -1)), 9) == {}


def test_the_largest_the_newest_and_the_least_confident_clusters_have_sheets():
    sizes = np.arange(1, 101)
    labels = np.repeat(np.arange(100), sizes)
    confidence = np.where(labels == 3, 0.1, 0.9)
    sheets = cluster_sheets(Snapshot(1, labels, labels, confidence), new={5}, per_sheet=3, limit=20)
    assert len(sheets) == 20
    found = {sheet["id"]: sheet["why"] for sheet in sheets}
    assert found[99] == ["largest"]
    assert "new" in found[5]
    assert "least confident" in found[3]
    found_sizes = [sheet["size"] for sheet in sheets]
    assert found_sizes == sorted(found_sizes, reverse=True)
    assert all(not set(sheet["most"]) & set(sheet["least"]) for sheet in sheets)


def test_sizes_are_bounded_and_say_of_how_many():
    found = size_table(Snapshot(0, np.append(np.arange(2500), [-1, 0]), confidence=np.ones(2502)))
    assert len(found["clusters"]) == 2000
    assert (found["of"], found["noise"], found["samples"]) == (2500, 1, 2502)
    assert found["clusters"][0] == [0, 2, 1.0]
    assert found["median"] == 1
    halves = [size_table(Snapshot(0, np.repeat([0, 1], sizes)))["median"] for sizes in ([9, 10], [10, 11])]
    assert halves == [int(f"{median:.0f}") for median in (9.5, 10.5)]  # as the run's facts round it


def test_units_are_found_where_they_are_heard():
    labels = np.array([1, 1, 2, 2, 2, 2, 1, -1, 3, 3])
    bounds = np.array([0, 4, 8, 10])
    one, two, three = sorted(unit_sheets(labels, bounds, np.array([1.0, 1.0, 0.5])), key=lambda sheet: sheet["id"])
    assert (one["size"], one["most"]) == (3, ["0@0.00", "1@0.25"])
    assert two["most"][0] in ("0@0.25", "1@0.00")
    assert three["most"] == ["2@0.00"]


# ---- pictures, sounds, places, curves --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 224, 112), (1, 30, 50), (2, 20, 20), (4, 90, 90)])
def test_thumbnails(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(image_preview(pixels)["image"]))) as image:
        assert image.format == "JPEG"
        assert max(image.size) <= 64
        assert image.size[0] * shape[1] == pytest.approx(image.size[1] * shape[2], rel=0.05)


@pytest.mark.parametrize(("rate", "seconds"), [(16_000, 3.0), (8_000, 0.4), (44_100, 0.001), (8_000, 0.0)])
def test_clips(rate, seconds):
    tone = np.sin(2 * np.pi * 1000 * np.arange(round(rate * seconds)) / rate).astype(np.float32) * 0.01
    preview = sound_preview(tone if len(tone) else np.zeros(1, np.float32), rate)
    clip, clip_rate = soundfile.read(io.BytesIO(base64.b64decode(preview["audio"])))
    assert clip_rate <= 8_000
    assert len(clip) <= 1.25 * clip_rate
    if seconds >= 0.4:
        assert np.abs(clip).max() == pytest.approx(0.9, abs=0.05)
        power = np.abs(np.fft.rfft(clip))
        assert np.argmax(power) * clip_rate / len(clip) == pytest.approx(1000, abs=5)
    with Image.open(io.BytesIO(base64.b64decode(preview["image"]))) as image:
        assert image.size == (80, 48)


def test_a_clip_begins_where_it_is_told_to():
    waveform = np.concatenate([np.zeros(8000), np.ones(4000)]).astype(np.float32)
    clip, _ = soundfile.read(io.BytesIO(base64.b64decode(sound_preview(waveform, 8_000, 1.0)["audio"])))
    assert len(clip) == 4000
    assert clip.min() > 0.8


def test_a_spectrogram_has_high_frequencies_on_top():
    rate = 8_000
    shades = spectrogram(np.sin(2 * np.pi * 3500 * np.arange(rate) / rate))
    assert shades.max() == 15
    assert abs(int(shades.mean(axis=1).argmax()) - round(48 * (1 - 3500 / 4000))) <= 1


def test_places_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    for shape in ((80, 6), (9, 30)):
        features = rng.normal(size=shape) * np.arange(1, shape[1] + 1)
        expected = PCA(2, svd_solver="full").fit_transform(features)
        found = pca(features)
        signs = np.sign((expected * found).sum(axis=0))
        np.testing.assert_allclose(found * signs, expected, atol=1e-8)
    (name, places), *_ = layouts(features, 0).items()
    assert name == "PCA"
    assert np.abs(places).max() == pytest.approx(1.0)
    assert pca(np.ones((4, 1))).tolist() == [[0, 0]] * 4


def test_umap_is_taken_where_it_is_installed_and_wanted(monkeypatch, caplog):
    class UMAP:
        def __init__(self, random_state):
            self.seed = random_state

        def fit_transform(self, features):
            if self.seed == 13:
                raise RuntimeError("no luck")
            return features[:, :2]

    features = np.random.default_rng(0).normal(size=(30, 4))
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert list(layouts(features, 5)) == ["PCA"]
    assert list(layouts(features, 5, final=True)) == ["t-SNE", "UMAP", "PCA"]
    assert list(layouts(features, 13, final=True)) == ["t-SNE", "PCA"]
    assert "The report has no UMAP: no luck" in caplog.text
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(layouts(features, 5, final=True)) == ["t-SNE", "PCA"]


def test_t_sne_keeps_neighbours_together_and_is_the_same_again():
    rng = np.random.default_rng(0)
    group = np.arange(120) % 6
    features = (3 * rng.normal(size=(6, 20))[group] + rng.normal(size=(120, 20))).astype(np.float32)
    maps = layouts(features, 7, final=True)
    assert maps == layouts(features, 7, final=True)
    places = np.array(maps["t-SNE"])
    assert np.abs(places).max() == pytest.approx(1.0)
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(120)
    assert (group[distances.argmin(axis=1)] == group).mean() > 0.9


@pytest.mark.parametrize(
    ("features", "has_t_sne"),
    [
        (np.ones((40, 8)), False),
        (np.ones((40, 8)) + np.eye(40, 8), True),
        (np.repeat(np.eye(2), 20, axis=0), True),
        (np.linspace(0, 1, 40)[:, None] * np.ones(8), True),
        (np.random.default_rng(0).normal(size=(40, 3)) * 1e37, True),
        (np.random.default_rng(0).normal(size=(40, 3)) * 1e-30, True),
        (np.eye(9), False),
        (np.eye(10), True),
    ],
)
def test_collapsed_and_extreme_features_have_a_map(features, has_t_sne):
    maps = layouts(features.astype(np.float32), 0, final=True)
    assert ("t-SNE" in maps) == has_t_sne
    assert all(np.isfinite(places).all() for places in maps.values())


def test_known_scores_have_titles_and_descriptions():
    (curve,) = metric_curves([{"epoch": 0, "score/pseudo_label_nmi": 0.5}])
    assert (curve["title"], curve["low"], curve["high"]) == ("NMI of the labels", 0, 1)
    (curve,) = metric_curves([{"epoch": 0, "score/brand_new": 0.5}])
    assert curve["title"] == "brand new"


def test_curves_are_of_numbers_that_are_finite_known_or_not():
    log = [{"epoch": e, "step": e, "plr/brand_new": e / 7, "loss": float("nan") if e == 2 else 1.0} for e in range(900)]
    log += [{"epoch": 1.0, "eval_knn_accuracy": 0.5, "eval_runtime": 3.0, "train_loss": 1.0, "score/x": "text"}]
    found = {curve["name"]: curve for curve in metric_curves(log)}
    assert found.keys() == {"eval_knn_accuracy", "plr/brand_new", "loss"}
    assert next(iter(found)) == "eval_knn_accuracy"
    assert len(found["plr/brand_new"]["points"]) == 300
    assert found["plr/brand_new"]["title"] == "brand new"
    assert found["plr/brand_new"]["points"][-1] == [899, pytest.approx(899 / 7, rel=1e-5)]
    assert 2 not in [epoch for epoch, _ in found["loss"]["points"]]
