"""Shared parts of all recipes: the output folder, threads, the results of a run, and errors without a traceback."""

from __future__ import annotations

import gc
import os
import shlex
import shutil
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
from accelerate import PartialState
from transformers import TrainingArguments

from hf_plr.hub.push import HubError
from hf_plr.models.adapter_files import ADAPTER_FOLDER
from hf_plr.recipe_tools.launch_environment import adopt_launch, has_reported_error, localize_commands
from hf_plr.report.file_names import METRICS_FILE
from hf_plr.report.terminal_summary import format_summary
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.callbacks import TrainingStopped
from hf_plr.trainer.checkpointing import (
    ASIDE,
    CheckpointError,
    last_complete_checkpoint,
    list_checkpoints,
    resume_hint,
)
from hf_plr.trainer.start import check_start, leaves_no_empty_folder
from hf_plr.training_args import PLRTrainingArguments
from hf_plr.training_args.base import LAUNCHED_PRECISION
from hf_plr.utils.cores import count_cores
from hf_plr.utils.distributed import MainProcessError, run_on_main, wait_for_all
from hf_plr.utils.locks import claim_folder, release_folder
from hf_plr.utils.run_files import BACKBONE_FILES, WRITTEN, find_files, holds_run, matches
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


@dataclass
class OutputArguments:
    """Arguments for the output folder: a mixin for subclasses of `BaseTrainingArguments`."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the results."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Resume from the last checkpoint in output_dir, or from the one named here.",
            "nargs": "?",
            "const": "last",
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the results of a run in output_dir."})
    hub_private_repo: bool | None = field(
        default=None,
        metadata={"help": "Push to a private repository. Default: as the Hub does.", "nargs": "?", "const": True},
    )

    @property
    def empties_output_dir(self) -> bool:
        """Whether the results of an earlier run in `output_dir` are removed before training begins."""
        return self.overwrite and self.resume_from_checkpoint is None


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
    """Use all cores in a single process, unless `OMP_NUM_THREADS` has another number.

    `accelerate launch` sets it to 1 where it is not set: that is nobody's choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif args.device.type == "cpu" and args.world_size == 1:
        chosen = os.environ.get("OMP_NUM_THREADS")  # torch has taken it
        if not chosen or (chosen == "1" and LAUNCHED_PRECISION in os.environ):
            torch.set_num_threads(count_cores())


def check_output_dir(args: OutputArguments) -> None:
    """Reject an output folder that would mix two runs.

    Raises:
        ValueError: if `output_dir` is a file, if it holds a run and neither flag is set, or if no run can be resumed.
    """
    folder = Path(str(args.output_dir))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: name a folder")
    if args.resume_from_checkpoint == "last" and last_complete_checkpoint(folder)[0] is None:
        raise ValueError(f"--resume_from_checkpoint: {folder} holds no complete checkpoint")
    if args.resume_from_checkpoint is not None or args.overwrite:
        return
    if (folder / METRICS_FILE).is_file() or (holds_run(folder) and not list_checkpoints(folder)):
        raise ValueError(f"{folder} holds a finished run: --overwrite replaces it, another --output_dir keeps it")
    if holds_run(folder):
        raise ValueError(
            f"{folder} holds a run: --resume_from_checkpoint completes its results, if it was killed while it wrote "
            "them; --overwrite replaces it, and another --output_dir keeps it"
        )
    if list_checkpoints(folder):
        raise ValueError(
            f"{folder} holds an unfinished run: --resume_from_checkpoint resumes it, --overwrite starts anew"
        )


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


def prepare_output_dir(args: OutputArguments, is_main_process: bool, start: str = "") -> None:
    """Remove an earlier run, if --overwrite is set: its checkpoints, its adapters, and the files of `WRITTEN`.

    Args:
        args: the arguments of the new run. Labels that it is given stay, also in this folder.
        is_main_process: False removes nothing.
        start: name or path of the backbone that the new run starts from; one in this folder stays.
    """
    folder = Path(str(args.output_dir))
    if not (is_main_process and args.empties_output_dir):
        return
    for checkpoint in (*list_checkpoints(folder), folder / ASIDE, folder / ADAPTER_FOLDER):
        shutil.rmtree(checkpoint, ignore_errors=True)
    labels = getattr(args, "labels", None)
    for path in find_files(folder, WRITTEN):
        is_start = bool(start) and _is_same(start, folder) and matches(path, BACKBONE_FILES)
        is_given = labels is not None and (
            _is_same(labels, path) or (_is_same(labels, folder) and path.suffix == ".parquet")
        )
        if not is_start and not is_given:
            path.unlink(missing_ok=True)


def _is_same(one: str | Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


@leaves_no_empty_folder
def claim_output_dir(trainer: BaseTrainer, args: OutputArguments) -> None:
    """Check that training can begin, then remove the earlier run that --overwrite replaces; called on every process.

    Another run may have begun in the folder since the arguments were read, so they are checked again.

    Raises:
        CheckpointError, ValueError: as `check_start`; nothing is removed then.
    """
    run_on_main(trainer.accelerator, lambda: _claim(args), "claiming the output folder")
    try:
        check_start(trainer, _resumes(args))
    except BaseException:
        if trainer.is_world_process_zero():
            release_folder(str(args.output_dir))
        raise
    wait_for_all(trainer.accelerator, "checking that training can begin")  # others may still read the folder
    prepare_output_dir(args, trainer.is_world_process_zero(), trainer.backbone.name_or_path or "")
    wait_for_all(trainer.accelerator, "preparing the output folder")


def claim_early(args: OutputArguments) -> None:
    """Claim the output folder before something is written into it that comes before the run; called on every process.

    Raises:
        ValueError: if another run has it, or has begun there since the arguments were read.
    """
    run_on_main(PartialState(), lambda: _claim(args), "claiming the output folder")


def _claim(args: OutputArguments) -> None:
    os.makedirs(str(args.output_dir), exist_ok=True)
    claim_folder(str(args.output_dir))
    check_output_dir(args)


def adjust_output_dir(values: dict[str, Any], demo_output_dir: str) -> dict[str, Any]:
    """Return defaults for the output folder: a recipe's own small data set has one.

    Args:
        values: the given arguments.
        demo_output_dir: folder for that data set's results; an earlier run's are replaced.

    Raises:
        ValueError: if another data set is given without an output folder.
    """
    if values.get("output_dir") is not None:
        return {}
    if values.get("dataset_name") is not None:
        raise ValueError("--output_dir is needed with --dataset_name")
    return {"output_dir": demo_output_dir, "overwrite": values.get("resume_from_checkpoint") is None}


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
        trainer.train(resume_from_checkpoint=_resumes(args))
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerError(f"{describe_dead_worker(error)} {resume_hint(Path(str(args.output_dir)))}") from error


def _resumes(args: OutputArguments) -> str | bool | None:
    return True if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint


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
