"""Names and history as a page shows them."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

import pytest
from helpers.run_lines import make_history, write_run
from helpers.runs import StopAt

from hf_plr.recipe_tools.output_folder import OutputArguments, prepare_output_dir
from hf_plr.report.html.earlier_runs import render_again, report_of
from hf_plr.report.html.folder_facts import MAX_CLUSTERS, MAX_EVENTS, MAX_RUNS, collect_folder_facts
from hf_plr.report.html.report_file import read_report
from hf_plr.report.names import write_cluster_names
from hf_plr.report.run_history import RunEvents, RunHistory


def test_a_folder_without_either_has_no_names_and_no_history(tmp_path):
    assert collect_folder_facts(tmp_path) == {"names": {}, "history": None}


def test_sizes_changes_and_audits_of_every_run(tmp_path):
    history = make_history(3, 6)
    history.write(tmp_path)
    write_cluster_names(tmp_path, {2: "crack"})
    facts = collect_folder_facts(tmp_path)
    json.dumps(facts, allow_nan=False)
    assert facts["names"] == {"2": "crack"}
    shown = facts["history"]
    assert [run["name"] for run in shown["runs"]] == ["line-3-january", "february", "march"]
    sizes = dict(map(tuple, ((label, tuple(row)) for label, row in shown["clusters"])))
    assert sizes.keys() == {label for run in history.runs for label in run.clusters}
    assert shown["of"] == len(sizes)
    for i, run in enumerate(history.runs):
        assert {label: row[i] for label, row in sizes.items() if row[i]} == run.clusters
        assert shown["runs"][i]["clusters"] == len(run.clusters)
    first, second, third = shown["runs"]
    assert (first["data"], first["counts"], first["changes"]) == (None, None, [])
    events = history.runs[1].events
    assert second["counts"] == events.counts()
    assert second["changes"][:2] == [["born", [], [events.born[0]]], ["died", [events.died[0]], []]]
    assert ["split", [events.split[0][0]], list(events.split[0][1])] in second["changes"]
    assert second["audit"] is None
    assert third["audit"]["rate"] == 6 / 120
    assert shown["change"]["since"] == "line-3-january"
    assert shown["change"]["low"] < shown["change"]["difference"] == 6 / 120 - 9 / 120 < shown["change"]["high"]


def test_the_page_of_a_long_line_is_bounded_and_says_so(tmp_path):
    first = make_history(1, 500).runs[0]
    events = RunEvents(born=tuple(range(300)))
    runs = [dataclasses.replace(first, id=f"id{i}", events=events if i else None) for i in range(50)]
    RunHistory(501, tuple(runs)).write(tmp_path)
    shown = collect_folder_facts(tmp_path)["history"]
    assert (len(shown["runs"]), shown["left_out"]) == (MAX_RUNS, 30)
    assert (len(shown["clusters"]), shown["of"]) == (MAX_CLUSTERS, 500)
    largest = sorted(first.clusters.values(), reverse=True)[:MAX_CLUSTERS]
    assert [row[0] for _, row in shown["clusters"]] == largest
    assert (len(shown["runs"][0]["changes"]), shown["runs"][0]["changes_left_out"]) == (MAX_EVENTS, 240)
    assert len(json.dumps(shown)) < 250_000


def test_a_page_that_is_rendered_again_has_the_names_and_the_history_of_now(tmp_path):
    out = write_run(tmp_path / "out", make_history(2, 6))
    stored = json.loads((out / "report.json").read_text())
    assert (stored["names"], len(stored["history"]["runs"])) == ({}, 2)
    write_cluster_names(out, {1: "crack"})
    make_history(3, 6).write(out)
    data = report_of(out)
    assert (data["names"], len(data["history"]["runs"])) == ({"1": "crack"}, 3)
    assert render_again(out) == out / "report.html"
    assert '"names":{"1":"crack"}' in (out / "report.html").read_text()
    (out / "cluster_names.json").unlink()
    (out / "run_history.json").unlink()
    assert (report_of(out)["names"], report_of(out)["history"]) == ({}, None)


def test_a_run_writes_them_into_its_report_and_warns_of_damaged_ones(make_trainer, tmp_path, caplog):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    out = tmp_path / "out"
    write_cluster_names(out, {1: "crack"})
    make_history(2, 6).write(out)
    trainer.write_report()
    data = json.loads((out / "report.json").read_text())
    assert (data["names"], len(data["history"]["runs"])) == ({"1": "crack"}, 2)
    page = (out / "report.html").read_bytes()
    (out / "cluster_names.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        trainer.write_report()
    assert re.search(r"The report is not written: ValueError: .*cluster_names.json cannot be read", caplog.text)
    assert (out / "report.html").read_bytes() == page


def test_the_page_of_a_folder_that_was_moved_tells_where_it_is(tmp_path):
    out = write_run(tmp_path / "out", make_history(1, 6))
    before = read_report(out / "report.json")
    moved = out.rename(tmp_path / "dents in steel")
    render_again(moved)
    page = (moved / "report.html").read_text()
    assert str(out) not in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    assert (data["title"], data["run"]["output_dir"]) == ("dents in steel", str(moved))
    assert data["labels_id"] == "out"  # marks of older pages are kept by their title
    assert data["run"] == before["run"] | {"output_dir": str(moved)}
    labels_id = {"labels_id": "a1"}
    (moved / "report.json").write_text(json.dumps(before | labels_id))
    assert report_of(moved)["labels_id"] == "a1"


def test_a_replaced_run_leaves_neither(tmp_path):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    make_history(2, 6).write(out)
    write_cluster_names(out, {1: "crack"})
    prepare_output_dir(OutputArguments(output_dir=str(out)), is_main_process=True)
    assert {path.name for path in out.iterdir()} == {"cluster_names.json", "run_history.json"}
    prepare_output_dir(OutputArguments(output_dir=str(out), overwrite=True), is_main_process=True)
    assert list(out.iterdir()) == []


def test_a_run_that_begins_anew_drops_them_and_one_that_resumes_keeps_them(make_trainer, tmp_path, caplog):
    out = tmp_path / "out"
    trainer = make_trainer({"callbacks": [StopAt(3)]}, num_train_epochs=2)
    trainer.train()
    make_history(2, 6).write(out)
    write_cluster_names(out, {1: "crack"})
    for name in ("metrics.json", "tree.json", "pseudo_labels.parquet"):
        (out / name).write_text("{}")
    with caplog.at_level(logging.WARNING):
        make_trainer(num_train_epochs=2).train(resume_from_checkpoint=True)
        assert (out / "cluster_names.json").exists()
        assert (out / "run_history.json").exists()
        assert "earlier run removed" not in caplog.text
        make_trainer(num_train_epochs=1).train()
    assert not (out / "cluster_names.json").exists()
    assert not (out / "run_history.json").exists()
    assert not (out / "metrics.json").exists()  # commands would read settings from it that are not of these weights
    assert not (out / "tree.json").exists()
    assert (out / "pseudo_labels.parquet").exists()  # until new ones are saved
    assert "of an earlier run removed" in caplog.text


@pytest.mark.parametrize("written", ["2026-11-01T10:00:00Z", "2026-11-01T10:00:00.5", "2026-11-01", "yesterday"])
def test_times_are_for_people(tmp_path, written):
    first = dataclasses.replace(make_history(1, 6).runs[0], written=written)
    RunHistory(99, (first,)).write(tmp_path)
    shown = collect_folder_facts(tmp_path)["history"]["runs"][0]["written"]
    assert shown == "yesterday" if written == "yesterday" else re.fullmatch(r"2026-1[01]-\d\d \d\d:\d\d", shown)
