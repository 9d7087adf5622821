"""Rates by layer, frozen layers, and the defaults of a pretrained backbone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from helpers import tiny
from helpers.runs import StopAt, assert_same_run, assert_same_weights, weights
from transformers import TrainerCallback, set_seed

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer, UnitTrainingArguments
from hf_plr.models.layers import find_depths
from hf_plr.models.speech import small_hubert_extractor
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.trainer.rates import fraction_of_peak
from hf_plr.training_args.defaults import FROM_SCRATCH, PRETRAINED

FIELDS = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
NEW = (1e-3, 30, 128)
TRAINED = (3e-5, 10, 64)


def three_layers():
    set_seed(0)
    return small_vit(16, 8, hidden_size=32, num_hidden_layers=3)


class Rates(TrainerCallback):
    """Notes the rates of all groups after every step."""

    def __init__(self):
        self.noted = []

    def on_step_end(self, args, state, control, optimizer, **kwargs):
        self.noted.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize(
    ("scheduler", "largest"),
    [
        (lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=14), 1.0),
        (lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 14), 1.0),
        (lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 100), 0.5),
    ],
)
def test_the_head_of_the_pair_loss_follows_any_schedule(make_trainer, scheduler, largest):
    model = three_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer({"model": model, "optimizers": (optimizer, scheduler(optimizer))}, num_train_epochs=2)
    fractions, step = [], trainer.pair_term.step

    def note(schedule):
        fractions.append(schedule)
        step(schedule)

    trainer.pair_term.step = note
    trainer.train()
    assert len(fractions) == 14
    assert min(fractions) >= 0.0
    assert max(fractions) == pytest.approx(largest, abs=0.02)


def test_a_rate_that_is_lowered_on_a_plateau_lowers_that_of_the_head():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert fraction_of_peak(optimizer) == 1.0
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    plateau.step(1.0)
    plateau.step(2.0)
    assert fraction_of_peak(optimizer) == pytest.approx(0.5)


# ---- rates by layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adamw_torch_fused"])
def test_each_layer_has_a_part_of_the_rate_of_the_one_above(make_trainer, optim):
    trainer = make_trainer({"model": three_layers()}, layer_decay=0.5, optim=optim)
    groups = trainer.create_optimizer().param_groups
    depths = find_depths(trainer.model)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    of_parameter = {id(parameter): group for group in groups for parameter in group["params"]}
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(of_parameter) == sum(len(group["params"]) for group in groups) == len(trained)
    for name, parameter in trained.items():
        group = of_parameter[id(parameter)]
        assert group["lr"] == 1e-3 * 0.5 ** (3 - depths[name])
        assert group["weight_decay"] == (0.05 if name in decayed else 0.0)
    assert groups[0]["lr"] == 1e-3
    assert len(groups) == 8  # 4 depths, with weight decay and without


def test_rates_follow_the_schedule_together_and_the_log_has_the_highest(make_trainer):
    rates = Rates()
    trainer = make_trainer(
        {"model": three_layers(), "callbacks": [rates]},
        layer_decay=0.5,
        logging_strategy="steps",
        logging_steps=1,
        num_train_epochs=1,
        save_strategy="no",
    )
    schedules = []
    step = trainer.pair_term.step
    trainer.pair_term.step = lambda schedule: (schedules.append(schedule), step(schedule=schedule))
    trainer.train()
    for groups in rates.noted:
        assert groups == pytest.approx([groups[0] * part for part in (1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125)])
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert max(logged) == 1e-3
    plain = make_trainer({"model": three_layers()}, num_train_epochs=1, save_strategy="no")
    expected = []
    plain_step = plain.pair_term.step
    plain.pair_term.step = lambda schedule: (expected.append(schedule), plain_step(schedule=schedule))
    plain.train()
    assert schedules == expected


def test_a_factor_of_one_changes_no_bit_and_another_moves_lower_layers_less(make_trainer, tmp_path):
    moved = {}
    for decay in (None, 1.0, 0.1):
        settings = {} if decay is None else {"layer_decay": decay}
        trainer = make_trainer(
            {"model": three_layers()},
            num_train_epochs=1,
            save_strategy="no",
            optim="sgd",
            learning_rate=0.1,
            **settings,
        )
        before = weights(trainer)
        trainer.train()
        moved[decay] = {name: value - before[name] for name, value in weights(trainer).items()}
    assert_same_weights(moved[None], moved[1.0])
    name = "embeddings.patch_embeddings.projection.weight"
    assert 0 < moved[0.1][name].norm() < 0.02 * moved[1.0][name].norm()


def test_the_head_of_units_keeps_the_full_rate(make_sound_trainer):
    trainer = make_sound_trainer(layer_decay=0.5, learning_rate=1e-3)
    groups = trainer.create_optimizer().param_groups
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    depths = find_depths(trainer.student)
    for name, parameter in trainer.model.named_parameters():
        depth = depths[name.removeprefix("backbone.")] if name.startswith("backbone.") else 2
        assert rate[id(parameter)] == 1e-3 * 0.5 ** (2 - depth)
    trainer.train()


def test_the_highest_layer_that_is_trained_has_the_full_rate(make_sound_trainer):
    trainer = make_sound_trainer(PLRTrainer, layer=1, layer_decay=0.5, learning_rate=1e-3)
    rates = {group["lr"] for group in trainer.create_optimizer().param_groups}
    assert rates == {1e-3, 5e-4}  # layer 1 and the embeddings: layer 2 is frozen


@pytest.mark.parametrize("stop", [7, 10])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_with_rates_by_layer_and_frozen_layers_resumes_exactly(make_trainer, tmp_path, stop, ema_decay):
    settings = {"layer_decay": 0.6, "freeze_layers": 1, "ema_decay": ema_decay}
    whole = make_trainer({"model": three_layers()}, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    make_trainer({"model": three_layers(), "callbacks": [StopAt(stop)]}, **settings).train()
    resumed = make_trainer({"model": three_layers()}, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    with pytest.raises(ValueError, match=r"layer_decay was 0.6 and is 0.7"):
        make_trainer({"model": three_layers()}, **{**settings, "layer_decay": 0.7}).train(resume_from_checkpoint=True)


def test_units_with_rates_by_layer_and_frozen_layers_resume_exactly(make_sound_trainer, tmp_path):
    settings = {"layer_decay": 0.6, "freeze_layers": 1}
    whole = make_sound_trainer(output_dir=str(tmp_path / "whole"), **settings)
    start = weights(whole)
    whole.train()
    depths = find_depths(whole.student)
    for name, value in weights(whole).items():
        if depths.get(name.removeprefix("backbone."), 9) <= 1:
            assert torch.equal(value, start[name])
    make_sound_trainer(trainer={"callbacks": [StopAt(4)]}, **settings).train()
    resumed = make_sound_trainer(**settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


# ---- frozen layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_layers_are_the_same_bits_after_training(make_trainer, checkpointing):
    trainer = make_trainer(
        {"model": three_layers()},
        freeze_layers=2,
        num_train_epochs=1,
        save_strategy="no",
        gradient_checkpointing=checkpointing,
        ema_decay=0.9,
    )
    before, depths = weights(trainer), find_depths(trainer.model)
    trainer.train()
    after = weights(trainer)
    teacher = trainer.backbone.state_dict()
    for name, parameter in trainer.model.named_parameters():
        is_frozen = depths[name] <= 2 or name.startswith("pooler.")
        assert parameter.requires_grad is not is_frozen
        assert torch.equal(after[name], before[name]) is is_frozen, name
        assert not is_frozen or torch.equal(teacher[name], before[name])


def test_gradient_checkpointing_changes_no_frozen_run(make_trainer):
    trained = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            {"model": three_layers()},
            freeze_layers=1,
            num_train_epochs=1,
            save_strategy="no",
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
        trained.append(weights(trainer))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, msg=name)


def test_what_would_train_nothing_is_refused(make_trainer, make_sound_trainer):
    for n in (1, 5):
        with pytest.raises(ValueError, match=f"freeze_layers={n} leaves nothing to train: 1 layers are trained"):
            make_trainer(freeze_layers=n)
    with pytest.raises(ValueError, match="freeze_layers=1 leaves nothing to train: 1 layers are trained"):
        make_sound_trainer(PLRTrainer, layer=1, freeze_layers=1)  # layer 2 is above the feature


def freeze_embeddings(model):
    model.embeddings.requires_grad_(False)
    return model


def freeze_embeddings_and_a_layer(model):
    freeze_embeddings(model).layers[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("freeze", "arguments"),
    [(None, {"freeze_layers": 1}), (freeze_embeddings, {}), (freeze_embeddings_and_a_layer, {})],
)
def test_reentrant_checkpoints_after_frozen_layers_are_refused(make_trainer, freeze, arguments):
    model = three_layers() if freeze is None else freeze(three_layers())
    arguments = arguments | {"gradient_checkpointing": True}
    with pytest.raises(ValueError, match=r"'use_reentrant': True.* would train no layer of ViTModel .*use_reentrant=F"):
        make_trainer({"model": model}, **arguments, gradient_checkpointing_kwargs={"use_reentrant": True})
    make_trainer({"model": model}, **arguments, gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize("arguments", [{}, {"lora": True, "lora_rank": 2}])
def test_reentrant_checkpoints_train(make_trainer, arguments):
    trainer = make_trainer(
        {"model": three_layers()},
        num_train_epochs=1,
        save_strategy="no",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        **arguments,
    )
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) is (name not in trained), name


# ---- defaults of a pretrained backbone -------------------------------------------------------------------------------


def values(args):
    return tuple(getattr(args, name) for name in FIELDS)


@pytest.fixture
def make(some_digits, tmp_path):
    def make(model, args=None, **settings):
        args = PLRTrainingArguments(str(tmp_path), use_cpu=True, **settings) if args is None else args
        return PLRTrainer(model, args, some_digits, processing_class=small_vit_processor(16))

    return make


def trained_vit():
    model = tiny.tiny_vit()
    model.layernorm.bias.data.normal_()
    return model


def test_a_backbone_by_name_or_trained_has_defaults_of_its_own(make, tmp_path):
    tiny.tiny_vit().save_pretrained(tmp_path / "model")
    assert values(make(tiny.tiny_vit()).args) == NEW
    assert values(make(str(tmp_path / "model")).args) == TRAINED
    assert values(make(tmp_path / "model").args) == TRAINED
    assert values(make(trained_vit()).args) == TRAINED


def test_adapters_have_a_rate_of_their_own(make):
    assert make(trained_vit(), lora=True).args.learning_rate == 1e-3
    assert make(trained_vit(), lora=True, learning_rate=3e-5).args.learning_rate == 3e-5


@pytest.mark.parametrize(("name", "value"), [*zip(FIELDS, NEW, strict=True), *zip(FIELDS, (7.0, 7, 14), strict=True)])
def test_what_is_given_stays_also_if_it_is_a_default(make, name, value):
    expected = {**dict(zip(FIELDS, TRAINED, strict=True)), name: value}
    assert values(make(trained_vit(), **{name: value}).args) == tuple(expected.values())
    args = PLRTrainingArguments("out", use_cpu=True)
    setattr(args, name, value)
    assert values(make(trained_vit(), args).args) == tuple(expected.values())


def test_one_object_of_arguments_serves_several_trainers(make):
    args = PLRTrainingArguments("out", use_cpu=True, hub_token="hf_secret", num_clusters=12)
    before = dict(vars(args))
    pretrained, new = make(trained_vit(), args), make(tiny.tiny_vit(), args)
    assert (values(pretrained.args), values(new.args), values(args)) == (TRAINED, NEW, NEW)
    assert new.args is args
    assert pretrained.args.hub_token == "hf_secret"
    assert vars(args) == before
    assert values(make(trained_vit(), pretrained.args).args) == TRAINED
    assert pretrained.run_settings()["learning_rate"] == 3e-5
    assert pretrained._train_batch_size == 64


def test_defaults_that_a_copy_has_made_given_are_warned_of(make, caplog):
    args = PLRTrainingArguments("out", use_cpu=True, num_clusters=12)
    assert values(make(trained_vit(), copy.deepcopy(args)).args) == TRAINED
    assert "copy.deepcopy" not in caplog.text
    copied = dataclasses.replace(args, seed=1)
    make(tiny.tiny_vit(), copied)
    make(trained_vit(), dataclasses.replace(args, learning_rate=1e-4))
    assert "copy.deepcopy" not in caplog.text
    assert values(make(trained_vit(), copied).args) == NEW
    assert "{'learning_rate': 3e-05, 'num_train_epochs': 10, 'per_device_train_batch_size': 64}" in caplog.text
    assert "copy.deepcopy" in caplog.text


def test_arguments_are_numbers_before_there_is_a_model(tmp_path):
    args = PLRTrainingArguments(str(tmp_path), use_cpu=True)
    assert values(args) == NEW
    assert args.train_batch_size == 128
    assert args.to_sanitized_dict()["num_train_epochs"] == 30
    again = copy.copy(args)
    assert again.by_default == args.by_default == {*FIELDS, "dataloader_num_workers"}
    args.set_training(learning_rate=0.5, batch_size=2, num_epochs=1)
    assert values(args) == (0.5, 1, 2)
    assert args.by_default == {"dataloader_num_workers"}


def test_sounds_have_defaults_of_their_own(some_sounds, tmp_path):
    tiny.tiny_hubert().save_pretrained(tmp_path / "model")
    parts = {"train_dataset": some_sounds, "processing_class": small_hubert_extractor(8_000)}
    args = UnitTrainingArguments(str(tmp_path), use_cpu=True)
    assert values(UnitTrainer(tiny.tiny_hubert(), args, **parts).args) == NEW
    units = UnitTrainer(str(tmp_path / "model"), args, **parts)
    assert values(units.args) == (3e-5, 10, 16)
    assert (args.first_units, units.args.first_units) == ("mfcc", "layer")
    args.first_units = "mfcc"
    assert UnitTrainer(str(tmp_path / "model"), args, **parts).args.first_units == "mfcc"
    utterances = PLRTrainer(str(tmp_path / "model"), PLRTrainingArguments(str(tmp_path), use_cpu=True), **parts)
    assert values(utterances.args) == (3e-5, 10, 16)


def test_deepspeed_takes_no_defaults_of_a_pretrained_backbone(make):
    args = PLRTrainingArguments("out", use_cpu=True, learning_rate=1e-4)
    args.deepspeed = "config.json"
    with pytest.raises(ValueError, match="deepspeed with a pretrained backbone: give num_train_epochs, per_device_"):
        make(trained_vit(), args)


def test_the_tables_have_the_same_names():
    assert all(set(defaults) <= set(FROM_SCRATCH) for defaults in PRETRAINED.values())
    assert set(PRETRAINED["audio"]) == set(FROM_SCRATCH)
