"""What the report shows: hand-worked changes, samples, budgets, damaged files, and a run that does not notice it."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import sys
import types

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers.runs import StopAt, assert_same_weights, logged, weights
from PIL import Image

from hf_plr import PLRTrainer
from hf_plr.cli import main
from hf_plr.recipe_tools.running import prepare_output_dir
from hf_plr.report.html import render as page
from hf_plr.report.html.figures import curves
from hf_plr.report.html.flows import cluster_flow
from hf_plr.report.html.previews import image_preview, sound_preview, spectrogram
from hf_plr.report.html.projection import layouts, pca
from hf_plr.report.html.report_file import read_report
from hf_plr.report.html.sheets import Snapshot, cluster_sheets, map_positions, random_check, sizes_of, typical_members
from hf_plr.report.html.unit_examples import unit_sheets
from hf_plr.report.outputs import write_metrics

HOSTILE = "</script><img src=x onerror=alert(1)><!-- "


def read(folder):
    return json.loads((folder / "report.json").read_text())


def embedded(html):
    """The data in a page, as a browser finds them."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


@pytest.fixture
def quietly(caplog):
    """Fails where the report warned of something."""
    yield
    assert [record.message for record in caplog.records if record.name.startswith("hf_plr.report")] == []


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
    found = sizes_of(Snapshot(0, np.append(np.arange(2500), [-1, 0]), confidence=np.ones(2502)))
    assert len(found["clusters"]) == 2000
    assert (found["of"], found["noise"], found["samples"]) == (2500, 1, 2502)
    assert found["clusters"][0] == [0, 2, 1.0]


def test_units_are_found_where_they_are_heard():
    labels = np.array([1, 1, 2, 2, 2, 2, 1, -1, 3, 3])
    bounds = np.array([0, 4, 8, 10])
    one, two, three = sorted(unit_sheets(labels, bounds, np.array([1.0, 1.0, 0.5])), key=lambda sheet: sheet["id"])
    assert (one["size"], one["most"]) == (3, ["0@0.00", "1@0.25"])
    assert two["most"][0] in ("0@0.25", "1@0.00")
    assert three["most"] == ["2@0.00"]


# ---- pictures, sounds, places, curves --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 224, 112), (1, 30, 50)])
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
    assert layouts(features, 5).keys() == {"PCA"}
    assert layouts(features, 5, with_umap=True).keys() == {"PCA", "UMAP"}
    assert layouts(features, 13, with_umap=True).keys() == {"PCA"}
    assert "The report has no UMAP: no luck" in caplog.text
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert layouts(features, 5, with_umap=True).keys() == {"PCA"}


def test_curves_are_of_numbers_that_are_finite_known_or_not():
    log = [{"epoch": e, "step": e, "plr/brand_new": e / 7, "loss": float("nan") if e == 2 else 1.0} for e in range(900)]
    log += [{"epoch": 1.0, "eval_knn_accuracy": 0.5, "eval_runtime": 3.0, "train_loss": 1.0, "score/x": "text"}]
    found = {curve["name"]: curve for curve in curves(log)}
    assert found.keys() == {"eval_knn_accuracy", "plr/brand_new", "loss"}
    assert next(iter(found)) == "eval_knn_accuracy"
    assert len(found["plr/brand_new"]["points"]) == 300
    assert found["plr/brand_new"]["title"] == "brand new"
    assert found["plr/brand_new"]["points"][-1] == [899, pytest.approx(899 / 7, rel=1e-5)]
    assert 2 not in [epoch for epoch, _ in found["loss"]["points"]]


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quietly")
def test_a_run_leaves_everything_that_the_page_shows(make_trainer, tmp_path):
    trainer = make_trainer({})
    trainer.score("before")
    trainer.train()
    during = read(tmp_path / "out")
    assert not during["run"]["finished"]
    trainer.score("after")
    rows = np.arange(len(trainer.train_dataset)) + 1000
    trainer.save_labels(str(tmp_path / "out"), rows)
    trainer.write_report(rows)
    data = read_report(tmp_path / "out" / "report.json")
    assert data["run"]["finished"]
    assert [stage["epoch"] for stage in data["stages"]] == [0, 1, 2]
    assert [stage["flow"] is None for stage in data["stages"]] == [True, False, False]
    assert data["scores"] == trainer.scores
    labels = pd.read_parquet(tmp_path / "out" / "pseudo_labels.parquet").set_index("index")
    assert len(data["sheets"]["random"]) == 120
    for row, label, previous, confidence, _ in data["samples"].values():
        assert row >= 1000
        assert (label, previous) == tuple(labels.loc[row, ["label", "previous_label"]])
        assert confidence == pytest.approx(labels.loc[row, "confidence"], abs=1e-4)
    assert data["media"].keys() == data["samples"].keys()
    assert len(data["map"]["positions"]) == len(data["map"]["layouts"]["PCA"]) == 203
    sizes = labels["label"].value_counts()
    assert {cluster: size for cluster, size, _ in data["sizes"]["clusters"]} == sizes.to_dict()
    for sheet in data["sheets"]["clusters"]:
        assert sheet["size"] == sizes[sheet["id"]]
        assert {data["samples"][key][1] for name in ("most", "least", "changed") for key in sheet[name]} == {
            sheet["id"]
        }
    assert {"loss", "plr/agreement_ari", "plr/clusters"} <= {curve["name"] for curve in data["curves"]}
    html = (tmp_path / "out" / "report.html").read_text()
    assert embedded(html) == data
    assert len(html.encode()) < 20 * 2**20
    assert not re.search(r"(src|href)=\"(https?:)?//", html)


