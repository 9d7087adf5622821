"""Shared parts of all recipes: threads, training, the results of a run, and errors without a traceback."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets
import evaluate
import huggingface_hub
import numpy as np
import torch
import transformers
from transformers import TrainingArguments

from hf_plr.hub.push import HubError
from hf_plr.recipe_tools.launch_environment import (
    adopt_launch,
    has_chosen_threads,
    has_reported_error,
    localize_commands,
)
from hf_plr.recipe_tools.output_folder import OutputArguments, claim_output_dir
from hf_plr.report.terminal_summary import format_summary
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.callbacks import TrainingStopped
from hf_plr.trainer.checkpoints.finding import CheckpointError, resume_hint
from hf_plr.training_args import PLRTrainingArguments
from hf_plr.training_args.base import LAUNCHED_PRECISION
from hf_plr.utils.cores import count_cores
from hf_plr.utils.distributed import MainProcessError, wait_for_all
from hf_plr.utils.locks import release_folder
from hf_plr.utils.streams import escape_what_streams_lack

SOUND_ARGUMENTS = (  # which recipes for images do not show
    *("audio_column", "max_seconds", "segment_seconds", "segment_overlap"),
    *("sound_cache_gib", "sound_cache_dir"),
)


@dataclass
class DataArguments:
    """Arguments for the part of the data to train on, and the number of threads."""

    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    max_samples: int | None = field(
        default=None, metadata={"help": "Train on at most this many samples, drawn at random: a first try."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the data set as it comes, and of it only the first max_samples; no test split. They are kept "
            "in the cache of datasets for the next start."
        },
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads per process on CPUs. Default: OMP_NUM_THREADS, or all cores where one process runs alone."
        },
    )


class SampleArguments(Protocol):
    """Arguments of a recipe that trains on a part of the rows if it is told to."""

    max_samples: int | None


def run_recipe(main: Callable[[], object]) -> None:
    """Run a recipe's main function, and report errors in arguments or data in one line."""
    escape_what_streams_lack()
    transformers.logging.set_verbosity_warning()
    adopt_launch()
    if not sys.stderr.isatty():
        hide_bars()
    try:
        main()
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("Interrupted: --resume_from_checkpoint resumes from the last checkpoint, if any.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, ValueError, TypeError, ImportError, CheckpointError, WorkerError, HubError) as error:
        sys.exit(f"error: {error}")
    except MainProcessError:
        sys.exit(1)
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error):
            if has_reported_error():
                sys.exit(1)
            sys.exit("error: another process of this run has ended, so this one cannot continue; see its message")
        if "to be installed" in str(error):  # for an integration, as --report_to wandb
            sys.exit(f"error: {error}")
        if "DataLoader worker" not in str(error):
            raise
        sys.exit(f"error: {describe_dead_worker(error)}")
    # Frees the process group now: gloo's threads abort if that happens as the interpreter shuts down.
    gc.collect()


class WorkerError(RuntimeError):
    """A process that loads samples has ended during training."""


def describe_dead_worker(error: RuntimeError) -> str:
    """Describe that a process that loads samples has ended, by torch's error; memory is named where it may be why."""
    text = str(error).strip().rstrip(".")
    is_memory = "signal: Killed" in text or "signal: Bus error" in text
    return f"{text}. It may have run out of memory." if is_memory else f"{text}."


def hide_bars() -> None:
    """Hide the progress bars of the libraries that load data and weights: in a log, each step is a line."""
    transformers.logging.disable_progress_bar()  # and those of huggingface_hub
    datasets.disable_progress_bars()
    evaluate.logging.disable_progress_bar()


def set_cpu_threads(threads: int | None, args: TrainingArguments) -> None:
    """Use all cores in a single process, unless the user has set `OMP_NUM_THREADS`, which torch has taken."""
    is_alone = args.device.type == "cpu" and args.world_size == 1
    if threads is not None:
        torch.set_num_threads(threads)
    elif is_alone and not has_chosen_threads(is_launched=LAUNCHED_PRECISION in os.environ):
        torch.set_num_threads(count_cores())


