"""The output folder of a recipe: what it may hold at the start, whose it is, and what --overwrite removes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_plr.models.adapter_files import ADAPTER_FOLDER
from hf_plr.report.file_names import METRICS_FILE
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.checkpoints.finding import last_complete_checkpoint, list_checkpoints
from hf_plr.trainer.checkpoints.writing import ASIDE
from hf_plr.trainer.start import check_start, leaves_no_empty_folder
from hf_plr.utils.distributed import run_on_main, wait_for_all
from hf_plr.utils.locks import claim_folder, release_folder
from hf_plr.utils.run_files import BACKBONE_FILES, WRITTEN, find_files, holds_run, matches


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

    @property
    def resumes_from(self) -> str | bool | None:
        """The checkpoint to resume from, as `Trainer.train` takes it: True is the last one in `output_dir`."""
        return True if self.resume_from_checkpoint == "last" else self.resume_from_checkpoint


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
        check_start(trainer, args.resumes_from)
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
