"""Workers that decode samples: how many, that they change no result, and that they end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.launching import environment_of
from helpers.paths import HELPERS
from helpers.runs import StopAt, assert_same_weights, logged, weights
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import TrainerCallback, set_seed

from hf_plr import PLRTrainingArguments
from hf_plr.data import loader
from hf_plr.models.vision import small_vit
from hf_plr.trainer.callbacks import TrainingStopped
from hf_plr.trainer.checkpoints.finding import last_complete_checkpoint
from hf_plr.utils import cores

DECODED_EACH_TIME = {"image_cache_gib": 0.0}
WAYS = {
    "two": {"dataloader_num_workers": 2},
    "kept": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 1},
    "spawned": {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"},
}


@given(st.integers(1, 300), st.integers(1, 16))
def test_workers_are_the_cores_of_a_process_without_its_own(n_cores, n_processes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "count_cores", lambda: n_cores)
        patch.setenv("LOCAL_WORLD_SIZE", str(n_processes))
        workers = cores.count_default_workers()
    assert 0 <= workers <= 16
    assert workers == 16 or (workers + 1) * n_processes <= max(n_cores, n_processes)
    assert workers == 16 or (workers + 2) * n_processes > n_cores


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", 64), ("150000 100000", 2), ("50000 100000", 1), ("", 64)]
)
def test_a_quota_of_the_container_counts(tmp_path, monkeypatch, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cores, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    assert cores.count_cores() == expected


def test_kept_samples_need_no_workers_unless_a_number_is_given(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_plr.training_args.base.count_default_workers", lambda: 3)
    cached = make_trainer()
    assert cached.args.dataloader_num_workers == 3
    assert loader.worker_settings(cached.args, cached.train_dataset)["num_workers"] == 3  # nothing is decoded yet
    cached.check_samples()
    assert loader.worker_settings(cached.args, cached.train_dataset)["num_workers"] == 0
    assert cached.get_train_dataloader().num_workers == 0
    decoding = make_trainer(**DECODED_EACH_TIME)
    settings = loader.worker_settings(decoding.args, decoding.train_dataset)
    assert settings["num_workers"] == decoding.get_train_dataloader().num_workers == 3
    assert settings["prefetch_factor"] == 4
    for given_number in ({"dataloader_num_workers": 3}, {"dataloader_num_workers": 0, **DECODED_EACH_TIME}):
        trainer = make_trainer(**given_number)
        assert trainer.get_train_dataloader().num_workers == given_number["dataloader_num_workers"]
    cached.args.dataloader_num_workers = 3  # counts as given from now on
    assert loader.worker_settings(cached.args, cached.train_dataset)["num_workers"] == 3


def model_with_dropout():
    """Its dropout shows whether as many random numbers were drawn before."""
    set_seed(0)
    model = small_vit(16, 8, hidden_size=32, num_hidden_layers=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return model


@pytest.fixture(scope="module")
def without_workers(some_digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("without")
    trainer = tiny.image_trainer(out, some_digits, {"model": model_with_dropout()}, dataloader_num_workers=0)
    trainer.train()
    return weights(trainer), trainer.run_state(), logged(trainer)


@pytest.mark.parametrize("way", ["two", "kept", pytest.param("spawned", marks=pytest.mark.slow)])
def test_workers_change_no_bit(tmp_path, some_digits, without_workers, way):
    trainer = tiny.image_trainer(
        tmp_path, some_digits, {"model": model_with_dropout()}, **DECODED_EACH_TIME, **WAYS[way]
    )
    trainer.train()
    state, log = trainer.run_state(), logged(trainer)
    assert_same_weights(weights(trainer), without_workers[0])
    assert [name for name in state if not np.array_equal(state[name], without_workers[1][name])] == []
    assert log == without_workers[2]
    assert multiprocessing.active_children() == []


def test_a_run_goes_on_within_an_epoch_with_other_workers(tmp_path, some_digits, without_workers):
    def make(callbacks=(), **way):
        parts = {"model": model_with_dropout(), "callbacks": list(callbacks)}
        return tiny.image_trainer(tmp_path, some_digits, parts, **way)

    make([StopAt(16)], **DECODED_EACH_TIME, **WAYS["kept"]).train()
    resumed = make(dataloader_num_workers=0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    assert_same_weights(weights(resumed), without_workers[0])
    assert logged(resumed) == without_workers[2]


@pytest.mark.slow
def test_the_stage_keeps_workers_that_have_to_import_everything(make_trainer):
    trainer = make_trainer(**DECODED_EACH_TIME, **WAYS["spawned"])
    trainer.check_samples(extract=False)  # after which workers begin anew
    first = trainer.extract_features()
    (worker,) = multiprocessing.active_children()
    part = trainer.extract_features(positions=torch.tensor([5, 180, 7]))
    assert multiprocessing.active_children() == [worker]
    assert torch.allclose(first[[5, 180, 7]], part, atol=1e-5)
    trainer.end_workers()
    assert multiprocessing.active_children() == []
    assert torch.equal(trainer.extract_features(), first)
    trainer.end_workers()


def test_each_evaluation_set_has_a_loader_of_its_own(make_trainer, some_digits):
    """Trainer keeps the loaders of evaluation sets with workers that stay, all under one name."""
    sets = {"a": some_digits.select(range(40)), "b": some_digits.select(range(40, 110))}
    trainer = make_trainer({"eval_dataset": sets}, **DECODED_EACH_TIME, **WAYS["kept"])
    lengths = [len(trainer.get_eval_dataloader(name).dataset) for name in ("a", "b", "a")]
    assert lengths == [40, 70, 40]


def test_batches_pass_through_pipes_where_shared_memory_is_full(make_trainer, monkeypatch, caplog):
    monkeypatch.setattr(loader, "free_shared_memory", lambda: 1000)
    monkeypatch.setattr(loader, "_said", set())
    whole = make_trainer(dataloader_num_workers=0).extract_features()
    trainer = make_trainer(**DECODED_EACH_TIME, **WAYS["two"], per_device_eval_batch_size=32)
    with caplog.at_level(logging.WARNING, logger=loader.__name__):
        features = trainer.extract_features()
    assert [record.message.count("almost full") for record in caplog.records] == [1]
    assert torch.allclose(features, whole, atol=1e-5)


def test_a_batch_in_a_pipe_is_the_batch():
    batch = {"index": torch.arange(3), "pixel_values": torch.arange(12, dtype=torch.uint8).reshape(3, 4)}

    def piped(free):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "free_shared_memory", lambda: free)
            items = [{name: values[i] for name, values in batch.items()} for i in range(3)]
            collate = loader.Collator(lambda items: {name: torch.stack([i[name] for i in items]) for name in items[0]})
            return next(iter(DataLoader(items, batch_size=3, collate_fn=collate, num_workers=1)))

    for free in (0, 2**40):
        received = piped(free)
        assert received.keys() == batch.keys()
        for name, values in batch.items():
            assert received[name].dtype == values.dtype
            assert torch.equal(received[name], values)


def _limit_files(worker):
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
def test_a_job_with_a_limit_on_files_gets_its_batches(monkeypatch, caplog):
    monkeypatch.setattr(loader, "_said", set())
    values = torch.rand(8, 5000)
    batches = DataLoader(
        [{"pixel_values": row} for row in values],
        batch_size=4,
        collate_fn=loader.Collator(lambda items: {"pixel_values": torch.stack([i["pixel_values"] for i in items])}),
        num_workers=1,
        worker_init_fn=_limit_files,
        timeout=60,  # in place of waiting forever
    )
    with caplog.at_level(logging.WARNING, logger=loader.__name__):
        received = torch.cat([batch["pixel_values"] for batch in batches])
    assert torch.equal(received, values)
    assert ["ulimit" in record.message for record in caplog.records] == [True]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted on Linux")
def test_a_worker_near_its_number_of_files_shares_nothing():
    import resource

    batch = {"pixel_values": torch.rand(4)}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert loader._share(batch)
    # The limit is on the numbers of open files, which have gaps: so many are free below it, whatever else is open.
    taken = {int(number) for number in os.listdir("/proc/self/fd")}
    third_free = [number for number in range(len(taken) + 3) if number not in taken][2]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (third_free, limits[1]))
        is_shared = loader._share(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not is_shared


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import os\nprint(1)\n", False),
        ("def main(): pass\nif __name__ == '__main__':\n    main()\n", True),
        ("if 'a' == 'b':\n    pass\n", False),
        ("print(__name__)\n", False),
        ("not python (\n", True),
    ],
)
def test_scripts_that_new_processes_may_import(tmp_path, script, expected):
    (tmp_path / "script.py").write_text(script)
    assert loader.is_guarded(str(tmp_path / "script.py")) == expected
    assert loader.is_guarded(None)
    assert loader.is_guarded("<stdin>")


def test_a_script_without_a_guard_decodes_by_itself_and_says_why(make_trainer, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("hf_plr.training_args.base.count_default_workers", lambda: 2)
    monkeypatch.setattr(loader, "_said", set())
    (tmp_path / "script.py").write_text("print(1)")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "script.py"), raising=False)
    trainer = make_trainer(**DECODED_EACH_TIME)
    assert loader.worker_settings(trainer.args, trainer.train_dataset)["num_workers"] == 2  # a fork imports nothing
    trainer.args.dataloader_multiprocessing_context = "spawn"
    for _ in range(2):
        assert loader.worker_settings(trainer.args, trainer.train_dataset)["num_workers"] == 0
    assert sum('if __name__ == "__main__":' in record.message for record in caplog.records) == 1


class Fails(TrainerCallback):
    """Fails at a step, as a full disk does."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            assert multiprocessing.active_children()
            raise OSError("no room")


