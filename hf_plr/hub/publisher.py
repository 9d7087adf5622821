"""`Publisher`: pushes the useful results of a training run to the Hub, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub import CommitInfo, run_as_future
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_plr.data.sample_store import SampleStore
from hf_plr.hub.errors import HubError
from hf_plr.hub.label_dataset import NO_MEDIA_OF_SEGMENTS, push_labels
from hf_plr.hub.model_card import as_card_arguments, write_model_card
from hf_plr.hub.push import (
    PushResult,
    check_write_access,
    format_epoch_tag,
    list_published_files,
    open_client,
    open_repo,
    push_folder,
)
from hf_plr.report.file_names import METRICS_FILE
from hf_plr.report.metrics_file import write_metrics
from hf_plr.report.summary import RunSummary
from hf_plr.utils.distributed import run_on_main

logger = logging.getLogger(__name__)

STAGING_PREFIX = "_push-"  # names that begin with _ are not pushed by plain Trainer either


class PublishedTrainer(Protocol):
    """Interface of a trainer for its publisher: attributes of `transformers.Trainer` and of our trainers."""

    args: Any
    state: Any
    control: Any
    callback_handler: Any
    accelerator: Accelerator
    train_dataset: SampleStore
    hub_model_id: Any
    scores: dict[str, dict[str, float]]
    push_in_progress: Any

    @property
    def has_labels(self) -> bool:
        """True from the first stage on."""

    def is_world_process_zero(self) -> bool:
        """True on the main process."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the bare backbone."""

    @property
    def has_adapters(self) -> bool:
        """True if a checkpoint holds adapters alone."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the backbone, with adapters merged, and its processor."""

    def save_labels(self, directory: str, rows: np.ndarray | None = None) -> None:
        """Save the last labels."""

    def create_model_card(self, **kwargs: Any) -> None:
        """Write the model card."""

    def summary(self) -> RunSummary:
        """Summarize the run."""

    def _finish_current_push(self) -> None:
        """Wait for a running push."""


@dataclasses.dataclass(frozen=True)
class SavedLabels:
    """Labels in a folder.

    Attributes:
        directory: the folder.
        step: training step of the labels.
        rows: rows that `save_labels` received.
    """

    directory: str
    step: int
    rows: np.ndarray | None


