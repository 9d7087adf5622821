"""What recipes check before they run."""

from types import SimpleNamespace

import pytest
import torch
from helpers.launching import load_script
from helpers.paths import HUBERT_PLR

from hf_plr.recipe_tools import running
from hf_plr.recipe_tools.output_folder import OutputArguments
from hf_plr.recipe_tools.running import run_recipe, set_cpu_threads, train


@pytest.mark.parametrize(
    ("environment", "given", "threads"),
    [
        ({}, None, 7),
        ({}, 3, 3),
        ({"OMP_NUM_THREADS": "5"}, None, None),
        ({"OMP_NUM_THREADS": "1"}, None, None),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, None, 7),  # as `accelerate launch` sets it
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no", "HF_PLR_CHOSEN_THREADS": "1"}, None, None),
        ({"OMP_NUM_THREADS": "5", "ACCELERATE_MIXED_PRECISION": "no"}, None, None),
        ({"OMP_NUM_THREADS": "5"}, 3, 3),
    ],
)
def test_a_single_process_takes_all_cores_or_as_many_threads_as_it_is_told(monkeypatch, environment, given, threads):
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "HF_PLR_CHOSEN_THREADS"):
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
    args = OutputArguments(output_dir=str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        run_recipe(lambda: train(trainer, args))
    expected = f"error: DataLoader worker (pid 7) is killed by signal: {signal_name}. {begins}"
    assert ended.value.code == f"{expected}There is no earlier checkpoint"