def check_given_labels(recipe: SampleArguments, args: PLRTrainingArguments) -> None:
    """Reject labels of all rows of the data for a part of the rows.

    Raises:
        ValueError: if both `labels` and `max_samples` are given.
    """
    if args.labels is not None and recipe.max_samples is not None:
        raise ValueError(
            f"--max_samples {recipe.max_samples} draws some rows, but --labels tells of all by their numbers: leave it "
            "out; rows without a label are in no cluster"
        )


def score_and_train(trainer: BaseTrainer, args: OutputArguments, rows: np.ndarray) -> None:
    """Score, train, and score again; `rows` as for `write_results`."""
    trainer.reporter.rows = rows
    claim_output_dir(trainer, args)
    trainer.score("before")
    train(trainer, args)
    trainer.score("after")


def train(trainer: BaseTrainer, args: OutputArguments) -> None:
    """Train, from the start or from a checkpoint.

    Raises:
        WorkerError: if a process that loads samples has ended, with the checkpoint to resume from, if any.
    """
    if transformers.logging.is_progress_bar_enabled():  # one per checkpoint would break the run's own bar
        transformers.logging.disable_progress_bar()
        huggingface_hub.utils.enable_progress_bars()  # the same call has hidden them; a push shows them
    try:
        trainer.train(resume_from_checkpoint=args.resumes_from)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerError(f"{describe_dead_worker(error)} {resume_hint(Path(str(args.output_dir)))}") from error


def write_results(
    trainer: BaseTrainer, rows: np.ndarray, started: float, next_command: tuple[str, str], card: dict[str, Any]
) -> None:
    """Write everything to the output folder, print a summary, and push to the Hub if the arguments ask for it.

    Args:
        trainer: the trained trainer, on every process.
        rows: rows of the training samples in the original data.
        started: `time.perf_counter()` at the start.
        next_command: a command to try next and what it does, for the summary.
        card: arguments of the model card.
    """
    args = trainer.args
    trainer.save_model(_internal_call=True)  # a push, if any, takes the whole folder at the end
    trainer.save_labels(str(args.output_dir), rows)
    trainer.create_model_card(**card)
    seconds = time.perf_counter() - started
    trainer.publisher.write_metrics(seconds)
    trainer.write_report(rows)
    if trainer.is_world_process_zero():
        command, purpose = next_command
        print(format_summary(trainer.summary(), seconds, (localize_commands(command), purpose)))
    try:
        if args.push_to_hub:
            push(trainer, card)
    finally:
        # A process that leaves early and fails takes the others with it.
        wait_for_all(trainer.accelerator, "writing the results")
        if trainer.is_world_process_zero():
            release_folder(str(args.output_dir))
        trainer.accelerator.end_training()


def suggest_push(output_dir: str | None) -> tuple[str, str]:
    """The command to try after a run on one's own data, and what it does."""
    return (
        f"hf-plr push {shlex.quote(str(output_dir))} --repo USER/NAME",
        "all of it on the Hub",
    )


def push(trainer: BaseTrainer, card: dict[str, Any]) -> None:
    """Push the results to the Hub.

    Raises:
        HubError: if the push fails, with the command to push again.
    """
    args = trainer.args
    try:
        commit = trainer.push_to_hub(**card)
    except HubError as error:
        words = ["hf-plr", "push", str(args.output_dir), "--repo", str(trainer.hub_model_id)]
        words += ["--private"] if args.hub_private_repo else []
        words += ["--revision", args.hub_revision] if args.hub_revision else []
        raise HubError(
            f"the results are in {args.output_dir}, but not on the Hub: {error}\nPush them with: {shlex.join(words)}"
        ) from error
    if trainer.is_world_process_zero():
        print(f"On the Hub: {commit.repo_url}")
