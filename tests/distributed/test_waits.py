"""Processes wait for the main one longer than the default group of processes allows."""

from __future__ import annotations

import re

import pytest
from helpers.launching import launch
from helpers.paths import HELPERS

from hf_plr.utils import distributed


def test_a_wait_outlasts_the_default_groups_timeout_and_says_what_for(tmp_path):
    output = tmp_path / "found"
    run = launch(output, processes=2, script=HELPERS / "wait_in_processes.py")
    assert run.returncode == 0, run.stderr[-3000:]
    assert [(tmp_path / f"found.{i}").read_text() for i in range(2)] == ["done 2 3"] * 2
    for work in ("sleeping", "reading", "writing"):
        assert re.search(rf"Waiting for the main process: {work} \(\d+ s\)", run.stdout), work


def test_gloo_without_a_network_names_the_variable_to_set(monkeypatch):
    def fail(**_):
        raise RuntimeError("no interface")

    monkeypatch.setattr(distributed.dist, "new_group", fail)
    distributed._make_patient_group.cache_clear()
    with pytest.raises(ValueError, match=r"gloo \(no interface\): set GLOO_SOCKET_IFNAME"):
        distributed.get_patient_group()