class Publisher:
    """Publisher of a trainer's backbone, processor, labels, card and metrics, with tags by epoch.

    * A push takes the files that `hf_plr.utils.run_files.PUBLISHED` lists: no optimizer, no random states, no pickled
      arguments.
    * The repository is created before training, so that a refused token or name ends the run early. An unreachable Hub
      does not end the run, and neither does a failed push in the middle of training.

    Args:
        trainer: the trainer that holds this publisher.
    """

    def __init__(self, trainer: PublishedTrainer):
        self.trainer = trainer
        self._saved_labels: SavedLabels | None = None
        self._metrics_of: tuple[int, dict[str, Any]] | None = None  # step and scores in the file
        self._seconds: float | None = None  # of the run, where they are known

    def begin_training(self) -> None:
        """Forget the files of an earlier training, which may have ended at the same step."""
        self._saved_labels = self._metrics_of = self._seconds = None

    def note_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None) -> None:
        """Note that the labels of this step are saved; called on every process."""
        self._saved_labels = SavedLabels(os.path.abspath(directory), self.trainer.state.global_step, rows)

    def write_metrics(self, seconds: float) -> None:
        """Write `metrics.json` into the output directory, on the main process, with the seconds of the run."""
        self._metrics_of, self._seconds = self._known_metrics(), seconds
        if self.trainer.is_world_process_zero():
            write_metrics(Path(str(self.trainer.args.output_dir)) / METRICS_FILE, self.trainer.summary(), seconds)

    def complete_metrics(self) -> None:
        """Write `metrics.json` of a trained run, unless the file is of this step and these scores.

        Its seconds are those that `write_metrics` received, otherwise those of training. A trainer without scores, such
        as one that resumed a run at its end, leaves the file of that step as it is.
        """
        if not self.trainer.scores and self._has_metrics_of_step():
            return
        if self.trainer.state.global_step > 0 and self._metrics_of != self._known_metrics():
            trained = sum(entry.get("train_runtime", 0.0) for entry in self.trainer.state.log_history)
            self.write_metrics(trained if self._seconds is None else self._seconds)

    def _has_metrics_of_step(self) -> bool:
        try:
            written = json.loads((Path(str(self.trainer.args.output_dir)) / METRICS_FILE).read_bytes())
            return bool(written["steps"] == self.trainer.state.global_step)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _known_metrics(self) -> tuple[int, dict[str, Any]]:
        return self.trainer.state.global_step, copy.deepcopy(self.trainer.scores)

    def write_card(self, **card: Any) -> None:
        """Write the model card, and `metrics.json` that it lists, on the main process.

        Args:
            **card: as for `as_card_arguments`.
        """
        arguments = as_card_arguments(card)
        self.complete_metrics()
        if self.trainer.is_world_process_zero():
            write_model_card(self.trainer.summary(), **arguments)

    def init_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, before any long work.

        Raises:
            HubError: if the Hub refuses it. An unreachable Hub only causes a warning; the push then creates it.
        """
        args = self.trainer.args
        repo_id = args.hub_model_id or os.path.basename(os.path.abspath(str(args.output_dir)))
        token = args.hub_token if token is None else token
        private = args.hub_private_repo if private is None else private

        def create_repo() -> str:
            for leftover in Path(str(args.output_dir)).glob(f"{STAGING_PREFIX}*"):  # of a killed run
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                with open_client(token, repo_id) as api:
                    name, _ = open_repo(api, repo_id, private=private)
                    check_write_access(api, name)
                    return name
            except HubError as error:
                if error.refused:
                    raise
                logger.warning("Nothing can be pushed now: %s. Training goes on, and pushes are tried again.", error)
                return repo_id

        self.trainer.hub_model_id = self._on_main(create_repo)
        self.trainer.push_in_progress = None

    def push(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Write all results of the run to the output directory, and push them; called on every process.

        Args:
            commit_message: message of the commit.
            blocking: True to wait for the end of the push.
            token: replaces `hub_token`.
            revision: branch, replaces `hub_revision`.
            private: replaces `hub_private_repo`, for a repository that does not exist yet.
            **card: arguments of the model card.

        Returns:
            On the main process, the commit; without blocking, a future that returns a `hf_plr.hub.push.PushResult`.

        Raises:
            HubError: if the push failed. `hf-plr push` pushes the output directory later.
        """
        trainer, args = self.trainer, self.trainer.args
        as_card_arguments(card)  # refuses what it does not know, before any long work
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        token = args.hub_token if token is None else token
        if trainer.hub_model_id is None:
            self.init_repo(token, private)
        trainer.save_model(_internal_call=True)
        if trainer.has_labels:
            self._save_labels()
        self.complete_metrics()
        if trainer.is_world_process_zero():
            trainer.create_model_card(**{"model_name": trainer.hub_model_id, **card})
        trainer._finish_current_push()
        branch = args.hub_revision if revision is None else revision
        tag = format_epoch_tag(trainer.summary().epochs_of_weights)

        def push() -> PushResult:
            return push_folder(
                str(args.output_dir),
                str(trainer.hub_model_id),
                private=args.hub_private_repo if private is None else private,
                revision=branch,
                token=token,
                message=commit_message or "End of training",
                tag=tag if branch is None else None,  # a tag is not part of a branch
            )

        if not blocking:
            return run_as_future(push) if trainer.is_world_process_zero() else None
        commits: list[CommitInfo] = []
        self._on_main(lambda: commits.append(push().commit))
        return commits[0] if commits else None

    def push_labels(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        with_media: bool = False,
    ) -> None:
        """Push the labels as a data set for `datasets.load_dataset`; called on every process.

        Args:
            repo_id: user/name of the data set.
            private: True to create a private repository; by default `hub_private_repo`.
            revision: branch; None for the main one.
            token: replaces `hub_token`.
            with_media: True to push the images or recordings too.

        Raises:
            HubError: if the push failed.
            ValueError: if the samples are segments of recordings and `with_media` is True.
        """
        if with_media and self.trainer.train_dataset.segments is not None:
            raise ValueError(f"these are labels of {NO_MEDIA_OF_SEGMENTS}")
        self._save_labels()
        args = self.trainer.args
        token = args.hub_token if token is None else token
        private = args.hub_private_repo if private is None else private

        def push() -> None:
            media = self._media_by_index() if with_media else None
            push_labels(str(args.output_dir), repo_id, media=media, private=private, revision=revision, token=token)

        self._on_main(push)

    def push_checkpoint(self, checkpoint: str) -> None:
        """Push backbone, processor and card of a checkpoint during training; labels follow at the end."""
        trainer, args = self.trainer, self.trainer.args
        if args.hub_strategy == HubStrategy.END or not trainer.is_world_process_zero():
            return
        is_busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
        if is_busy and not args.hub_always_push:
            return
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        step, epoch = trainer.state.global_step, int(trainer.state.epoch or 0)
        progress = f"step {step}" if args.save_strategy == "steps" else f"epoch {epoch}"
        staging_folder = Path(str(args.output_dir)) / f"{STAGING_PREFIX}{step}"
        try:
            self._stage_files(Path(checkpoint), staging_folder)
        except (OSError, ValueError) as error:  # a full disk, or weights in another format
            logger.warning("Nothing is pushed at %s: %s. Training goes on.", progress, error)
            return
        job = run_as_future(self._push_staged, staging_folder, progress)
        if trainer.push_in_progress is not None and is_busy:
            trainer.push_in_progress.jobs.append(job)
        else:
            trainer.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]  # as Trainer does

    def _stage_files(self, checkpoint: Path, staging_folder: Path) -> None:
        """Stage the files of a checkpoint for the push, as the checkpoint may be deleted before its end."""
        shutil.rmtree(staging_folder, ignore_errors=True)
        staging_folder.mkdir(parents=True)
        if self.trainer.has_adapters:
            self.trainer._save(str(staging_folder))
        for path in [] if self.trainer.has_adapters else list_published_files(checkpoint):
            try:
                os.link(path, staging_folder / path.name)
            except OSError:
                shutil.copy2(path, staging_folder)
        args = copy.copy(self.trainer.args)  # new ones would reset the state of all Accelerators
        args.output_dir = str(staging_folder)
        summary = dataclasses.replace(self.trainer.summary(), args=args, label_files=())
        write_model_card(summary, model_name=self.trainer.hub_model_id)

    def _push_staged(self, staging_folder: Path, progress: str) -> None:
        args = self.trainer.args
        try:
            push_folder(
                staging_folder,
                str(self.trainer.hub_model_id),
                private=args.hub_private_repo,
                revision=args.hub_revision,
                token=args.hub_token,
                message=f"Training in progress, {progress}",
            )
        except Exception as error:  # nobody reads a future's exception, and training matters more
            logger.warning("The push at %s did not work: %s. Training goes on.", progress, error)
        finally:
            shutil.rmtree(staging_folder, ignore_errors=True)

    def _media_by_index(self) -> Dataset:
        """Training samples in the order of the saved labels, which is that of their index."""
        assert self._saved_labels is not None
        media, rows = self.trainer.train_dataset.undecoded_column, self.trainer.train_dataset.rows
        index = rows if self._saved_labels.rows is None else self._saved_labels.rows[rows]
        return media.select(rows[np.argsort(index, kind="stable")])

    def _save_labels(self) -> None:
        """Save the labels in the output directory, unless they are saved: frame units need a pass over the data."""
        directory = os.path.abspath(str(self.trainer.args.output_dir))
        saved = self._saved_labels
        if saved is None or (saved.directory, saved.step) != (directory, self.trainer.state.global_step):
            self.trainer.save_labels(directory)

    def _on_main(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the main process; every process returns its result, or raises a `HubError`."""
        try:
            return run_on_main(self.trainer.accelerator, work, "publishing on the Hub")
        except HubError:
            raise
        except RuntimeError as error:
            raise HubError(str(error)) from error