@pytest.mark.parametrize("way", ["two", "kept"])
def test_workers_end_with_a_run_that_fails(make_trainer, way):
    trainer = make_trainer({"callbacks": [Fails()]}, **DECODED_EACH_TIME, **WAYS[way])
    with pytest.raises(OSError, match="no room"):
        trainer.train()
    until = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


class TerminateAll(TrainerCallback):
    """SIGTERM reaches the workers too, from another process, as a scheduler sends it."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            workers = [worker.pid for worker in multiprocessing.active_children()]
            assert workers
            numbers = [str(number) for number in (*workers, os.getpid())]
            subprocess.run(["/bin/kill", "-TERM", *numbers], check=True)


@pytest.mark.parametrize("way", ["two", "kept", pytest.param("spawned", marks=pytest.mark.slow)])
def test_sigterm_to_all_processes_saves_before_it_ends_the_workers(make_trainer, tmp_path, way):
    trainer = make_trainer({"callbacks": [TerminateAll()]}, **DECODED_EACH_TIME, **WAYS[way])
    with pytest.raises(TrainingStopped):
        trainer.train()
    began = time.monotonic()
    assert last_complete_checkpoint(tmp_path / "out")[0] is not None
    while multiprocessing.active_children() and time.monotonic() < began + 60:
        time.sleep(0.01)
    assert time.monotonic() - began < 4  # torch waits five seconds for one that does not end by itself


def test_a_worker_ends_where_the_process_that_loads_says_so(make_trainer):
    trainer = make_trainer(**DECODED_EACH_TIME, dataloader_num_workers=1)
    store = trainer.train_dataset
    batches = trainer.extractor.loader.load(store, torch.arange(len(store)).split(1))
    next(batches)
    [worker] = multiprocessing.active_children()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_process_that_is_killed(tmp_path, sent):
    script = HELPERS / "loading_for_ever.py"
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment_of(script), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(sent)
    process.communicate(timeout=300)
    until = time.monotonic() + 120
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # what nobody waits for in a container
    except (OSError, IndexError):
        return False


def test_default_of_the_arguments(tmp_path):
    args = PLRTrainingArguments(str(tmp_path), use_cpu=True)
    assert args.dataloader_num_workers == cores.count_default_workers()
    assert "dataloader_num_workers" in args.by_default
    assert "dataloader_num_workers" not in PLRTrainingArguments(str(tmp_path), dataloader_num_workers=1).by_default


def test_decoded_samples_are_read_ahead_in_order(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.check_samples()
    store = trainer.train_dataset
    collected = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: collected.append(len(values)) or values.clone())
    batches = torch.arange(len(store)).flip(0).split(5)
    found = loader.read_ahead(store, batches)
    first = next(found)
    assert len(collected) <= 2 * (loader.PREFETCHED + 1)  # index and pixels of each
    for batch, positions in zip([first, *found], batches, strict=True):
        torch.testing.assert_close(batch["index"], positions)
        torch.testing.assert_close(batch["pixel_values"], store.batch(positions)["pixel_values"])


def test_an_error_of_reading_ahead_is_raised(make_trainer, monkeypatch):
    store = make_trainer().train_dataset
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: values)
    with pytest.raises(IndexError):
        list(loader.read_ahead(store, [torch.tensor([0]), torch.tensor([len(store)])]))
