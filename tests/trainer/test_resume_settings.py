"""Interrupted runs end as if they had not been, whatever their settings, and with other settings they do not go on."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os

import pytest
import torch
from helpers import tiny
from helpers.runs import StopAt, assert_same_run, assert_same_weights

from hf_plr import PLRTrainer, PseudoLabelRefiner
from hf_plr.trainer.checkpoints.finding import FILE_LIST
from hf_plr.trainer.checkpoints.run_state import load_state, save_state
from hf_plr.trainer.checkpoints.writing import _write_file_list
from hf_plr.trainer.settings import check_same_settings, describe_optimizer
from hf_plr.utils.parameters import default_parameters

BETWEEN_EPOCHS, WITHIN_EPOCH = "between epochs", "within an epoch"
WORKERS = {"none": {}, "two": {"dataloader_num_workers": 2}}
WORKERS["kept"] = {**WORKERS["two"], "dataloader_persistent_workers": True}
DBSCAN = {"clusterer": "dbscan", "clusterer_kwargs": {"eps": 0.5, "k1": 12}}
FACTORS = (
    "refinement",
    "stop",
    "accumulation",
    "workers",
    "ema",
    "confidence",
    "labelings",
    "features",
    "clusterer",
    "log",
)
# Every refinement stops both ways, and every two values of the other columns meet in a row; all rows would be 3,456.
ROWS = [
    ("joint", BETWEEN_EPOCHS, 2, "none", 0.9, 1.0, 2, "file", "dbscan", "epoch"),
    ("joint", WITHIN_EPOCH, 1, "two", 0.9, 1.0, 1, "pass", "kmeans", "steps"),
    ("soft", BETWEEN_EPOCHS, 1, "none", 0.9, 0.0, 1, "pass", "dbscan", "epoch"),
    ("soft", WITHIN_EPOCH, 1, "kept", 0.0, 0.0, 1, "epoch", "kmeans", "steps"),
    ("auto", BETWEEN_EPOCHS, 2, "two", 0.0, 0.0, None, "pass", "kmeans", "steps"),
    ("auto", WITHIN_EPOCH, 1, "none", 0.0, 0.0, None, "file", "dbscan", "steps"),
    ("slr", BETWEEN_EPOCHS, 1, "two", 0.9, 1.0, 1, "epoch", "dbscan", "steps"),
    ("slr", WITHIN_EPOCH, 1, "none", 0.9, 0.0, 1, "pass", "dbscan", "epoch"),
    ("rlcc", BETWEEN_EPOCHS, 1, "two", 0.9, 1.0, 2, "file", "kmeans", "epoch"),
    ("rlcc", WITHIN_EPOCH, 2, "two", 0.0, 1.0, 1, "file", "kmeans", "epoch"),
    ("none", BETWEEN_EPOCHS, 2, "two", 0.9, 0.0, 1, "epoch", "kmeans", "epoch"),
    ("none", WITHIN_EPOCH, 2, "two", 0.0, 0.0, 2, "epoch", "dbscan", "epoch"),
]


def arguments_of(row, features_dir):
    """The arguments of a row, and the step after which it is stopped."""
    value = dict(zip(FACTORS, row, strict=True))
    arguments = {
        "refinement": value["refinement"],
        "gradient_accumulation_steps": value["accumulation"],
        "ema_decay": value["ema"],
        "num_labelings": value["labelings"],
        **WORKERS[value["workers"]],
    }
    if value["confidence"]:
        arguments |= {"confidence_power": value["confidence"], "min_confidence": 0.3}
    if value["features"] == "file":
        arguments["feature_dir"] = str(features_dir)
    elif value["features"] == "epoch":
        arguments["feature_source"] = "epoch"
    if value["clusterer"] == "dbscan":
        arguments |= DBSCAN
    if value["log"] == "steps":
        arguments |= {"logging_strategy": "steps", "logging_steps": 3}
    epoch = 7 // value["accumulation"] + value["accumulation"] // 2  # steps: 7 batches, the last by itself
    return arguments, 2 * epoch if value["stop"] == BETWEEN_EPOCHS else epoch + 2


@pytest.mark.parametrize("row", [pytest.param(row, id="-".join(map(str, row))) for row in ROWS])
def test_runs_resume_bit_for_bit(make_trainer, tmp_path, row):
    arguments, stop_at = arguments_of(row, tmp_path / "features")
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **arguments)
    whole.train()
    make_trainer({"callbacks": [StopAt(stop_at)]}, output_dir=str(tmp_path / "part"), **arguments).train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop_at}"))
    assert_same_run(whole, resumed)
    assert any("loss" in entry for entry in whole.state.log_history)
    if arguments["ema_decay"]:
        assert_same_weights(whole.ema_teacher.model.state_dict(), resumed.ema_teacher.model.state_dict())


def test_the_rows_have_every_value_and_every_two_of_them():
    """Refinement is crossed with stops alone."""
    columns = dict(zip(FACTORS, zip(*ROWS, strict=True), strict=True))
    crossed = [name for name in FACTORS if name not in ("refinement", "workers", "labelings")]
    for one, other in [*itertools.combinations(crossed, 2), ("refinement", "stop")]:
        expected = set(itertools.product(columns[one], columns[other]))
        assert set(zip(columns[one], columns[other], strict=True)) == expected, (one, other)


# ---- other settings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_checkpoint(tmp_path_factory, some_digits):
    """A checkpoint after the first of three epochs; it is only read."""
    out = tmp_path_factory.mktemp("first")
    tiny.image_trainer(out, some_digits, {"callbacks": [StopAt(7)]}).train()
    return str(out / "checkpoint-7")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"refinement": "joint"}, "refinement was 'slr' and is 'joint'"),
        ({"refinement_weight": 0.7}, "refinement_weight was None and is 0.7"),
        ({"num_clusters": 13}, "num_clusters was 12 and is 13"),
        ({"ema_decay": 0.9}, "ema_decay was 0.0 and is 0.9"),
        ({"num_labelings": 2}, "num_labelings was 1 and is 2"),
        ({"per_device_train_batch_size": 16}, "per_device_train_batch_size was 32 and is 16"),
        ({"learning_rate": 1e-4}, "learning_rate was 0.001 and is 0.0001"),
        ({"lr_scheduler_kwargs": {"min_lr": 1e-4}}, "lr_scheduler_kwargs was None and is {'min_lr': 0.0001}"),
        ({"optim_args": "momentum=0.5"}, "optim_args was None and is 'momentum=0.5'"),
        ({"clusterer": "dbscan"}, "clusterer was 'kmeans' and is 'dbscan'"),
    ],
)
def test_other_settings_are_refused_by_name(make_trainer, first_checkpoint, arguments, message):
    with pytest.raises(ValueError, match="written with other settings") as raised:
        make_trainer(**arguments).train(resume_from_checkpoint=first_checkpoint)
    assert message in str(raised.value)
    assert "Resume with the settings that the run was started with" in str(raised.value)


OLDER = ("n_levels", "min_confidence", "tol", "pair_loss")  # arguments and parameters that a checkpoint may lack


def without(settings, names):
    """Settings and their parts, without some names."""
    if isinstance(settings, list):
        return [without(each, names) for each in settings]
    if not isinstance(settings, dict):
        return settings
    return {name: without(value, names) for name, value in settings.items() if name not in names}


@pytest.mark.parametrize("refinement", ["slr", "auto"])  # one labeling, and three with a clusterer each
def test_a_checkpoint_older_than_a_setting_counts_as_written_with_its_default(make_trainer, tmp_path, refinement):
    whole = make_trainer(output_dir=str(tmp_path / "whole"), refinement=refinement)
    whole.train()
    part = tmp_path / "part"
    make_trainer({"callbacks": [StopAt(7)]}, output_dir=str(part), refinement=refinement).train()
    state, settings = load_state(part / "checkpoint-7")
    clusterers = settings["clusterer's parameters"]
    for described in (settings, settings["refiner"], clusterers if refinement == "slr" else clusterers[2]):
        assert any(name in described for name in OLDER)
    save_state(part / "checkpoint-7", state, without(settings, OLDER))
    (part / "checkpoint-7" / FILE_LIST).unlink()
    _write_file_list(part / "checkpoint-7")
    other = make_trainer(output_dir=str(part), refinement=refinement, min_confidence=0.9)
    with pytest.raises(ValueError, match=r"min_confidence was 0\.0 and is 0\.9"):
        other.train(resume_from_checkpoint=str(part / "checkpoint-7"))
    resumed = make_trainer(output_dir=str(part), refinement=refinement)
    resumed.train(resume_from_checkpoint=str(part / "checkpoint-7"))
    assert_same_run(whole, resumed)


def test_a_checkpoint_older_than_the_choice_of_a_pair_loss_had_the_first(make_trainer):
    def check(older, now):
        stored = without(make_trainer(**older).run_settings(), ("pair_loss",))
        trainer = make_trainer(**now)
        check_same_settings("checkpoint-7", stored, trainer.run_settings(), trainer.default_settings())

    dbscan = {"clusterer": "dbscan", "num_clusters": None}
    dbscan_then = {**dbscan, "pair_loss": "vicreg"}
    check({"pair_loss": "vicreg"}, {})
    check({"pair_loss": "vicreg"}, {"pair_weight": 0.3})  # its default, by another name
    check(dbscan_then, dbscan_then)
    with pytest.raises(ValueError, match=r"pair_weight was 0\.3 and is 1\.0") as raised:
        check(dbscan_then, dbscan)
    assert "pair_loss was 'vicreg' and is 'simclr'" in str(raised.value)
    for without_pairs in ({"pair_weight": 0.0}, {"augmentation": "none"}):
        check({**dbscan, **without_pairs}, {**dbscan, **without_pairs})


def test_classes_that_tell_nothing_of_their_constructor_have_no_defaults():
    assert default_parameters({}) == {}
    assert default_parameters(PseudoLabelRefiner())["n_levels"] == 1


@pytest.mark.parametrize(("stored", "current"), [("./out", "out"), ("out/", os.path.abspath("out")), (None, None)])
def test_a_folder_is_the_same_however_it_is_written(stored, current):
    check_same_settings("checkpoint-7", {"continue_from": stored}, {"continue_from": current}, {})
    with pytest.raises(ValueError, match=r"continue_from was .*out.* and is '.*other'|continue_from was None"):
        check_same_settings("checkpoint-7", {"continue_from": stored}, {"continue_from": "other"}, {})


def test_other_data_and_an_own_refiner_are_refused(make_trainer, some_digits, first_checkpoint):
    fewer = {"train_dataset": some_digits.select(range(100))}
    with pytest.raises(ValueError, match="samples was 203 and is 100"):
        make_trainer(fewer).train(resume_from_checkpoint=first_checkpoint)
    in_another_order = {"train_dataset": some_digits.select(range(202, -1, -1))}
    with pytest.raises(ValueError, match=r"data was '[0-9a-f]{16}' and is"):
        make_trainer(in_another_order).train(resume_from_checkpoint=first_checkpoint)
    own = {"refiner": PseudoLabelRefiner.from_preset("slr", linkage="ward")}
    with pytest.raises(ValueError, match=r"other settings: .*refiner, linkage was 'average' and is 'ward'\. Resume"):
        make_trainer(own).train(resume_from_checkpoint=first_checkpoint)


@pytest.mark.parametrize("refinement", ["slr", "auto"])  # one labeling, and three with a clusterer each
def test_of_settings_with_parts_only_what_differs_is_told(make_trainer, tmp_path, refinement):
    make_trainer({"callbacks": [StopAt(7)]}, output_dir=str(tmp_path), refinement=refinement).train()
    other = make_trainer(output_dir=str(tmp_path), refinement=refinement, seed=1)
    with pytest.raises(ValueError, match=r"written with other settings: seed was 42 and is 1\. Resume with"):
        other.train(resume_from_checkpoint=True)


# ---- an optimizer of the user's own ----------------------------------------------------------------------------------


def sgd(model, **settings):
    """Keywords of a trainer with an optimizer of its own."""
    return {"model": model, "optimizers": (torch.optim.SGD(model.parameters(), **settings), None)}


OPTIMIZERS = {
    "sgd": lambda model: sgd(model, lr=0.1, momentum=0.9),
    "rate": lambda model: sgd(model, lr=0.5, momentum=0.9),
    "momentum": lambda model: sgd(model, lr=0.1),
    "adam": lambda model: {"model": model, "optimizers": (torch.optim.Adam(model.parameters(), lr=0.1), None)},
    "class": lambda model: {"model": model, "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})},
    "rate of a class": lambda model: {"model": model, "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.5})},
    "more of a class": lambda model: {
        "model": model,
        "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    },
    "none": lambda model: {"model": model},
}


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ("sgd", "rate", r"other settings: optimizer, lr was 0\.1 and is 0\.5\. Resume"),
        ("sgd", "momentum", r"optimizer, momentum was 0\.9 and is 0\. Resume"),
        (
            "sgd",
            "adam",
            r"optimizer, class was 'SGD' and is 'Adam'; .*optimizer, betas was None and is \[0\.9, 0\.999\]",
        ),
        ("class", "rate of a class", r"other settings: optimizer, lr was 0\.1 and is 0\.5\. Resume"),
        ("class", "more of a class", r"other settings: optimizer, momentum was None and is 0\.9\. Resume"),
        ("none", "class", r"other settings: optimizer was None and is \[\{'class': 'SGD', 'lr': 0\.1\}\]\. Resume"),
        ("class", "none", r"optimizer was \[\{'class': 'SGD', 'lr': 0\.1\}\] and is None"),
    ],
)
def test_another_optimizer_is_refused(make_trainer, before, now, message):
    stored = make_trainer(OPTIMIZERS[before](tiny.tiny_vit())).run_settings()
    trainer = make_trainer(OPTIMIZERS[now](tiny.tiny_vit()))
    with pytest.raises(ValueError, match=message):
        check_same_settings("checkpoint-7", stored, trainer.run_settings(), trainer.default_settings())


@pytest.mark.parametrize("kind", ["sgd", "class"])
def test_an_optimizer_of_ones_own_goes_on(make_trainer, tmp_path, kind):
    whole = make_trainer(OPTIMIZERS[kind](tiny.tiny_vit()), output_dir=str(tmp_path / "whole"), warmup_steps=4)
    whole.train()
    part = {"output_dir": str(tmp_path / "part"), "warmup_steps": 4}
    make_trainer({**OPTIMIZERS[kind](tiny.tiny_vit()), "callbacks": [StopAt(7)]}, **part).train()
    resumed = make_trainer(OPTIMIZERS[kind](tiny.tiny_vit()), **part)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_checkpoint_older_than_the_optimizer_in_its_settings_goes_on(make_trainer):
    trainer = make_trainer(OPTIMIZERS["sgd"](tiny.tiny_vit()))
    stored = without(trainer.run_settings(), ("optimizer",))
    check_same_settings("checkpoint-7", stored, trainer.run_settings(), trainer.default_settings())


def test_rates_and_groups_are_described_as_they_were_given():
    parts = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    groups = [{"params": parts[0].parameters(), "lr": 0.3}, {"params": parts[1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=torch.tensor(0.1))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    described = describe_optimizer(optimizer)
    assert [group["class"] for group in described] == ["SGD", "SGD"]
    assert [group["lr"] for group in described] == [0.3, pytest.approx(0.1)]
    assert described == json.loads(json.dumps(described))
    assert describe_optimizer(None, (functools.partial(torch.optim.SGD), {"lr": 0.1}))[0]["lr"] == 0.1
    assert describe_optimizer(None) is None


def test_another_kind_of_run_is_refused(make_sound_trainer, tmp_path):
    make_sound_trainer(num_train_epochs=1).train()
    with pytest.raises(ValueError, match="trainer was 'UnitTrainer' and is 'PLRTrainer'"):
        make_sound_trainer(PLRTrainer, num_train_epochs=1).train(resume_from_checkpoint=True)


def test_another_number_of_processes_is_refused(make_trainer, first_checkpoint, monkeypatch):
    trainer = make_trainer()
    trainer.check_samples(extract=False)  # the four would share that out
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 4)
    with pytest.raises(ValueError, match="processes was 1 and is 4"):
        trainer.train(resume_from_checkpoint=first_checkpoint)


@pytest.mark.parametrize("shards", [1, 4])
def test_the_batch_of_extraction_is_shared_where_it_bounds_shards(make_trainer, shards):
    sizes = {"label_shards": shards, "per_device_eval_batch_size": 8}
    make_trainer({"callbacks": [StopAt(7)]}, **sizes).train()
    other = make_trainer(**(sizes | {"per_device_eval_batch_size": 20}))
    if shards == 1:
        other.train(resume_from_checkpoint=True)
        return
    with pytest.raises(ValueError, match="per_device_eval_batch_size was 8 and is 20"):
        other.train(resume_from_checkpoint=True)


def test_the_batch_of_extraction_is_shared_by_processes_with_units(make_sound_trainer, monkeypatch):
    trainer = make_sound_trainer()
    assert "per_device_eval_batch_size" not in trainer.run_settings()
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    assert trainer.run_settings()["per_device_eval_batch_size"] == 8


@pytest.mark.parametrize(("epochs", "steps"), [(4, 28), (2, 14)])
def test_a_longer_or_shorter_run_goes_on_with_a_warning(make_trainer, first_checkpoint, caplog, epochs, steps):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(num_train_epochs=epochs)
        trainer.train(resume_from_checkpoint=first_checkpoint)
    assert trainer.state.global_step == steps
    assert f"num_train_epochs was 3 and is {epochs}" in caplog.text
