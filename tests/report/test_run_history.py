"""The history of runs in an output folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_plr.refinement import cooccurrence
from hf_plr.refinement.correspondence import Overlaps, find_cluster_events
from hf_plr.report.run_history import (
    HISTORY_FILE,
    DataChange,
    RunAudit,
    RunEntry,
    RunEvents,
    RunHistory,
)

FIRST = RunEntry("a1", "first", "2026-11-01T10:00:00+00:00", 900, 3, {0: 500, 2: 397})
SECOND = RunEntry(
    "b2",
    "second",
    "2026-11-08T10:00:00+00:00",
    1_797,
    0,
    {2: 700, 5: 300, 6: 497, 9: 300},
    DataChange(897, 900, 3),
    RunEvents(((2,),), ((0, (5, 6)),), (((0, 1), 2),), (((0, 1), (2, 3)),), (9,), (4, 7)),
    RunAudit(120, 6, 0.0186, 0.1057, 1_797, "2026-11-09T10:00:00+00:00", {2: (40, 1), 9: (5, 0)}),
)
HISTORY = RunHistory(10, (FIRST, SECOND))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert RunHistory.read(tmp_path) is None
    HISTORY.write(tmp_path)
    assert RunHistory.read(tmp_path) == HISTORY
    assert [path.name for path in tmp_path.iterdir()] == [HISTORY_FILE]


def test_a_run_that_ends_again_keeps_its_audit(tmp_path: Path) -> None:
    HISTORY.write(tmp_path)
    again = dataclasses.replace(HISTORY, runs=(FIRST, dataclasses.replace(SECOND, id="c3", written="", audit=None)))
    assert again.keep_audit(tmp_path) == dataclasses.replace(
        HISTORY, runs=(FIRST, dataclasses.replace(SECOND, written=""))
    )
    other = dataclasses.replace(again, runs=(FIRST, dataclasses.replace(SECOND, id="c3", audit=None, clusters={2: 9})))
    assert other.keep_audit(tmp_path) == other
    assert again.keep_audit(tmp_path / "elsewhere") == again
    (tmp_path / HISTORY_FILE).write_text("{")
    assert again.keep_audit(tmp_path) == again


def test_the_file_has_the_documented_format(tmp_path: Path) -> None:
    HISTORY.write(tmp_path)
    content = json.loads((tmp_path / HISTORY_FILE).read_text())
    assert content["format"] == "hf-plr-history-1"
    assert content["next_number"] == 10
    first, second = content["runs"]
    assert first["clusters"] == {"0": 500, "2": 397}
    assert first["data"] is first["events"] is first["audit"] is None
    assert second["data"] == {"known": 897, "new": 900, "removed": 3}
    assert second["events"] == {
        "kept": [[2]],
        "split": [[0, [5, 6]]],
        "merged": [[[0, 1], 2]],
        "reshaped": [[[0, 1], [2, 3]]],
        "born": [9],
        "died": [4, 7],
    }
    assert second["audit"]["clusters"] == {"2": [40, 1], "9": [5, 0]}


def test_an_audit_without_marks_by_cluster_is_read(tmp_path: Path) -> None:
    HISTORY.write(tmp_path)
    content = json.loads((tmp_path / HISTORY_FILE).read_text())
    del content["runs"][1]["audit"]["clusters"]
    (tmp_path / HISTORY_FILE).write_text(json.dumps(content))
    history = RunHistory.read(tmp_path)
    assert history is not None
    assert history.runs[1].audit is not None
    assert history.runs[1].audit.clusters == {}


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda content: content.update(format="other"), "hf-plr-history-1"),
        (lambda content: content.update(runs=[]), "no run"),
        (lambda content: content.update(next_number=9), "a cluster 9"),
        (lambda content: content.pop("next_number"), "next_number"),
        (lambda content: content["runs"][1].update(id="a1"), "same id"),
        (lambda content: content["runs"][0].update(samples=-1), "samples"),
        (lambda content: content["runs"][0].update(clusters=[1]), "items"),
        (lambda content: content["runs"][0].update(clusters={"x": 1}), "a cluster"),
        (lambda content: content["runs"][1]["events"].update(born=3), "not a list"),
        (lambda content: content["runs"][1]["events"].update(split=[[1]]), "unpack"),
        (lambda content: content["runs"][1]["audit"].update(wrong=121), "121 wrong of 120"),
        (lambda content: content["runs"][1]["audit"].update(low=-0.1), "low"),
    ],
)
def test_damage_is_named_with_the_file(tmp_path: Path, damage: Any, fault: str) -> None:
    HISTORY.write(tmp_path)
    content = json.loads((tmp_path / HISTORY_FILE).read_text())
    damage(content)
    (tmp_path / HISTORY_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{HISTORY_FILE} cannot be read.*{fault}"):
        RunHistory.read(tmp_path)


def test_an_incomplete_file_is_named(tmp_path: Path) -> None:
    HISTORY.write(tmp_path)
    path = tmp_path / HISTORY_FILE
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{HISTORY_FILE} cannot be read"):
        RunHistory.read(tmp_path)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HISTORY.write(tmp_path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        RunHistory(4, (FIRST,)).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [HISTORY_FILE]
    assert RunHistory.read(tmp_path) == HISTORY


def test_events_of_labels_become_those_of_a_history() -> None:
    previous = np.array([0] * 8 + [1] * 8 + [2] * 8 + [3] * 4 + [4] * 4 + [-1] * 4)
    current = np.array([0] * 8 + [6] * 4 + [7] * 4 + [9] * 8 + [3] * 8 + [8] * 4)
    table = cooccurrence(previous, current)
    overlaps = Overlaps.from_cells(
        table.previous, table.current, table.counts, len(table.previous_ids), len(table.current_ids)
    )
    events = RunEvents.from_cluster_events(find_cluster_events(overlaps, table.previous_ids, table.current_ids))
    assert set(events.kept) == {(0,), (2, 9)}
    assert events.split == ((1, (6, 7)),)
    assert events.merged == (((3, 4), 3),)
    assert events.born == (8,)
    assert events.died == ()
    assert events.counts() == {"kept": 2, "split": 1, "merged": 1, "reshaped": 0, "born": 1, "died": 0}
