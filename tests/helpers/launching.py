"""Recipes and scripts: in this process, in one of their own, and under `accelerate launch`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import datasets
import evaluate
import torch
import transformers

from helpers.paths import ACCELERATE_CONFIGS, REPOSITORY, TESTS, VIT_PLR
from helpers.processes import reserve_port, run_processes
from hf_plr.recipe_tools.running import run_recipe


def launch(
    *arguments: object,
    processes: int = 1,
    cwd: Path = REPOSITORY,
    script: Path = VIT_PLR,
    config: str = "cpu_2.yaml",
) -> subprocess.CompletedProcess[str]:
    """Run a script under `accelerate launch`: two processes or more by one of the recipes' own files."""
    with reserve_port() as port:
        command = launcher_command(script, arguments, processes, config, ("--main_process_port", port))
        [run] = run_processes([command], [launcher_environment(script)], cwd, timeout=600)
    return run


def launch_machines(
    *arguments: object, machines: int, processes: int, config: str = "multi_node.yaml", script: Path = VIT_PLR
) -> list[subprocess.CompletedProcess[str]]:
    """Run a script under as many launchers as machines, which all are this one, with so many processes in all."""
    with reserve_port() as port:
        address = ("--main_process_ip", "127.0.0.1", "--main_process_port", port)
        commands = [
            launcher_command(script, arguments, processes, config, ("--machine_rank", rank, *address))
            for rank in range(machines)
        ]
        return run_processes(commands, [launcher_environment(script)] * machines, REPOSITORY, timeout=600)


def launcher_command(
    script: Path, arguments: Sequence[object], processes: int, config: str, options: Sequence[object]
) -> list[str]:
    """Make the command that starts a script in so many processes; `options` are for several alone."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    if processes > 1:
        command += ["--config_file", ACCELERATE_CONFIGS / config, *options]
    return [*map(str, command), str(script), *map(str, arguments)]


def launcher_environment(script: Path) -> dict[str, str]:
    """Variables for a launcher of a script."""
    environment = environment_of(script)
    environment.pop("OMP_NUM_THREADS", None)  # one thread is the launcher's own default
    return environment


def run_script(*arguments: object, cwd: Path = REPOSITORY, script: Path = VIT_PLR) -> subprocess.CompletedProcess[str]:
    """Run a script without the launcher."""
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=cwd,
        env=environment_of(script),
        capture_output=True,
        text=True,
        timeout=600,
    )


def call(*arguments: object, cwd: Path = REPOSITORY, script: Path = VIT_PLR) -> subprocess.CompletedProcess[str]:
    """Run a recipe as a user does, but in this process: nothing has to be imported again."""
    module = load_script(script)
    command = [str(script), *map(str, arguments)]
    before = sys.argv, Path.cwd(), torch.get_num_threads()
    output, errors = io.StringIO(), io.StringIO()
    sys.argv = [*command, "--cpu_threads", "1"]
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = _exit_code(lambda: run_recipe(module.main))
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
        torch.set_num_threads(before[2])
        # A recipe hides bars where there is no terminal.
        transformers.logging.enable_progress_bar()
        datasets.enable_progress_bars()
        evaluate.logging.enable_progress_bar()
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())


def _exit_code(run: Callable[[], object]) -> int:
    """The exit code of a program that does this."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def environment_of(script: Path) -> dict[str, str]:
    """Variables for a script: without the Hub, and a script of the tests finds the helpers."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if TESTS in script.parents:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), environment.get("PYTHONPATH")]))
    return environment


def load_script(script: Path) -> ModuleType:
    """Import a recipe as a module."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[script.stem] = importlib.util.module_from_spec(spec)  # dataclasses look annotations up there
    spec.loader.exec_module(module)
    return module


def alone(script: Path, arguments: Sequence[object]) -> None:
    """Run a recipe in this process: nothing has to be imported again."""
    load_script(script).main([*map(str, arguments), "--cpu_threads", "1"])
