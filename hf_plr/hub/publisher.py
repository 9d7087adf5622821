"""`PublishingTrainer`: a `ResumableTrainer` that brings what is useful to others to the Hub, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import CommitInfo, run_as_future
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_plr.hub.label_dataset import push_labels
from hf_plr.hub.model_card import write_model_card
from hf_plr.hub.push import (
    HubError,
    Pushed,
    check_may_write,
    client,
    epoch_tag,
    open_repo,
    published_files,
    push_folder,
)
from hf_plr.report.outputs import METRICS_FILE, write_metrics
from hf_plr.report.summary import RunSummary
from hf_plr.trainer.resumable_trainer import ResumableTrainer
from hf_plr.utils.distributed import on_main

logger = logging.getLogger(__name__)

STAGED = "_push-"  # names that begin with _ are not pushed by plain Trainer either


@dataclasses.dataclass(frozen=True)
class SavedLabels:
    """Which labels lie in a folder.

    Attributes:
        directory: the folder.
        step: the step that they are of.
        rows: as `save_labels` got them.
    """

    directory: str
    step: int
    rows: np.ndarray | None


class PublishingTrainer(ResumableTrainer):
    """What brings a run to the Hub.

    * `push_to_hub` publishes the bare backbone, its processor, labels, card and figures, and tags them by epoch. It
      takes the files that `hf_plr.hub.push.PUBLISHED` lists: no optimizer, no random states, no pickled arguments.
    * `push_to_hub=True` is tried before training: a token or a name that the Hub refuses ends the run there. A Hub that
      is away does not, and neither does a push in the middle of training that fails.
    * `push_labels_to_hub` publishes the labels as a data set.
    """

    _saved_labels: SavedLabels | None = None
    _metrics_step: int | None = None

    @abstractmethod
    def summary(self) -> RunSummary:
        """What is known of the run so far."""

    @abstractmethod
    def save_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Write the last labels to files; called on every process.

        Args:
            directory: where to.
            rows: number of each row of `train_dataset` in the data that it was taken from; by default the row itself.
        """

    @abstractmethod
    def labelled_media(self) -> tuple[Dataset, np.ndarray]:
        """A data set with one column of what was trained on, undecoded, and the row in it of each position."""

    def write_metrics(self, seconds: float) -> None:
        """Write `metrics.json` into the output directory, on the main process; `seconds` is what the run took."""
        self._metrics_step = self.state.global_step
        if self.is_world_process_zero():
            write_metrics(Path(str(self.args.output_dir)) / METRICS_FILE, self.summary(), seconds)

    # ---- the Hub -------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, before any long work.

        Raises:
            HubError: if the Hub refuses it. Where the Hub cannot be reached, there is a warning, and the push makes it.
        """
        args = self.args
        wanted = args.hub_model_id or Path(str(args.output_dir)).absolute().name
        token = args.hub_token if token is None else token
        private = args.hub_private_repo if private is None else private

        def make() -> str:
            for left in Path(str(args.output_dir)).glob(f"{STAGED}*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            try:
                with client(token, wanted) as api:
                    name, _ = open_repo(api, wanted, private=private)
                    check_may_write(api, name)
                    return name
            except HubError as error:
                if error.refused:
                    raise
                logger.warning("Nothing can be pushed now: %s. Training goes on, and pushes are tried again.", error)
                return wanted

        self.hub_model_id = self._on_main(make)
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write everything that a run leaves to the output directory, and publish it; called on every process.

        Args:
            commit_message: of the commit.
            blocking: wait until it is there.
            token: in place of `hub_token`.
            revision: branch, in place of `hub_revision`.
            private: in place of `hub_private_repo`; for a repository that is not there yet.
            **kwargs: of `create_model_card`.

        Returns:
            On the main process, the commit; without blocking, a future that gives a `hf_plr.hub.push.Pushed`.

        Raises:
            HubError: if it did not get there. The output directory has it, and `hf-plr push` can push that.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        args = self.args
        token = args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if self.run_state():
            self._save_labels_of_now()
        if self._metrics_step != self.state.global_step:
            self.write_metrics(sum(entry.get("train_runtime", 0.0) for entry in self.state.log_history))
        if self.is_world_process_zero():
            self.create_model_card(**{"model_name": self.hub_model_id, **kwargs})
        self._finish_current_push()

        branch = args.hub_revision if revision is None else revision

        def push() -> Pushed:
            return push_folder(
                str(args.output_dir),
                str(self.hub_model_id),
                private=args.hub_private_repo if private is None else private,
                revision=branch,
                token=token,
                message=commit_message or "End of training",
                tag=epoch_tag(self.state.epoch) if branch is None else None,  # tags are not a branch's own
            )

        if not blocking:
            return run_as_future(push) if self.is_world_process_zero() else None
        commits: list[CommitInfo] = []
        self._on_main(lambda: commits.append(push().commit))
        return commits[0] if commits else None

    def push_labels_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        with_media: bool = False,
    ) -> None:
        """Publish the labels as a data set that `datasets.load_dataset` loads; called on every process.

        Args:
            repo_id: user/name of the data set.
            private: whether its repository is private, where it is not there yet; by default `hub_private_repo`.
            revision: branch; None for the main one.
            token: in place of `hub_token`.
            with_media: publish the images or recordings too, not the labels alone.

        Raises:
            HubError: if it did not get there.
        """
        self._save_labels_of_now()
        token = self.args.hub_token if token is None else token
        private = self.args.hub_private_repo if private is None else private

        def push() -> None:
            media = self._media_by_index() if with_media else None
            push_labels(
                str(self.args.output_dir), repo_id, media=media, private=private, revision=revision, token=token
            )

        self._on_main(push)

    def _media_by_index(self) -> Dataset:
        """What was trained on, in the order of the saved labels: that of their index."""
        assert self._saved_labels is not None
        media, rows = self.labelled_media()
        index = rows if self._saved_labels.rows is None else self._saved_labels.rows[rows]
        return media.select(rows[np.argsort(index, kind="stable")])

    def _note_saved_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None) -> None:
        """Called by `save_labels`, on every process."""
        self._saved_labels = SavedLabels(os.path.abspath(directory), self.state.global_step, rows)

    def _save_labels_of_now(self) -> None:
        """Save the labels in the output directory, unless they are there: units of frames take a pass over the data."""
        directory, saved = os.path.abspath(str(self.args.output_dir)), self._saved_labels
        if saved is None or (saved.directory, saved.step) != (directory, self.state.global_step):
            self.save_labels(directory)

    def _on_main(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the main process, on every process; where it fails, all of them raise a `HubError`."""
        try:
            return on_main(self.accelerator, work)
        except HubError:
            raise
        except RuntimeError as error:
            raise HubError(str(error)) from error

    # ---- in the middle of training -------------------------------------------------------------------------------

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push backbone, processor and card of a checkpoint, while training goes on; the labels come at the end."""
        args = self.args
        silent = self._writes_aside or self._stop_signal.stopped or args.hub_strategy == HubStrategy.END
        if silent or not self.is_world_process_zero():
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        by_step = args.save_strategy == "steps"
        done = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch or 0)}"
        staged = Path(str(args.output_dir)) / f"{STAGED}{self.state.global_step}"
        try:
            self._stage(Path(checkpoint_folder), staged)
        except (OSError, ValueError) as error:  # no room, or weights in another format
            logger.warning("Nothing is pushed at %s: %s. Training goes on.", done, error)
            return
        job = run_as_future(self._push_staged, staged, done)
        if self.push_in_progress is not None and busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _stage(self, checkpoint: Path, staged: Path) -> None:
        """Set a checkpoint's files for the Hub aside: the checkpoint may be gone before they have got there."""
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for path in published_files(checkpoint):
            try:
                os.link(path, staged / path.name)
            except OSError:
                shutil.copy2(path, staged)
        args = copy.copy(self.args)  # making new ones would reset the state that all Accelerators share
        args.output_dir = str(staged)
        write_model_card(dataclasses.replace(self.summary(), args=args, label_files=()), model_name=self.hub_model_id)

    def _push_staged(self, staged: Path, done: str) -> None:
        try:
            push_folder(
                staged,
                str(self.hub_model_id),
                private=self.args.hub_private_repo,
                revision=self.args.hub_revision,
                token=self.args.hub_token,
                message=f"Training in progress, {done}",
            )
        except Exception as error:  # nobody looks at what a future raises, and training is worth more than this push
            logger.warning("The push at %s did not work: %s. Training goes on.", done, error)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
