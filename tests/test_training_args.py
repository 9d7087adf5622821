"""Arguments of the trainers: choices, limits, and what each trainer takes."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_plr import PLRTrainingArguments, UnitTrainingArguments, training_args
from hf_plr.clustering import CLUSTERERS
from hf_plr.data.audio_augmentation import AUDIO_AUGMENTATIONS
from hf_plr.data.image_augmentation import IMAGE_AUGMENTATIONS
from hf_plr.features.source import DTYPES, SOURCES
from hf_plr.models.pooling import POOLINGS
from hf_plr.pseudo_labels.pair_term import PAIR_LOSSES
from hf_plr.refinement import PRESETS
from hf_plr.training_args import BaseTrainingArguments, base


def own_fields(kind: type[BaseTrainingArguments]) -> set[str]:
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {field.name for field in dataclasses.fields(kind)} - inherited


@pytest.mark.parametrize(
    ("choices", "registered"),
    [
        (training_args.Augmentation, {*IMAGE_AUGMENTATIONS, *AUDIO_AUGMENTATIONS}),
        (training_args.Clusterer, {*CLUSTERERS}),
        (training_args.FeatureDtype, {*DTYPES}),
        (training_args.FeatureSource, {*SOURCES}),
        (training_args.choices.PairLoss, {training_args.AUTO, *PAIR_LOSSES}),
        (training_args.Pooling, {*POOLINGS}),
        (training_args.Refinement, {training_args.AUTO, *PRESETS}),
    ],
)
def test_choices_are_those_of_the_registries(choices, registered):
    assert set(get_args(choices)) == registered


def test_the_module_imports_nothing_of_ours_but_checks():
    code = "import sys, hf_plr.training_args; print(*(name for name in sys.modules if name.startswith('hf_plr')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    utils = {f"hf_plr.utils.{name}" for name in ("argument_checks", "cores", "unsupported_args")}
    allowed = {"hf_plr", "hf_plr.utils", *utils}
    assert {name for name in run.stdout.split() if not name.startswith("hf_plr.training_args")} == allowed


OUTSIDE: list[tuple[type[BaseTrainingArguments], dict[str, Any], str]] = [
    (PLRTrainingArguments, {"refinement_weight": 1.5}, "refinement_weight=1.5 is outside [0, 1]"),
    (
        PLRTrainingArguments,
        {"pair_loss": "simclr", "pair_weight": 0.0},
        "pair_loss='simclr' has no effect with pair_weight=0",
    ),
    (
        PLRTrainingArguments,
        {"refinement": "none", "refinement_weight": 0.3},
        "refinement_weight=0.3 has no effect with refinement='none'",
    ),
    (
        PLRTrainingArguments,
        {"refinement": "none", "refine_start_epoch": 3},
        "refine_start_epoch=3 has no effect with refinement='none': leave refine_start_epoch out",
    ),
    (
        PLRTrainingArguments,
        {"feature_momentum": 0.5},
        "feature_momentum=0.5 has no effect without feature_source='epoch': add it, or leave feature_momentum out",
    ),
    (
        UnitTrainingArguments,
        {"refinement": "none", "refinement_weight": 0.3},
        "refinement_weight=0.3 has no effect with refinement='none'",
    ),
    (PLRTrainingArguments, {"refine_start_epoch": -5}, "refine_start_epoch=-5 must be at least 0"),
    (PLRTrainingArguments, {"layer": -3}, "layer=-3 must be at least 0"),
    (UnitTrainingArguments, {"unit_layer": -1}, "unit_layer=-1 must be at least 0"),
    (PLRTrainingArguments, {"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
    (PLRTrainingArguments, {"per_device_eval_batch_size": 0}, "per_device_eval_batch_size=0 must be at least 1"),
    (PLRTrainingArguments, {"learning_rate": -1.0}, "learning_rate=-1.0 must be at least 0"),
    (PLRTrainingArguments, {"learning_rate": "1e-3"}, "learning_rate='1e-3' must be a number"),
    (PLRTrainingArguments, {"weight_decay": -1}, "weight_decay=-1 must be at least 0"),
    (UnitTrainingArguments, {"warmup_steps": -1}, "warmup_steps=-1 must be at least 0"),
    (UnitTrainingArguments, {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
    (PLRTrainingArguments, {"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be at least 0"),
    (PLRTrainingArguments, {"adam_beta2": 1.0}, "adam_beta2=1.0 is outside [0, 1)"),
    (PLRTrainingArguments, {"seed": -1}, "seed=-1 must be at least 0"),
    (PLRTrainingArguments, {"num_clusters": "6"}, "num_clusters='6' must be a number"),
    (PLRTrainingArguments, {"num_clusters": True}, "num_clusters=True must be a number"),
    (PLRTrainingArguments, {"num_train_epochs": [3]}, "num_train_epochs=[3] must be a number"),
    (PLRTrainingArguments, {"pixel_range": "0 255"}, "pixel_range='0 255' must be a list of numbers"),
    (PLRTrainingArguments, {"pixel_range": ["0", "255"]}, "pixel_range=['0', '255'] must be a list of numbers"),
    (UnitTrainingArguments, {"mask_probability": "0.5"}, "mask_probability='0.5' must be a number"),
    (UnitTrainingArguments, {"segment_seconds": "3"}, "segment_seconds='3' must be a number"),
    (PLRTrainingArguments, {"num_clusters": 2.5}, "num_clusters=2.5 must be a whole number"),
    (PLRTrainingArguments, {"steps_per_epoch": 1.5}, "steps_per_epoch=1.5 must be a whole number"),
    (PLRTrainingArguments, {"levels": 1}, "levels=1: a level has at least 2 clusters"),
    (PLRTrainingArguments, {"clusterer_kwargs": 5}, "clusterer_kwargs=5 is not JSON"),
    (PLRTrainingArguments, {"eval_do_concat_batches": False}, "eval_do_concat_batches=False is not supported"),
    (PLRTrainingArguments, {"refinement_weight": -0.1}, "refinement_weight=-0.1 is outside [0, 1]"),
    (PLRTrainingArguments, {"min_confidence": float("nan")}, "min_confidence=nan is outside [0, 1]"),
    (PLRTrainingArguments, {"confidence_power": -1.0}, "confidence_power=-1.0 must be at least 0"),
    (PLRTrainingArguments, {"prototype_momentum": 1.1}, "prototype_momentum=1.1 is outside [0, 1]"),
    (PLRTrainingArguments, {"num_train_epochs": 0}, "num_train_epochs=0 must be above 0"),
    (PLRTrainingArguments, {"temperature": 0.0}, "temperature=0.0 must be above 0"),
    (PLRTrainingArguments, {"temperature": None}, "temperature=None must be above 0"),
    (PLRTrainingArguments, {"num_clusters": 0}, "num_clusters=0 must be at least 1"),
    (PLRTrainingArguments, {"score_every": -1}, "score_every=-1 must be at least 0"),
    (PLRTrainingArguments, {"num_labelings": 0}, "num_labelings=0 must be at least 1"),
    (PLRTrainingArguments, {"samples_per_cluster": 0}, "samples_per_cluster=0 must be at least 1"),
    (PLRTrainingArguments, {"ema_decay": 1.0}, "ema_decay=1.0 is outside [0, 1)"),
    (PLRTrainingArguments, {"feature_momentum": 1.0}, "feature_momentum=1.0 is outside [0, 1)"),
    (PLRTrainingArguments, {"image_cache_gib": -1.0}, "image_cache_gib=-1.0 must be at least 0"),
    (PLRTrainingArguments, {"sound_cache_gib": -1.0}, "sound_cache_gib=-1.0 must be at least 0"),
    (PLRTrainingArguments, {"max_seconds": 0.0}, "max_seconds=0.0 must be above 0"),
    (PLRTrainingArguments, {"steps_per_epoch": 0}, "steps_per_epoch=0 must be at least 1"),
    (PLRTrainingArguments, {"pooling": "max"}, "pooling='max' is unknown: use one of cls, mean"),
    (PLRTrainingArguments, {"clusterer": None}, "clusterer=None is unknown: use one of kmeans, dbscan, "),
    (PLRTrainingArguments, {"on_nan": "go"}, "on_nan='go' is unknown: use one of stop, skip_epoch"),
    (PLRTrainingArguments, {"report": "never"}, "report='never' is unknown: use one of epoch, end, no"),
    (PLRTrainingArguments, {"batch_eval_metrics": True}, "batch_eval_metrics=True is not supported: scores take"),
    (PLRTrainingArguments, {"remove_unused_columns": True}, "remove_unused_columns=True is not supported"),
    (PLRTrainingArguments, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not supported: pseudo-"),
    (
        PLRTrainingArguments,
        {"train_sampling_strategy": "sequential"},
        "train_sampling_strategy='sequential' is",
    ),
    (PLRTrainingArguments, {"label_names": ["y"]}, "label_names=['y'] is not supported: label_column names the column"),
    (
        UnitTrainingArguments,
        {"prediction_loss_only": True},
        "prediction_loss_only=True is not supported: an evaluation",
    ),
    (
        PLRTrainingArguments,
        {"include_for_metrics": ["inputs", "loss"]},
        "include_for_metrics=['inputs', 'loss'] is not supported: an evaluation computes no loss, leave 'loss' out",
    ),
    (UnitTrainingArguments, {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 is not supported"),
    (PLRTrainingArguments, {"bf16_full_eval": True, "use_cpu": True}, "bf16_full_eval=True is not supported"),
    (PLRTrainingArguments, {"fp16": True, "use_cpu": True}, "fp16=True needs a GPU"),
    (PLRTrainingArguments, {"levels": "0,8"}, "levels=0,8: a level has at least 2 clusters, not 0"),
    (PLRTrainingArguments, {"levels": "8,8"}, "levels=8,8: 8 is there twice, name each level once"),
    (PLRTrainingArguments, {"levels": [4, 2.5]}, "levels=4,2.5 is not a list of whole numbers: write it as"),
    (PLRTrainingArguments, {"levels": "8;16"}, "levels=8;16 is not a list of whole numbers"),
    (PLRTrainingArguments, {"levels": []}, "levels= is not a list of whole numbers"),
    (
        PLRTrainingArguments,
        {"levels": "8,16", "num_clusters": 12},
        "levels=8,16: 16 clusters are more than the 12 of which a level is made",
    ),
    (UnitTrainingArguments, {"ema_decay": -0.1}, "ema_decay=-0.1 is outside [0, 1)"),
    (UnitTrainingArguments, {"relabel_every": 0}, "relabel_every=0 must be at least 1"),
    (UnitTrainingArguments, {"fit_frames": 0}, "fit_frames=0 must be at least 1"),
    (UnitTrainingArguments, {"mask_length": 0}, "mask_length=0 must be at least 1"),
    (UnitTrainingArguments, {"mask_probability": 0.0}, "mask_probability=0.0 is outside (0, 1]"),
    (UnitTrainingArguments, {"unmasked_weight": -1.0}, "unmasked_weight=-1.0 must be at least 0"),
    (UnitTrainingArguments, {"unit_temperature": 0.0}, "unit_temperature=0.0 must be above 0"),
    (UnitTrainingArguments, {"first_units": "fbank"}, "first_units='fbank' is unknown: use one of mfcc, layer"),
]


@pytest.mark.parametrize(("kind", "arguments", "message"), OUTSIDE)
def test_values_outside_their_range_are_named(tmp_path, kind, arguments, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        kind(str(tmp_path), **arguments)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("kind", "arguments", "message"), OUTSIDE)
def test_values_that_are_assigned_later_are_named_when_they_are_checked(tmp_path, kind, arguments, message):
    args = kind(str(tmp_path), use_cpu=True)
    for name, value in arguments.items():
        setattr(args, name, value)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        args.check()
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("kind", [PLRTrainingArguments, UnitTrainingArguments])
def test_a_check_changes_nothing(tmp_path, kind):
    args = kind(str(tmp_path), eval_strategy="steps", load_best_model_at_end=True, save_strategy="steps")
    before = copy.deepcopy(args)
    args.check()
    assert args.to_dict() == before.to_dict()
    assert args.by_default == before.by_default
    assert {"learning_rate", "num_train_epochs", "dataloader_num_workers"} <= args.by_default


def test_a_check_reads_what_is_assigned_as_text(tmp_path):
    args = PLRTrainingArguments(str(tmp_path))
    args.clusterer_kwargs, args.levels, args.num_clusters = '{"max_iter": 3}', "16,4", 16
    args.check()
    assert args.clusterer_kwargs == {"max_iter": 3}
    assert args.levels == [4, 16]


def test_the_ends_of_closed_ranges_are_taken(tmp_path):
    args = PLRTrainingArguments(
        str(tmp_path), refinement_weight=1.0, min_confidence=0.0, prototype_momentum=1.0, num_clusters=1, ema_decay=0.0
    )
    assert (args.refinement_weight, args.num_clusters) == (1.0, 1)
    assert UnitTrainingArguments(str(tmp_path), mask_probability=1.0).mask_probability == 1.0


@pytest.mark.parametrize("levels", ["16,4,8", "16, 4, 8", [16, 4, 8], (8, 4, 16)])
def test_levels_are_a_list_however_they_are_written(tmp_path, levels):
    args = PLRTrainingArguments(str(tmp_path), levels=levels, num_clusters=16)
    assert args.levels == [4, 8, 16]
    assert PLRTrainingArguments(str(tmp_path), levels=args.levels).levels == [4, 8, 16]


def test_two_siblings_have_a_common_base(tmp_path):
    shared = own_fields(PLRTrainingArguments) & own_fields(UnitTrainingArguments)
    assert shared == own_fields(BaseTrainingArguments) | {"whitening_shrinkage"}  # of samples, and of frames
    assert {"clusterer", "temperature", "feature_source"} <= own_fields(PLRTrainingArguments) - shared
    assert {"relabel_every", "unit_temperature"} <= own_fields(UnitTrainingArguments) - shared
    assert not issubclass(UnitTrainingArguments, PLRTrainingArguments)
    with pytest.raises(TypeError, match="temperature"):
        UnitTrainingArguments(str(tmp_path), temperature=0.1)


@pytest.mark.parametrize("kind", [PLRTrainingArguments, UnitTrainingArguments])
def test_the_parser_of_transformers_takes_them(kind, tmp_path):
    (args,) = HfArgumentParser(kind).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--augmentation", "none", "--max_seconds", "1.5", "--num_clusters", "7"],
        look_for_args_file=False,
    )
    assert (args.augmentation, args.max_seconds, args.num_clusters) == ("none", 1.5, 7)


@pytest.mark.parametrize(
    ("metric", "greater_is_better"),
    [("plr/effective_rank", True), ("eval_plr/noise_share", False), ("plr/largest_share", False), (None, True)],
)
def test_the_metric_for_the_best_model_has_a_direction(tmp_path, metric, greater_is_better):
    args = PLRTrainingArguments(
        str(tmp_path), load_best_model_at_end=True, eval_strategy="epoch", metric_for_best_model=metric
    )
    assert args.metric_for_best_model == (metric or "knn_accuracy")
    assert args.greater_is_better is greater_is_better
    assigned = PLRTrainingArguments(str(tmp_path), eval_strategy="epoch")
    assigned.load_best_model_at_end, assigned.metric_for_best_model = True, metric
    assigned.check()
    assert assigned.metric_for_best_model == (metric or "knn_accuracy")
    assert assigned.greater_is_better is greater_is_better


def test_bfloat16_is_the_default_where_a_gpu_has_it(tmp_path, monkeypatch):
    plain = PLRTrainingArguments(str(tmp_path), use_cpu=True)
    assert plain.bf16 is False
    assert plain.is_bf16_by_default is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert base.suits_bf16(fp16=False, use_cpu=False)
    assert not base.suits_bf16(fp16=True, use_cpu=False)
    assert not base.suits_bf16(fp16=False, use_cpu=True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not base.suits_bf16(fp16=False, use_cpu=False)


@pytest.mark.parametrize(("arguments", "expected"), [([], True), (["--bf16"], True), (["--bf16", "false"], False)])
def test_bf16_can_be_switched_off(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "suits_bf16", lambda fp16, use_cpu: True)
    (args,) = HfArgumentParser(PLRTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), *arguments], look_for_args_file=False
    )
    assert args.bf16 is expected
    assert args.is_bf16_by_default is (arguments == [])


@pytest.mark.parametrize(
    ("launched", "given", "expected"),
    [("bf16", {}, "bf16"), ("bf16", {"bf16": False}, "no"), ("no", {"bf16": True}, "bf16"), ("no", {}, "no")],
)
def test_the_precision_of_the_launch_counts_as_given(tmp_path, monkeypatch, launched, given, expected):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    args = PLRTrainingArguments(str(tmp_path), use_cpu=True, **given)
    assert (args.bf16, args.is_bf16_by_default, args.mixed_precision) == (expected == "bf16", False, expected)


def test_float16_of_the_launch_is_refused_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16=True needs a GPU"):
        PLRTrainingArguments(str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("kind", [PLRTrainingArguments, UnitTrainingArguments])
def test_several_gpus_without_a_launcher_are_refused_with_the_command(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(kind, "n_gpu", property(lambda _: 4))
    with pytest.raises(ValueError, match=r"one process sees 4 GPUs: .* accelerate launch --num_processes 4 SCRIPT"):
        kind(str(tmp_path))


def test_apples_gpus_leave_training_to_the_cpu_and_say_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    args = PLRTrainingArguments(str(tmp_path))
    assert args.use_cpu
    assert args.device.type == "cpu"
    assert "Apple's GPUs (MPS)" in caplog.text


def test_exact_resume_concerns_gpus_alone(tmp_path):
    args = PLRTrainingArguments(str(tmp_path), use_cpu=True, exact_resume=True)
    assert not args.is_exact_gpu  # a CPU is exact as it is
    args.__dict__["_setup_devices"] = torch.device("cuda", 0)
    assert args.device.type == "cuda"
    assert args.is_exact_gpu


def test_steps_that_were_filled_in_are_not_refused_in_copies():
    of_steps = PLRTrainingArguments("out", eval_strategy="steps", logging_steps=50)
    assert of_steps.eval_steps == 50
    dataclasses.replace(of_steps, eval_strategy="no")
    of_epochs = PLRTrainingArguments("out", eval_strategy="steps")
    of_epochs.set_evaluate(strategy="epoch")
    dataclasses.replace(of_epochs, seed=3)
