"""The report of whole runs, its budgets, damaged files and the command."""

from __future__ import annotations

import base64
import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.run_lines import make_history, write_run
from helpers.runs import StopAt, assert_same_weights, logged, weights

from hf_plr.cli import main
from hf_plr.recipe_tools.output_folder import OutputArguments, prepare_output_dir
from hf_plr.report.html import render as page
from hf_plr.report.html import reporter
from hf_plr.report.html.report_file import read_report
from hf_plr.report.html.sheets import Snapshot
from hf_plr.report.html.tree_facts import describe_tree
from hf_plr.report.metrics_file import write_metrics
from hf_plr.report.tree_file import read_levels, read_tree

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
    typical = [key for members in data["sheets"]["typical"].values() for key in members]
    assert typical
    assert not set(typical) & set(data["sheets"]["random"])  # something to compare the check with
    for row, label, previous, confidence, _ in data["samples"].values():
        assert row >= 1000
        assert (label, previous) == tuple(labels.loc[row, ["label", "previous_label"]])
        assert confidence == pytest.approx(labels.loc[row, "confidence"], abs=1e-4)
    assert data["media"].keys() == data["samples"].keys()
    assert data["sheets"]["contact"].keys() == {str(label) for label in labels["label"].unique()}
    for label, members in data["sheets"]["contact"].items():
        assert {data["samples"][key][1] for key in members} == {int(label)}
    assert len(data["map"]["positions"]) == 203
    assert {name: len(places) for name, places in data["map"]["layouts"].items()} == {"t-SNE": 203, "PCA": 203}
    assert during["map"]["layouts"].keys() == {"PCA"}
    for shown in (during, data):
        clusters = {cluster: size for cluster, size, _ in shown["sizes"]["clusters"]}
        assert dict(zip(shown["tree"]["labels"], shown["tree"]["sizes"], strict=True)) == clusters
        assert len(shown["tree"]["heights"]) == len(clusters) - 1
    tree = read_tree(tmp_path / "out")
    assert data["tree"] == describe_tree(tree, read_levels(tmp_path / "out"))  # of the weights after the last epoch
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


def test_random_numbers_that_a_report_draws_are_its_own(make_trainer, monkeypatch):
    trainer = make_trainer(num_train_epochs=1)
    drawn = []

    def draw(*_):
        drawn.append((np.random.random(), torch.rand(()).item()))  # noqa: NPY002
        return {}

    monkeypatch.setattr(reporter, "write_report", draw)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    trainer.write_report()
    trainer.write_report()
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_marks_are_kept_for_the_same_labels_of_any_integer_type(make_trainer):
    reporter = make_trainer().reporter
    labels, ids = np.arange(203) % 12, []
    for values in (labels.astype(np.int64), labels.astype(np.int32), labels.astype(">i8"), labels[::-1]):
        reporter.note_stage(Snapshot(0, values, None, np.ones(203)))
        ids.append(reporter.data(make_trainer().summary(), [])["labels_id"])
    assert ids[0] == ids[1] == ids[2] != ids[3]


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
    assert data["sheets"]["contact"] == {str(sheet["id"]): sheet["most"] for sheet in data["sheets"]["clusters"]}
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
    for name in ("sheets", "sizes", "samples", "media", "map", "tree"):
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
    assert after["tree"] is not None
    for name in ("sheets", "sizes", "map", "media", "tree"):
        assert after[name] == before[name]


def test_history_is_cut_at_the_epoch_that_is_trained_again(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    labels = trainer.pseudo_labels
    trainer.reporter.resume(Snapshot(1, labels.labels, labels.previous_labels, labels.confidence))
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
    trainer.reporter.resume(Snapshot(0, labels.labels, None, labels.confidence))
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
        (lambda data: data.update(tree={"labels": [1], "sizes": ["1"]}), "'tree.sizes[0]' is of another kind"),
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


def test_the_command_replaces_no_file_that_is_not_its_own_page(tmp_path, capsys):
    out = write_run(tmp_path / "out", make_history(1, 3))
    page, other = out / "report.html", tmp_path / "mine.html"
    other.write_text("mine")
    for output in (page, out / ".." / "out" / "report.html"):
        assert main(["report", str(out), "--output", str(output)]) == 0
    assert main(["report", str(out), "--output", str(other)]) == 2
    assert "mine.html exists already: give --overwrite to replace it" in capsys.readouterr().err
    assert other.read_text() == "mine"
    metrics = (out / "metrics.json").read_bytes()
    assert main(["report", str(out), "--output", str(out / "metrics.json"), "--overwrite"]) == 2
    assert "metrics.json: the page is written as .html; name such a file" in capsys.readouterr().err
    assert (out / "metrics.json").read_bytes() == metrics
    assert main(["report", str(out), "--output", str(other), "--overwrite"]) == 0
    assert other.read_bytes() == page.read_bytes()


def test_a_replaced_run_leaves_no_report(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    assert list((tmp_path / "out").glob("report*"))
    prepare_output_dir(OutputArguments(output_dir=str(tmp_path / "out"), overwrite=True), is_main_process=True)
    assert not list((tmp_path / "out").glob("report*"))


def test_report_is_an_argument_that_is_checked(make_trainer):
    with pytest.raises(ValueError, match="report='never' is unknown: use one of epoch, end, no"):
        make_trainer(report="never")
    assert make_trainer(report="no").reporter.when == "no"