@pytest.mark.parametrize("when", ["end", "no"])
@pytest.mark.usefixtures("quietly")
def test_training_does_not_notice_the_report(make_trainer, tmp_path, when):
    runs = []
    for report, folder in (("epoch", "a"), (when, "b")):
        trainer = make_trainer(report=report, output_dir=str(tmp_path / folder), num_train_epochs=2)
        trainer.train()
        runs.append(trainer)
    assert_same_weights(weights(runs[0]), weights(runs[1]))
    assert logged(runs[0]) == logged(runs[1])
    assert not (tmp_path / "b" / "report.html").exists()
    runs[1].write_report()
    assert (tmp_path / "b" / "report.html").exists() == (when == "end")
    if when == "end":
        assert len(read(tmp_path / "b")["stages"]) == 2


def test_without_labels_nothing_is_said_of_accuracy(make_trainer, some_digits, tmp_path):
    trainer = make_trainer({"train_dataset": some_digits.remove_columns("label")}, num_train_epochs=1)
    trainer.train()
    trainer.write_report()
    data = read(tmp_path / "out")
    assert data["scores"] == {}
    assert not any("accuracy" in curve["name"] for curve in data["curves"])
    assert len(data["sheets"]["random"]) == 120


@pytest.mark.usefixtures("quietly")
def test_units_have_sizes_changes_and_players(make_sound_trainer, tmp_path):
    trainer = make_sound_trainer(num_train_epochs=2)
    trainer.train()
    trainer.save_labels(str(tmp_path / "out"))
    trainer.write_report()
    data = read(tmp_path / "out")
    assert data["run"]["stage"] == "round"
    assert [stage["epoch"] for stage in data["stages"]] == [0, 1, 2]
    assert data["map"] is None
    assert data["sizes"]["samples"] == len(trainer.frame_units.labels)
    keys = [key for sheet in data["sheets"]["clusters"] for key in sheet["most"]]
    assert set(keys) == data["media"].keys()
    assert all({"image", "audio"} == preview.keys() for preview in data["media"].values())


@pytest.mark.usefixtures("quietly")
def test_a_resumed_run_takes_up_the_history_of_its_checkpoint(make_trainer, tmp_path):
    whole = make_trainer(output_dir=str(tmp_path / "whole"), num_train_epochs=4)
    whole.train()
    whole.write_report()
    stopped = make_trainer(num_train_epochs=4)
    stopped.train()  # to its end; what follows goes on from its second epoch
    resumed = make_trainer(num_train_epochs=4, save_total_limit=None)
    first = sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    resumed.train(resume_from_checkpoint=str(first))
    resumed.write_report()
    expected, found = read(tmp_path / "whole"), read(tmp_path / "out")
    assert [stage["epoch"] for stage in found["stages"]] == [0, 1, 2, 3]
    assert found["stages"] == expected["stages"]
    for name in ("sheets", "sizes", "samples", "media", "map"):
        assert found[name] == expected[name]


def test_a_run_that_goes_on_in_its_last_epoch_shows_all_it_had(make_trainer, tmp_path):
    trainer = make_trainer({"callbacks": [StopAt(9)]}, num_train_epochs=2)
    trainer.train()
    before = read(tmp_path / "out")
    trainer = make_trainer(num_train_epochs=2)
    trainer.train(resume_from_checkpoint=True)
    trainer.write_report()
    after = read(tmp_path / "out")
    assert after["stages"] == before["stages"]
    assert len(after["stages"]) == 2
    for name in ("sheets", "sizes", "map", "media"):
        assert after[name] == before[name]


