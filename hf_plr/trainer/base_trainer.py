"""`BaseTrainer`: what `PLRTrainer` and `UnitTrainer` share beside their objectives."""

from __future__ import annotations

import functools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, ProgressCallback
from transformers.trainer import TRAINING_ARGS_NAME

from hf_plr.clustering.checks import NotFiniteError
from hf_plr.data.columns import check_dataset, find_scoring_column
from hf_plr.data.loader import Collator
from hf_plr.data.streaming import open_stream, open_streams
from hf_plr.evaluation.evaluators import check_best_metric, score_against_gallery, select_evaluator
from hf_plr.features.kept_features import KeptFeatures
from hf_plr.hub.publisher import Publisher
from hf_plr.modality import SampleOpener, find_modality
from hf_plr.models.adapter_files import ADAPTER_FOLDER, hash_frozen_weights, merge_adapters, save_adapter
from hf_plr.models.frozen import hold_frozen_statistics
from hf_plr.models.lora import describe_adapters, describe_kind, has_adapters, prepare_adapters, require_peft
from hf_plr.pseudo_labels.holding import is_of_samples
from hf_plr.report.html.reporter import Reporter
from hf_plr.report.summary import RunSummary
from hf_plr.trainer import construction, start, weights
from hf_plr.trainer.best_metric import is_still_missing
from hf_plr.trainer.callbacks import LogContinuation, StopSignal, TrainingStopped, make_callbacks
from hf_plr.trainer.checkpoints.finding import find_checkpoint
from hf_plr.trainer.checkpoints.run_state import load_state, save_part, save_state
from hf_plr.trainer.checkpoints.writing import CheckpointWriter, refuse_nan_weights
from hf_plr.trainer.ema import EMATeacher
from hf_plr.trainer.feature_trainer import FeatureTrainer
from hf_plr.trainer.rates import decay_rates
from hf_plr.trainer.settings import check_same_settings, default_settings_of, settings_of
from hf_plr.training_args import BaseTrainingArguments
from hf_plr.utils.determinism import require_determinism
from hf_plr.utils.files import give_usual_mode
from hf_plr.utils.rng import isolate_rng

logger = logging.getLogger(__name__)


