"""`hf-plr train`: what it hands to whom, and what comes back from one process and from two."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.paths import ACCELERATE_CONFIGS, RECIPES
from transformers import AutoModelForImageClassification, CLIPVisionConfig, CLIPVisionModel, set_seed

from hf_plr.cli import finetune, main, train
from hf_plr.models.vision import small_vit_processor
from hf_plr.recipe_tools import launcher
from hf_plr.recipe_tools.launch_environment import COMMAND, ERRORS_DIR, LOGS, UniqueErrorStream, localize_commands
from hf_plr.recipe_tools.launch_environment import RECIPES as SCRIPTS

# Stands for a recipe, and needs no torch.
SCRIPT = """
import os, signal, sys, time
from hf_plr.recipe_tools.launch_environment import adopt_launch
def stop(*_):
    sys.exit(128 + signal.SIGTERM)
signal.signal(signal.SIGTERM, stop)
adopt_launch()
if sys.argv[1] == "wait":
    os.write(1, b"ready\\n")  # at once: print writes the end of the line by itself
    time.sleep(60)
print(f"{os.path.basename(sys.argv[0])}: error: wrong", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def launched(monkeypatch):
    """What would have been launched: script, its arguments, and accelerate's options."""
    calls: list[tuple[str, Path, list[str], list[str]]] = []
    monkeypatch.setattr(launcher, "launch", lambda *call: calls.append(call) or 0)
    return calls


def start(code: str, tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start code in a process, as a terminal would start a program: neither threads nor accelerate are set up."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    )


def start_script(tmp_path: Path, processes: int, argument: str) -> subprocess.Popen[str]:
    """Launch `SCRIPT` in so many processes."""
    script = tmp_path / "recipe.py"
    script.write_text(SCRIPT)
    options = ["--num_processes", "2", "--config_file", str(ACCELERATE_CONFIGS / "cpu_2.yaml")][: 4 * (processes > 1)]
    code = f"""
import sys
from pathlib import Path
from hf_plr.recipe_tools.launcher import launch
sys.exit(launch("hf-plr train fake", Path(sys.argv[1]), [sys.argv[2]], {options!r}))
"""
    return start(code, tmp_path, script, argument)


def test_arguments_go_to_the_recipe_and_options_to_accelerate(launched):
    status = main(
        ["train", "image", "--seed", "1", "--num_processes=2", "--config", "photos", "--main_process_port", "0"]
        + ["--clusterer_kwargs", '{"eps": 0.5}']
    )
    [(command, script, arguments, options)] = launched
    assert status == 0
    assert (command, script) == ("hf-plr train image", RECIPES / "vit_plr.py")
    assert arguments == [
        *("--seed", "1", "--config", str(RECIPES / "configs" / "photos.yaml")),
        *("--clusterer_kwargs", '{"eps": 0.5}'),
    ]
    assert options == ["--num_processes", "2", "--main_process_port", "0"]


def test_options_may_come_before_the_recipe(launched):
    main(["train", "--config_file", "cpu_2", "reid", "--config=omniglot"])
    [(_, script, arguments, options)] = launched
    assert script == RECIPES / "reid_plr.py"
    assert arguments == [f"--config={RECIPES / 'configs' / 'omniglot.yaml'}"]
    assert options == ["--config_file", str(ACCELERATE_CONFIGS / "cpu_2.yaml")]


def test_a_file_goes_before_a_shipped_config_and_a_folder_does_not(launched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omniglot").mkdir()
    (tmp_path / "photos").write_text("seed: 1")
    main(["train", "image", "--config", "photos"])
    main(["train", "reid", "--config", "omniglot"])
    assert [call[2][1] for call in launched] == ["photos", str(RECIPES / "configs" / "omniglot.yaml")]


@pytest.mark.parametrize("command", [train, finetune])
def test_every_recipe_is_listed(capsys, command):
    name = command.__name__.rsplit(".", 1)[-1]
    assert main([name]) == 0
    out = capsys.readouterr().out
    for recipe, script in SCRIPTS[name].items():
        assert (RECIPES / script).is_file()
        assert f"\n  {recipe:<7} {command.DATA[recipe]}\n" in out


def test_a_classifier_is_fine_tuned_by_its_own_recipe(launched):
    assert main(["finetune", "audio", "--labels_per_class", "10", "--num_processes", "2"]) == 0
    [(command, script, arguments, options)] = launched
    assert (command, script) == ("hf-plr finetune audio", RECIPES / "finetune_audio.py")
    assert arguments == ["--labels_per_class", "10"]
    assert options == ["--num_processes", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video"], "'video' is not a recipe: choose image, audio, reid, before its arguments"),
        (["--seed", "1", "image"], "'--seed' is not a recipe: choose image, audio, reid, before its arguments"),
        (["image", "--num_processes", "0"], "argument --num_processes: 0 must be at least 1"),
        (["image", "--config_file", "cpu"], "--config_file cpu: no such file; give a path, or one of cpu_2, "),
        (
            ["reid", "--config", "omni.yaml"],
            "--config omni.yaml: no such file; give a path, or one of cluster_contrast_",
        ),
    ],
)
def test_what_is_wrong_is_one_line(capsys, launched, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith(f"hf-plr train: error: {message}")
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not launched


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no 'name: value' lines"),
        ("[1, 2]", "it holds no 'name: value' lines"),
        ("a: [1", "expected ',' or ']'"),
        ("num_processes: two", "num_processes is 'two', but is a whole number"),
    ],
)
def test_a_file_that_accelerate_could_not_read_is_named(tmp_path, capsys, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--config_file", str(path), "image"])
    error = capsys.readouterr().err
    assert f"--config_file {path}: " in error
    assert message in error


@pytest.mark.parametrize(
    ("options", "gpus", "config_file", "expected"),
    [
        ([], 0, False, list(launcher.ONE_PROCESS)),
        ([], 1, False, list(launcher.ONE_PROCESS)),
        ([], 4, False, ["--config_file", "multi_gpu.yaml", "--num_processes", "4"]),
        (["--num_processes", "2"], 0, False, ["--config_file", "cpu_2.yaml", "--num_processes", "2"]),
        (["--num_processes", "1"], 4, False, list(launcher.ONE_PROCESS)),
        (["--config_file", "mine.yaml"], 4, False, []),
        ([], 4, True, []),
        (["--num_processes", "2"], 0, True, ["--config_file", "cpu_2.yaml", "--num_processes", "2"]),
    ],
)
def test_defaults_fit_the_machine(monkeypatch, tmp_path, options, gpus, config_file, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    file = tmp_path / "default_config.yaml"
    if config_file:
        file.touch()
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(file))
    found = launcher._complete_options(options, RECIPES)
    assert [Path(word).name if word.endswith(".yaml") else word for word in found] == expected


def test_one_process_takes_the_place_of_the_launcher(monkeypatch, tmp_path):
    def replace(program, command, environment):
        raise InterruptedError(json.dumps([command, environment[COMMAND], ERRORS_DIR in environment]))

    monkeypatch.setattr(os, "execvpe", replace)
    monkeypatch.setattr("accelerate.commands.launch.simple_launcher", None)
    for name in (COMMAND, ERRORS_DIR):
        monkeypatch.setenv(name, "")
    with pytest.raises(InterruptedError) as called:
        launcher.launch("hf-plr train image", tmp_path / "recipe.py", ["--seed", "1"], ["--num_processes", "1"])
    command = [sys.executable, str(tmp_path / "recipe.py"), "--seed", "1"]
    assert json.loads(str(called.value)) == [command, "hf-plr train image", False]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_one_line_and_its_status_is_the_status(tmp_path, processes):
    process = start_script(tmp_path, processes, "2")
    out, err = process.communicate(timeout=120)
    assert (out, err, process.returncode) == ("", "hf-plr train fake: error: wrong\n", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.py"]  # TMPDIR is there


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_reaches_the_processes(tmp_path, processes):
    process = start_script(tmp_path, processes, "wait")
    assert process.stdout is not None
    for _ in range(processes):
        assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (err, process.returncode) == ("", 128 + signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("image", 2), ("audio", 1)])
def test_recipes_run(tmp_path, name, processes):
    arguments = [
        "--num_processes",
        processes,
        "--max_samples",
        40,
        "--max_steps",
        1,
        "--report",
        "no",
        "--cpu_threads",
        1,
    ]
    code = "import sys; from hf_plr.cli import main; sys.exit(main())"
    process = start(code, tmp_path, "train", name, *arguments, "--output_dir", "out")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Results in out:" in out
    assert f"hf-plr train {name} --dataset_name" in out
    assert "accelerate launch" not in out + err
    for noise in ("were not passed to `accelerate launch`", "Writing model shards", "Loading weights", "Map:"):
        assert noise not in err


@pytest.mark.slow
def test_two_processes_fine_tune_one_classifier(tmp_path, some_digits):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPVisionConfig(image_size=32, patch_size=16, **sizes)
    set_seed(0)
    CLIPVisionModel(config).save_pretrained(tmp_path / "start")
    small_vit_processor(32).save_pretrained(tmp_path / "start")
    (tmp_path / "data").mkdir()
    for split, rows in (("train", range(40)), ("test", range(40, 60))):
        some_digits.select(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    code = "import sys; from hf_plr.cli import main; sys.exit(main())"
    arguments = ["--model_name_or_path", "start", "--dataset_name", "data", "--output_dir", "out", "--max_steps", 2]
    options = ["--num_processes", 2, "--per_device_train_batch_size", 4, "--logging_strategy", "steps"]
    process = start(code, tmp_path, "finetune", "image", *arguments, *options, "--logging_steps", 1)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("Trained on 40 labels of 10 classes") == 1
    [first, *_] = map(float, re.findall(r"'loss': '?([0-9.]+)", out))
    assert first < 1.6 * math.log(10)  # near that of chance; multiplied by the processes it would be twice as much
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.num_labels == 10


def test_a_line_of_an_error_is_written_by_one_process_only(tmp_path):
    streams = io.StringIO(), io.StringIO()
    for stream in streams:
        once = UniqueErrorStream(stream, tmp_path)
        print("hf-plr train image: error: wrong", file=once)
        print("a warning", file=once)
        once.write("half a ")
        once.write("line\nerror: wr")
        once.write("ong\nrest")
        once.flush()
    assert streams[0].getvalue() == "hf-plr train image: error: wrong\na warning\nhalf a line\nerror: wrong\nrest"
    assert streams[1].getvalue() == "a warning\nhalf a line\nrest"


@pytest.mark.parametrize(
    ("exit_codes", "told", "status"),
    [([2, 2], True, 2), ([1, -15], False, 1), ([1, -9], False, 137), ([1, -9], True, 1), ([-15], False, 143)],
)
def test_status_of_several_processes(monkeypatch, tmp_path, exit_codes, told, status):
    monkeypatch.setenv(ERRORS_DIR, str(tmp_path))
    (tmp_path / LOGS).mkdir()
    if told:
        (tmp_path / "error").touch()
    failures = [SimpleNamespace(local_rank=i, exitcode=code) for i, code in enumerate(exit_codes)]
    assert launcher.compute_exit_status(failures) == status


def test_commands_are_told_as_they_were_typed(monkeypatch):
    text = "accelerate launch recipes/reid_plr.py --config recipes/configs/omniglot.yaml"
    monkeypatch.delenv(COMMAND, raising=False)
    assert localize_commands(text) == text
    monkeypatch.setenv(COMMAND, "hf-plr train reid")
    assert localize_commands(text) == "hf-plr train reid --config omniglot"
    assert localize_commands("accelerate launch recipes/finetune_image.py") == "hf-plr finetune image"