def test_history_is_cut_at_the_epoch_that_is_trained_again(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    labels = trainer.pseudo_labels
    trainer.reporter.go_on(Snapshot(1, labels.labels, labels.previous_labels, labels.confidence))
    assert [stage["epoch"] for stage in trainer.reporter._stages] == [0, 1]


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_report_that_cannot_be_written_is_warned_of(make_trainer, tmp_path, caplog, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_plr.report.html.report_file.write_text", full)
    trainer = make_trainer(num_train_epochs=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
        trainer.write_report()
    assert "The report is not written: OSError: [Errno 28] No space left on device" in caplog.text
    assert not list((tmp_path / "out").glob("report*"))


def test_samples_that_cannot_be_decoded_any_more_are_left_out(make_trainer, tmp_path, monkeypatch, caplog):
    from hf_plr.data.image_store import UnreadableImage

    trainer = make_trainer(num_train_epochs=1, report="end")
    trainer.train()
    decode = type(trainer.train_dataset).__getitem__

    def failing(store, position):
        if position % 2:
            raise UnreadableImage(f"image {position} cannot be read")
        return decode(store, position)

    monkeypatch.setattr(type(trainer.train_dataset), "__getitem__", failing)
    trainer.write_report()
    data = read(tmp_path / "out")
    assert data["media"]
    assert all(int(key) % 2 == 0 for key in data["media"])
    assert "The report shows no image" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"format": "x"}', b'{"format": "hf-plr-report-1"}', b"\xff\xfe"]
)
def test_a_damaged_file_is_named_by_the_command_and_warned_of_in_training(
    make_trainer, tmp_path, capsys, caplog, content
):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    (tmp_path / "out" / "report.json").write_bytes(content)
    assert main(["report", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "report.json cannot be read as the data of a report" in error
    labels = trainer.pseudo_labels
    trainer.reporter.go_on(Snapshot(0, labels.labels, None, labels.confidence))
    assert "report.json cannot be read as the data of a report" in caplog.text
    assert "begins anew" in caplog.text


def test_what_is_off_in_a_report_is_named(make_trainer, tmp_path, capsys):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    whole = read(tmp_path / "out")
    for damage, where in (
        (lambda data: data["run"].pop("samples"), "'run.samples' is missing"),
        (lambda data: data["sheets"]["clusters"][1].update(most=3), "'sheets.clusters[1].most' is of another kind"),
        (lambda data: data["media"].update(x={"image": 5}), "'media.x.image' is of another kind"),
    ):
        data = json.loads(json.dumps(whole))
        damage(data)
        (tmp_path / "out" / "report.json").write_text(json.dumps(data))
        assert main(["report", str(tmp_path / "out")]) == 2
        assert where in capsys.readouterr().err


# ---- the page and the command ----------------------------------------------------------------------------------------


def small_data(**changes):
    return {"title": "x", "media": {}, **changes}


def test_names_never_become_markup():
    html = page.render(small_data(title=HOSTILE, settings=[[HOSTILE, HOSTILE]]))
    assert HOSTILE not in html
    assert embedded(html)["title"] == HOSTILE
    assert html.count("<script") == page.render(small_data()).count("<script")
    assert "<img" not in html.split('id="data">')[1].split("</script>")[0]
    assert page.render(small_data(title="{{script}}{{data}}")).count('"use strict"') == 1


def test_the_policy_names_the_scripts_and_styles_that_are_there():
    import hashlib

    html = page.render(small_data())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; ")
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        source = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[-1]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_the_page_is_never_too_large():
    media = {str(i): {"image": "A" * 100_000} for i in range(300)}
    html = page.render(small_data(media=media))
    assert len(html.encode()) <= page.LIMIT
    kept = embedded(html)["media"]
    assert 150 < len(kept) < 300
    assert list(kept) == [str(i) for i in range(len(kept))]  # the first ones, which matter most
    assert len(html.encode()) > page.LIMIT - 300_000


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        page.render(small_data(x=float("nan")))


def test_the_command_renders_again_with_the_last_scores(make_trainer, tmp_path, capsys):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    trainer.write_report()
    trainer.scores = {"after": {"knn_accuracy": 0.75}}
    write_metrics(tmp_path / "out" / "metrics.json", trainer.summary(), 1.0)
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "other.html")]) == 0
    assert f"Wrote {tmp_path / 'other.html'}" in capsys.readouterr().out
    assert embedded((tmp_path / "other.html").read_text())["scores"] == {"after": {"knn_accuracy": 0.75}}
    assert embedded((tmp_path / "out" / "report.html").read_text())["scores"] == {}
    assert main(["report", str(tmp_path / "out")]) == 0
    assert embedded((tmp_path / "out" / "report.html").read_text())["scores"] == {"after": {"knn_accuracy": 0.75}}


def test_the_command_on_a_run_of_an_older_version(make_trainer, tmp_path, capsys):
    trainer = make_trainer(report="no", num_train_epochs=2)
    trainer.train()
    out = tmp_path / "out"
    assert main(["report", str(out)]) == 2
    assert "holds no run: neither report.json nor metrics.json" in capsys.readouterr().err
    trainer.save_labels(str(out))
    write_metrics(out / "metrics.json", trainer.summary(), 1.0)
    assert main(["report", str(out)]) == 0
    data = embedded((out / "report.html").read_text())
    assert "left no report.json" in data["note"]
    assert data["sizes"]["samples"] == 203
    assert {"plr/clusters", "plr/agreement_ari"} <= {curve["name"] for curve in data["curves"]}
    (out / "metrics.json").write_text("{}")
    assert main(["report", str(out)]) == 2
    assert "metrics.json cannot be read as the metrics of a run" in capsys.readouterr().err


def test_a_replaced_run_leaves_no_report(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    trainer.args.overwrite, trainer.args.resume_from_checkpoint = True, None
    prepare_output_dir(trainer.args, is_main_process=True)
    assert not list((tmp_path / "out").glob("report*"))


def test_report_is_an_argument_that_is_checked(make_trainer):
    with pytest.raises(ValueError, match="report='never' is unknown: use one of epoch, end, no"):
        make_trainer(report="never")
    assert isinstance(make_trainer(report="no"), PLRTrainer)