class BaseTrainer(FeatureTrainer, ABC):
    """A `transformers.Trainer` of a bare backbone on labels that it makes itself, between epochs.

    `PLRTrainer` and `UnitTrainer` add the labels and the loss: `refresh_labels` and `compute_loss`. A resumed run is
    equal to one that was never interrupted, on GPUs with `exact_resume`: see `hf_plr.trainer.checkpoints`. SIGTERM
    saves at a step and ends training, and the process unless `TrainingStopped` is caught. Arguments are `PLRTrainer`'s.

    Attributes:
        reporter: gathers what `report.html` shows.
        publisher: brings the results to the Hub.
        has_begun: True once `train` was called, whose labels another call forgets unless it resumes.
        taken: what the trainer was made of, which must not be changed.
        source: what the start was trained on with labels, in words, for reports.

    Raises:
        ValueError: before any long work, if the data, the model and the arguments do not fit together.
    """

    arguments_class: type[BaseTrainingArguments]
    epochs_per_stage = 1
    views = 1  # of each sample in a batch
    compute_metrics: Callable[[EvalPrediction], dict] | None

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str] | None,
        args: BaseTrainingArguments,
        train_dataset: Dataset | None,
        processing_class: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        augmentation: Any = None,
        evaluator: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ):
        train_dataset = check_dataset(open_stream(train_dataset, args))
        eval_dataset = open_streams(eval_dataset, args)
        if args.is_exact_gpu:
            require_determinism()
        if args.lora:
            require_peft("lora=True")
        self.label_column = find_scoring_column(train_dataset, args.label_column)
        self.modality = find_modality(train_dataset, model, args, processing_class, augmentation)
        args = construction.adapt_to_start(args, model, self.modality)
        self.evaluator = select_evaluator(evaluator, has_labels=self.label_column is not None)
        self.scores, self.intervals, self.source = {}, {}, ""
        self.publisher = Publisher(self)
        self.open_samples = SampleOpener(self.modality, self.label_column)
        if compute_metrics is None and self.label_column is not None:
            compute_metrics = functools.partial(score_against_gallery, self)
        check_best_metric(args, self.label_column, eval_dataset, compute_metrics, evaluator is not None)
        trained = self._make_trained_model()
        construction.freeze_as_told(args, self.modality.model)
        construction.check_trained(args, self.modality.model, self._compute_example)
        prepare_adapters(self.modality.model, args, self._compute_example)  # in what is not frozen
        hold_frozen_statistics(self.modality.model)
        construction.check_optimizer(args, self.modality.model, kwargs.get("optimizers"))
        self.made_folder = start.make_output_dir(args)
        super().__init__(
            model=trained,
            args=args,
            data_collator=Collator(kwargs.pop("data_collator", None) or self.modality.collate),
            train_dataset=self.open_samples(train_dataset),
            eval_dataset={} if eval_dataset is None else eval_dataset,  # None would be refused: see `evaluate`
            processing_class=self.modality.processor,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        construction.check_whole_weights(self)
        self.model_accepts_loss_kwargs = False  # the loss is a batch mean: let Trainer divide by accumulation steps
        self.label_names = ["labels"]
        self.eval_dataset = construction.check_evaluation_sets(self, eval_dataset)
        self.ema_teacher = EMATeacher(self._backbone_of(self.model), args.ema_decay) if args.ema_decay else None
        self.reporter = Reporter(args.report, str(args.output_dir), self.train_dataset, args.seed, self.accelerator)
        self._label_free, self._epoch, self.has_begun = {}, 0, False
        self.taken = start.Taken.of(self)
        self.resumed_from: str | None = None
        # Weights that are sharded or compiled in training are not those that features came of before it.
        is_changed = self.is_fsdp_enabled or self.is_deepspeed_enabled or bool(args.torch_compile)
        self._kept_features = None if is_changed else KeptFeatures(args.feature_dir)
        self.open_samples.check = self._check_store
        self._checkpoint_writer = CheckpointWriter(self)
        self._stop_signal = StopSignal()
        self._log_continuation = LogContinuation(self)
        for display in (ProgressCallback, PrinterCallback):
            self.remove_callback(display)
        for callback in (self._stop_signal, self._log_continuation, *make_callbacks(self)):
            self.add_callback(callback)

    # ---- what an objective adds ----------------------------------------------------------------------------------

    stage_extracts = True  # features of samples, which a pass before training may do for the first stage

    @property
    def stage_dtype(self) -> torch.dtype | None:
        """Of the features that the first stage extracts, see `FeatureExtractor.extract`."""
        return None

    @property
    @abstractmethod
    def has_labels(self) -> bool:
        """True from the first stage on."""

    @abstractmethod
    def describe_clusters(self) -> str:
        """What is clustered into what, and how it is refined, in a line."""

    @abstractmethod
    def needs_new_labels(self, epoch: int) -> bool:
        """True if labels are made before this epoch; a resumed epoch keeps those that it had."""

    def begin_labels(self) -> None:
        """Prepare the first labels, before training that is not resumed, once all samples are known to be readable."""

    @property
    def continues(self) -> str:
        """The run that this one continues, in a line; empty for a first run."""
        return ""

    @abstractmethod
    def refresh_labels(self, epoch: int) -> None:
        """Make the labels that this epoch trains on."""

    @abstractmethod
    def keep_labels(self, epoch: int) -> None:
        """Let this epoch train on the labels of the one before."""

    @abstractmethod
    def begin_epoch(self, epoch: int) -> None:
        """Give the labels to the sampler and the loss."""

    @abstractmethod
    def label_state(self) -> dict[str, np.ndarray]:
        """Labels, and what belongs to them, as arrays by name: what a resumed run needs of them."""

    @property
    def has_own_state(self) -> bool:
        """True if a part of `label_state` is of this process's own samples, so that each process saves its own."""
        return False

    @abstractmethod
    def load_label_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        """Restore what `label_state` returned; a ValueError names the checkpoint if it is of other data."""

    @abstractmethod
    def save_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Write the last labels to files in a directory; called on every process.

        `rows` are the numbers of the rows of `train_dataset` in the data that it was taken from; by default its own.
        """

    @abstractmethod
    def score_labels(self) -> dict[str, float]:
        """Agreement of the labels with the true labels; empty where there are none of either."""

    def _make_trained_model(self) -> torch.nn.Module:
        """The module that is trained: the backbone, or one that holds it."""
        return self.modality.model

    def _compute_example(self) -> torch.Tensor:
        return self.modality.features(self.modality.model, self.modality.example())

    def prepare_epoch(self, epoch: int) -> None:
        """Make new labels where the epoch needs them, and begin to train on them; called by `StageCallback`."""
        self._epoch = epoch
        if self.needs_new_labels(epoch):
            try:
                self.refresh_labels(epoch)
            except NotFiniteError as error:
                if not self.has_labels or self.args.on_nan != "skip_epoch":
                    raise
                logger.warning("%s This epoch keeps the labels of the last one.", error)
                self.keep_labels(epoch)
        if self._kept_features is not None:
            self._kept_features.close()
        self.resumed_from = None
        self.begin_epoch(epoch)

    # ---- rates ---------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer as `Trainer` does, with rates by layer where `layer_decay` is below 1."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self.args.layer_decay != 1.0:
            decay_rates(optimizer, self.student, self.args.layer_decay)
        return optimizer

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, in favour of one trainer per trial.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"hyperparameter_search is not supported: {construction.ONE_MODEL}. Make a model and a trainer for each "
            "trial, in a function that returns trainer.evaluate()'s metrics to the search"
        )

    # ---- saving and resuming -------------------------------------------------------------------------------------

    @property
    def has_adapters(self) -> bool:
        """True if adapters are trained, and the other weights of the backbone stay as they are."""
        return has_adapters(self.modality.model)

    @start.leaves_no_empty_folder
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; a resumed run takes up labels, prototypes and sums of losses too.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last complete one in `output_dir`.
            `*args`, `**kwargs`: as in `Trainer`.

        Raises:
            CheckpointError, ValueError: if there is no complete checkpoint of these settings, or none can be written.
            TrainingStopped: after SIGTERM.
        """
        checkpoint = None
        start.check_start(self, resume_from_checkpoint)
        with isolate_rng(self.args.seed):
            keeps = self._kept_features is not None and self.stage_extracts and not resume_from_checkpoint
            self.check_samples(self.stage_dtype, extract=keeps)
        if not resume_from_checkpoint:
            self.begin_labels()
        else:
            checkpoint = find_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
            state, settings = load_state(checkpoint, self.accelerator.process_index, self.accelerator.num_processes)
            check_same_settings(checkpoint, settings, self.run_settings(), self.default_settings())
            self.load_label_state(state, checkpoint)
            if self.ema_teacher is not None:
                weights.load_student(self._backbone_of(self.model), state, checkpoint)
            self._log_continuation.take(state)
        self.resumed_from, self.has_begun = checkpoint, True
        try:
            with self._stop_signal.watched():
                result = super().train(checkpoint, *args, **kwargs)
        finally:
            self.end_workers()
        if self._stop_signal.stopped:
            raise TrainingStopped(self.state.global_step, self.state.max_steps, str(self.args.output_dir))
        return result

    def run_settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with its checkpoint, as JSON can hold it."""
        return {
            "trainer": type(self).__name__,
            "processes": self.accelerator.num_processes,
            "samples": len(self.train_dataset),
            "data": self.train_dataset.digest(),
            "optimizer": self.taken.optimizer,
            **settings_of(self.args, self.arguments_class, self.n_label_shards > 1 or self.has_own_state),
            **self._adapter_settings,
        }

    def default_settings(self) -> dict[str, Any]:
        """What `run_settings` is where nothing is given, as far as there are defaults; the optimizer as it is."""
        return {**default_settings_of(self.arguments_class), "optimizer": self.taken.optimizer}

    @functools.cached_property
    def _adapter_settings(self) -> dict[str, str]:
        if not self.has_adapters:
            return {}
        backbone = self.modality.model
        return {"adapters": describe_kind(backbone), "frozen weights": hash_frozen_weights(backbone)}

    def run_state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside the saved model and the optimizer, as arrays by name."""
        return self.label_state() | ({} if self.ema_teacher is None else weights.student_state(self.student))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does, with the state of the run beside the weights."""
        if self.has_labels:
            self._save_run_state(str(self.args.output_dir if output_dir is None else output_dir))
        super().save_model(output_dir, _internal_call)

    def _save_run_state(self, directory: str) -> None:
        """Save what belongs to own samples on every process, if there is something, and the rest on the main one."""
        if not (self.args.should_save or self.has_own_state):
            return
        os.makedirs(directory, exist_ok=True)
        state, processes = self.run_state(), self.accelerator.num_processes
        own = {name: value for name, value in state.items() if self.has_own_state and is_of_samples(name)}
        if own:
            save_part(directory, own, self.accelerator.process_index, processes)
        if self.args.should_save:
            shared = {name: value for name, value in state.items() if name not in own}
            save_state(directory, shared | self._log_continuation.losses, self.run_settings(), processes if own else 1)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        refuse_nan_weights(self.model, self.state.global_step, run_dir)
        with self._log_continuation.collected(), self._checkpoint_writer.writing_aside(run_dir) as checkpoint:
            super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        self._checkpoint_writer.remove_old(run_dir)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # With save_strategy="best" the answer decides alone, and where a signal stops training, it is to save.
        lacks = is_still_missing(self.args, self.state.log_history)
        return (not lacks and bool(super()._determine_best_metric(metrics, trial))) or self._stop_signal.stopped

    def _get_output_dir(self, trial: Any) -> str:
        return self._checkpoint_writer.place(super()._get_output_dir(trial))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the bare backbone; with adapters, a checkpoint gets these alone, others the merged backbone, too."""
        if not self.args.should_save:  # Trainer calls this on every process
            return
        directory = str(self.args.output_dir if output_dir is None else output_dir)
        if self.has_adapters:
            self._save_adapted(directory)
        elif self.backbone is self.accelerator.unwrap_model(self.model, keep_torch_compile=False):
            super()._save(output_dir, state_dict)
        else:
            self._save_as(self.backbone, output_dir)
        give_usual_mode(directory)

    def _save_as(self, model: PreTrainedModel, output_dir: str | None) -> None:
        """Save another model in place of the one that is trained."""
        trained, self.model = self.model, model
        try:
            super()._save(output_dir)
        finally:
            self.model = trained

    def _save_adapted(self, directory: str) -> None:
        if self._checkpoint_writer.is_writing:
            save_adapter(self.backbone, directory)
            self.modality.processor.save_pretrained(directory)
            torch.save(self.args, os.path.join(directory, TRAINING_ARGS_NAME))
        else:
            self._save_as(merge_adapters(self.backbone), directory)
            save_adapter(self.backbone, os.path.join(directory, ADAPTER_FOLDER))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            weights.load_weights(self.backbone, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            weights.load_weights(self.backbone, str(self.state.best_model_checkpoint))

    # ---- reports and the Hub -------------------------------------------------------------------------------------

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        return RunSummary(
            args=self.args,
            modality=self.modality,
            architecture=type(self.backbone).__name__,
            start=self.backbone.name_or_path or "",
            n_samples=len(self.train_dataset),
            unreadable_rows=self.train_dataset.unreadable,
            epochs=self.state.epoch or 0.0,
            weights_epoch=weights.find_weights_epoch(self),
            steps=self.state.global_step,
            processes=self.accelerator.num_processes,
            log=self.state.log_history,
            scores=self.scores,
            intervals=self.intervals,
            evaluator=self.evaluator,
            source=self.source,
            adapters=describe_adapters(self.student),
            optimizer=self.taken.optimizer,
        )

    def create_model_card(self, **kwargs: Any) -> None:  # type: ignore[override]  # arguments of our own card
        """Write the card `README.md` and `metrics.json` into the output directory, on the main process.

        It takes `model_name`, `tags`, `dataset`, `license`, `finetuned_from` and `language`, as `Trainer` does.
        """
        self.publisher.write_card(**kwargs)

    def write_report(self, rows: np.ndarray | None = None) -> None:
        """Write `report.html` and `report.json` into the output directory, unless `report` is "no"; `rows` as above."""
        self.reporter.rows = self.reporter.rows if rows is None else rows
        self.reporter.write(self.summary(), self.state.log_history)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the Hub's repository, before any long work; see `Publisher.init_repo`."""
        self.publisher.init_repo(token, private)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Publish everything that a run leaves, see `Publisher.push`; called on every process."""
        return self.publisher.push(*args, **kwargs)

    def push_labels_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Publish the labels as a data set, see `Publisher.push_labels`; called on every process."""
        self.publisher.push_labels(repo_id, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._checkpoint_writer.is_writing and not self._stop_signal.stopped:
            self.publisher.push_checkpoint(checkpoint_folder)
