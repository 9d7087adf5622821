"""Two processes and one folder."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.launching import load_script
from helpers.paths import REID_PLR, VIT_PLR
from helpers.run_lines import make_history, write_run

from hf_plr.data.example_data import digits
from hf_plr.report.names import read_cluster_names
from hf_plr.utils.locks import claim_folder, people_write, release_folder

CLAIM = "import sys; from hf_plr.utils.locks import claim_folder; claim_folder(sys.argv[1])"


def claim_elsewhere(folder):
    return subprocess.run([sys.executable, "-c", CLAIM, str(folder)], capture_output=True, text=True, check=False)


def test_a_folder_has_one_run_at_a_time(tmp_path):
    claim_folder(tmp_path)
    claim_folder(tmp_path / ".." / tmp_path.name)  # the same process may
    other = claim_elsewhere(tmp_path)
    assert other.returncode == 1
    assert f"ValueError: {tmp_path} is in use by another run: wait for its end, or name another folder" in other.stderr
    release_folder(tmp_path)
    release_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert claim_elsewhere(tmp_path).returncode == 0
    claim_folder(tmp_path)  # that process has ended
    release_folder(tmp_path)


@pytest.fixture
def used_folder(tmp_path):
    """A folder in which a run of another process writes."""
    folder = tmp_path / "used"
    folder.mkdir()
    script = f"{CLAIM}; print('claimed', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "claimed\n"
        yield folder
        other.stdin.close()


@pytest.mark.parametrize(("recipe", "more"), [(VIT_PLR, []), (REID_PLR, ["--source_dataset_name", "people"])])
def test_recipes_write_nothing_into_a_folder_that_is_in_use(used_folder, tmp_path, monkeypatch, recipe, more):
    monkeypatch.chdir(tmp_path)
    for number, row in enumerate(digits().select(range(24))):
        folder = tmp_path / "people" / str(number % 4)
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{number}.png")
    words = [
        "--dataset_name",
        "people",
        "--output_dir",
        str(used_folder),
        "--use_cpu",
        "true",
        "--num_train_epochs",
        "1",
    ]
    before = sorted(used_folder.rglob("*"))
    with pytest.raises(ValueError, match="is in use by another run"):
        load_script(recipe).main([*words, *more, "--overwrite"])
    assert sorted(used_folder.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="made for files of Unix")
def test_a_folder_without_locks_is_taken_as_it_is(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    claim_folder(tmp_path)
    release_folder(tmp_path)
    with people_write(tmp_path):
        pass
    with people_write(tmp_path / "nowhere"):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_names_that_people_give_at_once_are_all_kept(tmp_path):
    folder = write_run(tmp_path / "out", make_history(3, 6))
    names = dict(enumerate("abcdef"))

    def rename(item):
        number, name = item
        words = ["name", str(folder), "--rename", f"{number}={name}"]
        script = "import sys; from hf_plr.cli import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(rename, names.items()))
    assert [run.returncode for run in ended] == [0] * len(names), [run.stderr for run in ended]
    assert read_cluster_names(folder) == names
    assert not list(folder.glob(".*"))
