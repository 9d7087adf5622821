"""The card of labels that are published as a data set tells how they came about, and who has looked at them."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from helpers.run_lines import make_history, write_run

from hf_plr.hub.label_dataset import make_labels_card
from hf_plr.report.names import write_cluster_names

ALONE = "a backbone's features were clustered again and again while it\ntrained."


def make_card(folder) -> str:
    return str(make_labels_card(Dataset.from_dict({"label": [0, 1, -1]}), "alice/labels", folder))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "trained, and each time the clusters were refined by those of the time before."),
        ({"refinement": "slr"}, "trained, and each time the clusters were refined by those of the time before."),
        ({"refinement": "none"}, ALONE),
        (None, ALONE),
        ({"labels": "mine.csv"}, "They were given to the training of a backbone by hf-plr"),
    ],
)
def test_it_tells_how_they_came_about(tmp_path, settings, told):
    if settings is not None:
        (tmp_path / "metrics.json").write_text(json.dumps({"settings": settings}))
    card = make_card(tmp_path)
    assert told in card
    assert ("without true labels" in card) is (settings is None or "labels" not in settings)
    assert "No audit of these labels is recorded, and no cluster has a name." in card


def test_it_has_the_audit_and_the_names(tmp_path):
    out = write_run(tmp_path / "out", make_history(3, 6))
    write_cluster_names(out, {1: "crack"})
    card = make_card(out)
    assert "An audit found 5.0% of the labels wrong" in card
    assert "| crack | 1 |" in card
    assert "No audit" not in card


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read as the metrics of a run"):
        make_card(tmp_path)
