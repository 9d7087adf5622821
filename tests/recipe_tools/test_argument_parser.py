"""Arguments from flags and a file: what wins, how values are read, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.launching import load_script
from helpers.paths import HUBERT_PLR

from hf_plr import PLRTrainingArguments, UnitTrainingArguments
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.output_folder import OutputArguments
from hf_plr.recipe_tools.running import DataArguments


@dataclass
class Arguments(OutputArguments, PLRTrainingArguments):
    """The arguments of training."""


@pytest.fixture
def parse(tmp_path: Path):
    """Parse the text of a file and flags."""

    def parsed(
        text: str | bytes | None, *flags: str, adjust: Any = lambda given: {}
    ) -> tuple[DataArguments, Arguments]:
        file: tuple[str, ...] = ()
        if text is not None:
            path = tmp_path / "run.yaml"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            file = ("--config", str(path))
        parser = RecipeParser([DataArguments, Arguments], "", adjust)
        return parser.parse_args_and_config([*file, "--output_dir", str(tmp_path), "--use_cpu", "true", *flags])

    return parsed


def test_flags_win_over_the_file_and_the_file_over_what_is_adjusted(parse):
    def adjust(given: dict[str, Any]) -> dict[str, Any]:
        assert given["seed"] == 3
        assert given["learning_rate"] == 0.01
        assert "weight_decay" not in given
        return {"learning_rate": 5.0, "seed": 5, "weight_decay": 0.5, "train_split": "adjusted"}

    data, args = parse("learning_rate: 1e-2\nseed: 2\n", "--seed", "3", adjust=adjust)
    assert (args.learning_rate, args.seed, args.weight_decay, args.warmup_steps) == (0.01, 3, 0.5, 0.1)
    assert (data.train_split, data.max_samples) == ("adjusted", None)


def test_values_of_a_file_are_read_as_flags_are(parse):
    data, args = parse(
        "train_split: 2\nlearning_rate: 1e-3\nnum_train_epochs: 2\nbf16: false\ndisable_tqdm: true\n"
        "save_total_limit: null\nclusterer_kwargs: {eps: 0.4, k1: 20}\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "report_to: [none]\nrefinement: none\nresume_from_checkpoint: true\nhub_private_repo: true\n"
    )
    assert (data.train_split, args.learning_rate, args.num_train_epochs) == ("2", 1e-3, 2.0)
    assert (args.bf16, args.disable_tqdm, args.save_total_limit) == (False, True, None)
    assert (args.clusterer_kwargs, args.lr_scheduler_kwargs) == ({"eps": 0.4, "k1": 20}, {"num_cycles": 2})
    assert (args.refinement, args.resume_from_checkpoint, args.hub_private_repo) == ("none", "last", True)


def test_flags_may_stand_without_a_value(parse):
    _, args = parse(None, "--bf16", "--overwrite", "--resume_from_checkpoint", "--hub_private_repo", "--seed=7")
    assert (args.bf16, args.overwrite, args.resume_from_checkpoint, args.hub_private_repo) == (True, True, "last", True)
    assert args.seed == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("refinement: &a [x]\nclusterer: *a\n", "aliases"),
        ("seed: " + "[" * 10**6, "it is nested more than 20 deep"),
        ("1: 2\nx: 3\n", "unknown arguments: 1, x"),
        ("seed: 2020-13-41\n", "month must be in 1..12"),
        ("seed: 2020-01-01\n", "seed is read as a date"),
        ("seed: true\n", "invalid int value: 'True'"),
        ("learning_rate: fast\n", "invalid float value: 'fast'"),
        ("num_clusters: 1.5\n", "invalid int value: '1.5'"),
        ("learning_rate: [1.0]\n", "learning_rate takes one value, not a list"),
        ("refinement: {a: 1}\n", "refinement takes one value, not a dict"),
        ("refinement: magic\n", "invalid choice: 'magic' (choose from "),
        ("report: no\n", "report is read as a bool: put it in quotes"),
        ("metric_for_best_model: true\n", "metric_for_best_model is read as a bool: put it in quotes"),
        ("temperature: 0\n", "temperature=0.0 must be above 0"),
        ("help: true\n", "unknown argument: help"),
        ("config: other.yaml\n", "unknown argument: config"),
        ("- seed\n", "expected 'name: value' lines, got list"),
        ("seed: 1: 2\n", "mapping values are not allowed here"),
        (b"\xff\xfe\x00", "run.yaml"),
    ],
)
def test_files_that_do_not_fit_are_named_in_one_line(parse, tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as ended:
        parse(text)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path / "run.yaml") in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_cluster", "5"), "error: unrecognized arguments: --num_cluster 5; did you mean --num_clusters?"),
        (("--refinement", "magic"), "invalid choice: 'magic' (choose from "),
        (("--num_clusters", "many"), "argument --num_clusters/--num-clusters: invalid int value: 'many'"),
        (("--temperature", "0"), "error: temperature=0.0 must be above 0"),
        (("--config", "nowhere.yaml"), "--config nowhere.yaml: [Errno 2] No such file or directory"),
    ],
)
def test_flags_that_do_not_fit_are_named_in_one_line(parse, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        parse(None, *flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_is_short_unless_all_is_asked_for(parse, capsys):
    helps = []
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as ended:
            parse(None, flag)
        assert ended.value.code == 0
        helps.append(capsys.readouterr().out)
    for text in helps:
        for name in ("--train_split", "--num_clusters", "--learning_rate", "--overwrite", "--config"):
            assert text.count(f"  {name}\n") == 1
        assert "(default: kmeans)" in text
        assert "all_checkpoints" not in text  # which is refused
        about = text.split("  --freeze_layers\n")[1].split("\n  --")[0]
        assert "efault" in about
        assert "0" in about
    assert "--deepspeed" not in helps[0]
    assert "--deepspeed" in helps[1]


def test_the_objective_of_the_recipe_for_sounds_picks_the_arguments(tmp_path, capsys):
    recipe = load_script(HUBERT_PLR)
    output = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    (tmp_path / "run.yaml").write_text("objective: frames\nrelabel_every: 3\n")
    chosen, args = recipe.parse([*output, "--config", str(tmp_path / "run.yaml"), "--model_name_or_path", "model"])
    assert (chosen.objective, args.relabel_every) == ("frames", 3)
    assert {"first_units", "learning_rate"} <= args.by_default  # what they are, the trainer decides by the backbone
    assert isinstance(args, UnitTrainingArguments)
    assert not isinstance(args, PLRTrainingArguments)
    _, args = recipe.parse([*output, "--temperature", "0.1"])
    assert isinstance(args, PLRTrainingArguments)
    assert not isinstance(args, UnitTrainingArguments)
    for objective in (["--objective", "frames"], ["--cluster_space", "white"]):  # both have a whitening of their own
        assert recipe.parse([*output, *objective, "--whitening_shrinkage", "0.5"])[1].whitening_shrinkage == 0.5
    for flags, message in (
        (["--objective", "frames", "--temperature", "0.1"], "temperature=0.1 has no effect on units of frames: leave"),
        (["--relabel_every", "3"], "relabel_every=3 has no effect on labels of recordings: leave it out, or add "),
        (["--config", str(tmp_path / "run.yaml"), "--min_confidence", "0.5"], "min_confidence=0.5 has no effect on "),
    ):
        with pytest.raises(SystemExit):
            recipe.parse([*output, *flags])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe.parse(["--help"])
    text = capsys.readouterr().out
    for name in ("--objective", "--output_dir", "--temperature", "--clusterer", "--relabel_every", "--num_clusters"):
        assert text.count(f"  {name}\n") == 1
    assert "--relabel_every\n        Frames: " in text


def test_of_several_files_the_later_ones_win_and_flags_over_all(parse, tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 1\nnum_clusters: 4\nweight_decay: 0.3\n")
    _, args = parse("seed: 2\nweight_decay: 0.2\n", "--weight_decay", "0.1")
    assert (args.seed, args.num_clusters, args.weight_decay) == (2, None, 0.1)
    parser = RecipeParser([DataArguments, Arguments], "", lambda given: {})
    files = ["--config", str(tmp_path / "base.yaml"), "--config", str(tmp_path / "run.yaml"), "--weight_decay", "0.1"]
    _, args = parser.parse_args_and_config([*files, "--output_dir", str(tmp_path), "--use_cpu", "true"])
    assert (args.seed, args.num_clusters, args.weight_decay) == (2, 4, 0.1)


@pytest.mark.parametrize("text", ["seed: 1\nnum_clusters: 8\nseed: 2\n", "clusterer_kwargs: {seed: 1, seed: 2}\n"])
def test_a_name_that_stands_twice_is_refused(parse, capsys, text):
    with pytest.raises(SystemExit):
        parse(text)
    assert "run.yaml: seed stands in it twice: leave one of them" in capsys.readouterr().err


def test_numbers_with_exponents_are_numbers_within_other_values_too(parse):
    _, args = parse(
        "learning_rate: 1e-2\nlr_scheduler_type: cosine_with_min_lr\n"
        "lr_scheduler_kwargs: {min_lr: 1e-6, a: [2E+3, 1e]}\n"
        "run_name: 12e3\n"
    )
    assert (args.learning_rate, args.run_name) == (0.01, "12e3")
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-6, "a": [2000.0, "1e"]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("true", "last"), ("True", "last"), ("false", None), ("False", None), ("x/false", "x/false")],
)
def test_a_flag_with_an_optional_text_may_be_true_or_false(parse, given, expected):
    for text, flags in ((f"resume_from_checkpoint: {given}\n", ()), (None, ("--resume_from_checkpoint", given))):
        assert parse(text, *flags)[1].resume_from_checkpoint == expected
    assert parse(f"resume_from_checkpoint: '{given}'\n")[1].resume_from_checkpoint == expected
    assert parse(None, "--resume_from_checkpoint")[1].resume_from_checkpoint == "last"
