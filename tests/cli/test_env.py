"""`hf-plr env`: everything for a bug report, and no secret."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import torch

import hf_plr
from hf_plr.cli import env, main
from hf_plr.utils.versions import find_version


def test_versions_devices_and_settings(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", "/data/hf")
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert all(line.startswith("- ") for line in lines)
    for line in (f"hf_plr: {hf_plr.__version__}", f"Python: {platform.python_version()}", "HF_HOME: /data/hf"):
        assert f"- {line}" in lines
    assert f"- torch: {torch.__version__}" in lines
    assert f"- Threads of torch: {torch.get_num_threads()}" in lines
    assert "secret" not in out
    assert not any("TOKEN" in name and name != "TOKENIZERS_PARALLELISM" for name in env.VARIABLES)


def test_gpus(monkeypatch):
    class Properties:
        name = "Some GPU"
        total_memory = 80 * env.GIB

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: Properties)
    assert env.list_devices()["GPU 1"] == "Some GPU, 80 GiB"


def test_packages_that_are_not_there(capsys, monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("nothing-of-this-name",))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert "- nothing-of-this-name: not installed\n" in out
    assert "- Devices: unknown: " in out


def test_version_is_known_in_a_checkout_that_is_not_installed(monkeypatch):
    def is_missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", is_missing)
    find_version.cache_clear()
    try:
        assert find_version("hf-plr") == hf_plr.__version__
        assert find_version("torch") is None
    finally:
        find_version.cache_clear()


def test_ctrl_c_ends_a_command_in_one_line(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_plr.cli.env.run", interrupt)
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "hf-plr: interrupted\n"
