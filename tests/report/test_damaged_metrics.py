"""Damaged files of metrics."""

from __future__ import annotations

import json

import pytest
from helpers.damaged import check_damaged

from hf_plr.report.metrics_file import read_scores

pytestmark = pytest.mark.timeout(300)


def test_scores_of_a_run(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"scores": {"before": {"mAP": 0.5}}, "samples": 3}))

    assert read_scores(path) == {"before": {"mAP": 0.5}}

    def read():
        for found in read_scores(path).values():
            assert all(isinstance(value, float) for value in found.values())

    check_damaged(path, read)
