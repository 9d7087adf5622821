"""What recipes check before they run."""

from types import SimpleNamespace

import pytest
import torch
from helpers.launching import load_script
from helpers.paths import HUBERT_PLR

from hf_plr.recipe_tools import running
from hf_plr.recipe_tools.running import (
    OutputArguments,
    check_output_dir,
    prepare_output_dir,
    run_recipe,
    set_cpu_threads,
    train,
)


def test_an_output_folder_that_is_a_file_is_refused_by_name(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"--output_dir .*taken is a file: name a folder"):
        check_output_dir(OutputArguments(output_dir=str(path)))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("file", ["metrics.json", "plr_state.safetensors", "pseudo_labels.parquet", "run_history.json"])
def test_a_run_is_known_by_each_of_its_files_recipes_or_not(tmp_path, file):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(ValueError, match=r"holds an unfinished run: --resume_from_checkpoint resumes it"):
        check_output_dir(OutputArguments(output_dir=str(tmp_path)))
    (tmp_path / file).touch()
    # What writes the results may have been killed: only the last of them tells that it was not.
    message = (
        "holds a finished run: --overwrite" if file == "metrics.json" else "--resume_from_checkpoint completes its"
    )
    with pytest.raises(ValueError, match=message):
        check_output_dir(OutputArguments(output_dir=str(tmp_path)))
    check_output_dir(OutputArguments(output_dir=str(tmp_path), overwrite=True))
    (tmp_path / "checkpoint-7").rmdir()
    with pytest.raises(ValueError, match=r"holds a finished run: --overwrite replaces it"):
        check_output_dir(OutputArguments(output_dir=str(tmp_path)))


def test_overwriting_leaves_nothing_that_tells_of_other_clusters(tmp_path):
    names = {"cluster_names.json", "run_history.json", "known_clusters.safetensors"}
    for name in (*names, "mine.txt"):
        (tmp_path / name).write_text("{}")
    for arguments, left in (({}, names), ({"overwrite": True}, set())):
        prepare_output_dir(OutputArguments(output_dir=str(tmp_path), **arguments), is_main_process=True)
        assert {path.name for path in tmp_path.iterdir()} == {*left, "mine.txt"}


def test_overwriting_leaves_nothing_that_a_run_writes(tmp_path):
    written = {
        *("README.md", "clusters.png", "model.safetensors", "model-00001-of-00002.safetensors", "config.json"),
        *("preprocessor_config.json", "metrics.json", "report.json", "report.html", "training_args.bin"),
        *("pseudo_labels.parquet", "units.parquet", "prototypes.safetensors", "centroids.safetensors", "tree.json"),
        *("plr_state.safetensors", "plr_state-00001-of-00002.safetensors"),
    }
    mine = {"marks.csv", "names.csv", "labels.parquet", "ten.parquet", "notes.md", "features.npy"}
    for name in written | mine:
        (tmp_path / name).write_text("{}")
    prepare_output_dir(OutputArguments(output_dir=str(tmp_path), overwrite=True), is_main_process=True)
    assert {path.name for path in tmp_path.iterdir()} == mine


@pytest.mark.parametrize("labels", ["pseudo_labels.parquet", "."])
def test_overwriting_keeps_what_the_run_starts_from(tmp_path, labels):
    for name in ("model.safetensors", "config.json", "README.md", "prototypes.safetensors", "pseudo_labels.parquet"):
        (tmp_path / name).write_text("{}")
    args = OutputArguments(output_dir=str(tmp_path), overwrite=True)
    args.labels = str(tmp_path / labels)  # as recipes' own arguments have it
    prepare_output_dir(args, is_main_process=True, start=str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.safetensors", "config.json", "pseudo_labels.parquet"}


@pytest.mark.parametrize(
    ("environment", "given", "threads"),
    [
        ({}, None, 7),
        ({}, 3, 3),
        ({"OMP_NUM_THREADS": "5"}, None, None),
        ({"OMP_NUM_THREADS": "1"}, None, None),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, None, 7),  # as `accelerate launch` sets it
        ({"OMP_NUM_THREADS": "5", "ACCELERATE_MIXED_PRECISION": "no"}, None, None),
        ({"OMP_NUM_THREADS": "5"}, 3, 3),
    ],
)
def test_a_single_process_takes_all_cores_or_as_many_threads_as_it_is_told(monkeypatch, environment, given, threads):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(running, "count_cores", lambda: 7)
    set_cpu_threads(given, SimpleNamespace(device=torch.device("cpu"), world_size=1))
    assert taken == ([] if threads is None else [threads])


@pytest.mark.parametrize(
    "error",
    [
        ImportError("You need to install `bitsandbytes` in order to use bitsandbytes optimizers"),
        RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`."),
    ],
)
def test_packages_that_are_missing_are_named_in_one_line(error):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_recipe(main)
    assert ended.value.code == f"error: {error}"


@pytest.mark.parametrize(
    ("objective", "dataset_name", "command"),
    [
        ("utterance", None, "accelerate launch recipes/hubert_plr.py --dataset_name YOUR_RECORDINGS"),
        ("utterance", "my sounds", "hf-plr push out --repo USER/NAME"),
        ("frames", "my sounds", "hf-plr units --model out --dataset 'my sounds' --output units.parquet"),
    ],
)
def test_what_comes_next_depends_on_the_data(objective, dataset_name, command):
    recipe = SimpleNamespace(objective=objective, dataset_name=dataset_name)
    assert load_script(HUBERT_PLR).suggest_next(recipe, SimpleNamespace(output_dir="out"))[0].startswith(command)


@pytest.mark.parametrize(("signal_name", "begins"), [("Killed", "It may have run out of memory. "), ("Terminated", "")])
def test_a_dead_worker_promises_no_resumption_without_a_checkpoint(tmp_path, signal_name, begins):
    def fail(**arguments):
        raise RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {signal_name}. ")

    trainer = SimpleNamespace(train=fail)
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=None)
    with pytest.raises(SystemExit) as ended:
        run_recipe(lambda: train(trainer, args))
    expected = f"error: DataLoader worker (pid 7) is killed by signal: {signal_name}. {begins}"
    assert ended.value.code == f"{expected}There is no earlier checkpoint"
