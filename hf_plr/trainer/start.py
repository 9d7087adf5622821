"""What a trainer refuses when training begins, before any long work."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from hf_plr.trainer.best_metric import check_stage_metric
from hf_plr.trainer.checkpoints.finding import (
    find_checkpoint,
    refuse_without_optimizer,
    warn_of_earlier_checkpoints,
    warn_of_later_checkpoints,
)
from hf_plr.trainer.checkpoints.run_state import load_state
from hf_plr.trainer.settings import check_same_settings, describe_optimizer, own_names
from hf_plr.training_args import BaseTrainingArguments
from hf_plr.utils.locks import release_folder
from hf_plr.utils.serialization import name_file_in_errors

if TYPE_CHECKING:
    from hf_plr.trainer.base_trainer import BaseTrainer

logger = logging.getLogger(__name__)

Method = TypeVar("Method", bound=Callable[..., Any])
OF_SAMPLES = ("samples", "data")  # settings that are known once unreadable samples are

READ_LATE = ("levels", "on_nan", "steps_per_epoch", "first_units")  # arguments of ours that are read when needed
TAKEN = ("per_device_train_batch_size", "seed", "data_seed", "bf16", "fp16")  # arguments of `Trainer` that are not


class Taken(NamedTuple):
    """What a trainer was made of, which stays as it is.

    Attributes:
        store: the training samples.
        settings: the arguments that it was made of, by name: ours but those in `READ_LATE`, and those in `TAKEN`.
        optimizer: the user's own, as `describe_optimizer` describes it; None where there is none.
    """

    store: Any
    settings: dict[str, Any]
    optimizer: list[dict[str, Any]] | None

    @classmethod
    def of(cls, trainer: BaseTrainer) -> Taken:
        """Note what a trainer is made of, when it is."""
        own = [name for name in own_names(trainer.arguments_class) if name not in READ_LATE]
        settings = {name: getattr(trainer.args, name) for name in (*own, *TAKEN)}
        optimizer = describe_optimizer(trainer.optimizer, trainer.optimizer_cls_and_kwargs)
        return cls(trainer.train_dataset, copy.deepcopy(settings), optimizer)

    def check(self, trainer: BaseTrainer) -> None:
        """Refuse what was changed since: it would have no effect, and be recorded as if it had.

        Raises:
            ValueError: naming it.
        """
        if trainer.train_dataset is not self.store:
            going_on = ", or continue the run with continue_from" if "continue_from" in self.settings else ""
            raise ValueError(f"train_dataset was replaced: make a new trainer{going_on}")
        changed = [name for name, value in self.settings.items() if getattr(trainer.args, name) != value]
        if changed:
            verb = "was" if len(changed) == 1 else "were"
            raise ValueError(f"{', '.join(changed)} {verb} changed after the trainer was made: make a new trainer")


def check_start(trainer: BaseTrainer, resume_from_checkpoint: str | bool | None) -> None:
    """Refuse a training that could not begin, before samples are decoded and before anything is written or removed.

    Checkpoints of an earlier run in the same folder, which a resumption could take for this run's, are warned of.

    Args:
        trainer: the trainer.
        resume_from_checkpoint: as for `BaseTrainer.train`.

    Raises:
        CheckpointError, ValueError: if there is no complete checkpoint of these settings with its optimizer, or the run
            that is to be continued knows none of the samples; or if arguments changed that the trainer was made of, or
            others to values that are outside their range; or if no stage gives `metric_for_best_model`.
    """
    trainer.taken.check(trainer)
    trainer.args.check()
    check_stage_metric(trainer)
    is_main, output_dir = trainer.is_world_process_zero(), str(trainer.args.output_dir)
    if resume_from_checkpoint:
        checkpoint = find_checkpoint(resume_from_checkpoint, output_dir)
        if resume_from_checkpoint is True and is_main:
            warn_of_later_checkpoints(checkpoint)
        accelerator = trainer.accelerator
        _, settings = load_state(checkpoint, accelerator.process_index, accelerator.num_processes)
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # they save optimizers in ways of their own
            refuse_without_optimizer(checkpoint)
        compared = [settings, trainer.run_settings()]
        if not trainer.train_dataset.is_checked:
            compared = [{name: each[name] for name in each if name not in OF_SAMPLES} for each in compared]
        check_same_settings(checkpoint, compared[0], compared[1], trainer.default_settings(), warns=False)
        _check_batch_size(checkpoint, trainer.args)
        return
    if is_main and not trainer.args.empties_output_dir:
        warn_of_earlier_checkpoints(output_dir)
    continuation = getattr(trainer, "continuation", None)  # of trainers that can continue a run
    if continuation is not None:
        continuation.check_known(trainer.train_dataset)


def _check_batch_size(checkpoint: str, args: BaseTrainingArguments) -> None:
    """Refuse to go on with batches other than those that `auto_find_batch_size` found: steps are counted in them."""
    path = os.path.join(checkpoint, TRAINER_STATE_NAME)
    if args.auto_find_batch_size or not os.path.isfile(path):
        return
    with name_file_in_errors(path):
        found = TrainerState.load_from_json(path).train_batch_size
    if found not in (None, args.train_batch_size):
        raise ValueError(
            f"{checkpoint} was written with batches of {found} samples, which auto_find_batch_size=True found for "
            f"per_device_train_batch_size={args.per_device_train_batch_size}: resume with auto_find_batch_size=True"
        )


def make_output_dir(args: BaseTrainingArguments) -> str | None:
    """Make the output folder, on the processes that write there; returns it if it was not there.

    Raises:
        OSError: if it cannot be made, naming it.
    """
    folder = str(args.output_dir)
    if os.path.isdir(folder):
        return None
    if args.should_save:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise OSError(f"--output_dir {folder} cannot be made: {error.strerror}; name another folder") from error
    return folder


def leaves_no_empty_folder(method: Method) -> Method:
    """Decorate a method of a trainer: where it fails, an output folder that the trainer made is removed if empty."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            folder = getattr(self, "made_folder", None)
            if folder is not None:
                release_folder(folder)
                with contextlib.suppress(OSError):  # not made yet, not empty, or removed already
                    os.rmdir(folder)
            raise

    return wrapped  # type: ignore[return-value]  # of the same signature
