"""Start a recipe by `accelerate launch`: signals reach it, and only its own output and exit status come back."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from hf_plr.recipe_tools.launch_environment import COMMAND, ERRORS_DIR, LOGS, has_reported_error, note_chosen_threads

ONE_PROCESS = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


class Failure(Protocol):
    """Failure of a process, as torch reports it."""

    local_rank: int
    exitcode: int


def launch(command: str, script: Path, arguments: Sequence[str], options: Sequence[str]) -> int:
    """Run a script in one process or several; on POSIX, one process takes the place of this one.

    Args:
        command: the typed command, for the script's messages.
        script: the script.
        arguments: the script's arguments.
        options: options of `accelerate launch`. Without --config_file and a file of `accelerate config`, options that
            fit this machine are added.

    Returns:
        The exit status of the process that failed first; 128 and the signal's number if a signal ended it.

    Raises:
        ValueError, OSError, ImportError: if accelerate cannot launch with these options.
    """
    # Imported here: they need torch.
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = [*_complete_options(options, script.parent), *options]
    # Accelerate's own launcher waits for a child, passes no signal on to it, and ends with a traceback if it fails.
    accelerate_launch.simple_launcher = _replace_process
    elastic_logger = logging.getLogger("torch.distributed.elastic")  # repeats errors at length
    elastic_logger.addHandler(logging.NullHandler())
    elastic_logger.propagate = False
    os.environ[COMMAND] = command
    note_chosen_threads()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ERRORS_DIR] = folder
        options += ["--log_dir", os.path.join(folder, LOGS)]  # torch would leave its own behind
        args = accelerate_launch.launch_command_parser().parse_args([*options, str(script), *arguments])
        try:
            accelerate_launch.launch_command(args)
        except ChildFailedError as error:
            return compute_exit_status(error.failures.values())
        except SignalException as error:  # all processes have ended by it
            return 128 + error.sigval
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


def _complete_options(options: Sequence[str], recipes: Path) -> list[str]:
    """List options that accelerate would guess with a warning; none if a file has them."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    if "--config_file" in options:
        return []
    gpus = torch.cuda.device_count()
    n_requested = int(options[options.index("--num_processes") + 1]) if "--num_processes" in options else None
    if os.path.isfile(default_config_file) and not (n_requested and n_requested > 1 and gpus == 0):
        return []
    processes = n_requested or max(gpus, 1)
    if processes == 1:
        return list(ONE_PROCESS)
    config = recipes / "configs" / "accelerate" / ("multi_gpu.yaml" if gpus else "cpu_2.yaml")
    return ["--config_file", str(config), "--num_processes", str(processes)]


def _replace_process(args: argparse.Namespace) -> None:
    """Replace this process by the script, so that signals and waiting parents reach the script."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    os.rmdir(environment.pop(ERRORS_DIR))  # only several processes need it
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # exec on Windows starts a process that nobody waits for
        sys.exit(subprocess.run(command, env=environment).returncode)
    os.execvpe(command[0], command, environment)


def compute_exit_status(failures: Iterable[Failure]) -> int:
    """Compute the exit status of several processes; prints the signal that ended one if no error was reported."""
    ordered = list(failures)
    failed = [failure for failure in ordered if failure.exitcode > 0]
    # torch itself sends SIGTERM to the other processes once one has failed.
    killed = [failure for failure in ordered if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM]
    if failed and (has_reported_error() or not killed):
        return failed[0].exitcode
    cause = (killed or ordered)[0]
    print(f"error: process {cause.local_rank} was ended by {signal.Signals(-cause.exitcode).name}", file=sys.stderr)
    return 128 - cause.exitcode
