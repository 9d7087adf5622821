"""`FeatureTrainer`: a `transformers.Trainer` whose model gives features, which are extracted and scored."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer

from hf_plr.data.loader import (
    EpochOrder,
    StoreLoader,
    end_workers,
    outlive_sigterm,
    trainer_settings,
    worker_settings,
)
from hf_plr.data.sample_store import SampleStore
from hf_plr.data.streaming import open_stream
from hf_plr.evaluation.intervals import Interval, Scored
from hf_plr.features.extractor import BatchLimit, FeatureExtractor
from hf_plr.features.first_pass import check_samples
from hf_plr.features.kept_features import KeptFeatures
from hf_plr.modality import Modality, SampleOpener
from hf_plr.report.summary import STAGE_PREFIX, select_last_stage_metrics
from hf_plr.trainer.best_metric import is_still_missing
from hf_plr.trainer.ema import EMATeacher
from hf_plr.training_args import BaseTrainingArguments
from hf_plr.utils.rng import isolate_rng


class FeatureTrainer(Trainer):
    """A `transformers.Trainer` of a backbone in which an epoch's features are extracted and scored.

    `BaseTrainer` sets the attributes and trains on them.

    Attributes:
        modality: how samples are read and turned into features.
        open_samples: opens data sets as stores of samples, each once.
        evaluator: scores the features; None where there is nothing to score by.
        scores, intervals: what `score` returned, and the 95% intervals (low, high) of some of it, by moment.
        ema_teacher: a copy that follows the trained weights, None with `ema_decay` 0.
    """

    args: BaseTrainingArguments
    model: PreTrainedModel
    train_dataset: SampleStore
    eval_dataset: Any
    modality: Modality
    open_samples: SampleOpener
    evaluator: Any
    scores: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]]
    ema_teacher: EMATeacher | None
    n_label_shards = 1  # logical shards of the training samples, see `hf_plr.pseudo_labels.shards`
    _label_free: dict[str, float]
    _kept_features: KeptFeatures | None
    _training_loader: DataLoader | None = None
    recorded: dict[str, float] | None = None  # what `record` is logging

    def _backbone_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """The backbone in the module that is trained."""
        return model

    # ---- features ------------------------------------------------------------------------------------------------

    def extract_features(
        self, dataset: Dataset | SampleStore | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Features without augmentation in the precision of training, float32 (N, D), on every process.

        Args:
            dataset: the samples; by default those of training, in the order of `train_dataset.rows`: that of the data
                set for images, by length for sounds.
            positions: positions of some of them, shape (N,); None takes all.
        """
        self.check_samples()
        return self.extractor.extract_all(
            self.train_dataset if dataset is None else self.open_samples(dataset), positions
        )

    def check_samples(self, dtype: torch.dtype | None = None, extract: bool = True) -> None:
        """Decode every training sample once, so that unreadable ones are known, unless an earlier run did.

        Called on every process, by `train`, `score` and `evaluate`.

        Args:
            dtype: as for `FeatureExtractor.extract`, of features that are extracted on the way.
            extract: extract features on the way, for those who ask for them next.

        Raises:
            UnreadableSample: naming a sample that cannot be read, unless these are left out.
        """
        self._check_store(self.train_dataset, dtype, extract)

    def _check_store(self, store: SampleStore, dtype: torch.dtype | None = None, extract: bool = True) -> None:
        if check_samples(self.extractor, store, dtype, extract) and store is self.train_dataset:
            self.adapt_to_samples()

    def adapt_to_samples(self) -> None:
        """Adapt what depends on the training samples, after some have turned out to be unreadable."""

    @property
    def extractor(self) -> FeatureExtractor:
        """Extracts features with the weights as they are."""
        return FeatureExtractor(
            self._backbone_of(self.model) if self.ema_teacher is None else self.ema_teacher.model,
            self.modality,
            self.accelerator,
            self.args.per_device_eval_batch_size,
            self._store_loader,
            progress=not self.args.disable_tqdm,
            shards=self.n_label_shards,
            kept=self._kept_features,
            limit=self._batch_limit,
        )

    @functools.cached_property
    def _batch_limit(self) -> BatchLimit:
        return BatchLimit()

    @functools.cached_property
    def _store_loader(self) -> StoreLoader:
        return StoreLoader(self.args, self.modality.collate)

    @property
    def backbone(self) -> PreTrainedModel:
        """The model that is clustered, scored and saved: the bare backbone, or the EMA teacher that follows it."""
        backbone: Any = self.student if self.ema_teacher is None else self.ema_teacher.model
        return backbone

    @property
    def student(self) -> torch.nn.Module:
        """The bare backbone whose weights are trained."""
        return self._backbone_of(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    # ---- loaders -------------------------------------------------------------------------------------------------

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        """Make a loader as `Trainer` does, with workers as `worker_settings` says."""
        settings = worker_settings(self.args, dataset)
        if not is_training:  # Trainer would take the loader of the first evaluation set for all others
            settings["persistent_workers"] = False
            settings["drop_last"] = False  # an incomplete batch is of no harm to scores
        order = (lambda samples: EpochOrder(sampler_fn(samples))) if is_training and sampler_fn else sampler_fn
        with trainer_settings(self.args, settings):
            loader = super()._get_dataloader(dataset, description, batch_size, order, is_training)
        outlive_sigterm(loader)
        if is_training:
            getattr(loader, "base_dataloader", loader).generator = torch.Generator()  # see `EpochOrder`
            self._training_loader = loader
        else:
            others = (each for each in self.accelerator._dataloaders if each is not loader)
            self.accelerator._dataloaders = [*others]  # which would hold the samples for ever
        return loader

    def end_workers(self) -> None:
        """End the processes that load samples, if any have stayed."""
        self._store_loader.close()
        if self._training_loader is not None:
            end_workers(self._training_loader)
            self._training_loader = None

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: str | Any = None) -> DataLoader:
        """Loader of an evaluation set, which may be given as a data set, as a stream or by its name."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        if chosen is None:
            raise ValueError("evaluation needs an eval_dataset")
        return super().get_eval_dataloader(self.open_samples(open_stream(chosen, self.args)))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Loader of a test set, which may be a stream."""
        return super().get_test_dataloader(self.open_samples(open_stream(test_dataset, self.args)))

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, with label-free scores of the training samples as `eval_plr/...`.

        They are in the metrics of the first evaluation set where there are several, and alone where there is none; an
        empty dict is none.
        """
        self.check_samples()
        if metric_key_prefix == "eval":
            scores = self.label_free_scores()
            self._label_free = {f"eval_{STAGE_PREFIX}{name}": value for name, value in scores.items()}
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        try:
            if chosen is not None and chosen != {}:
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            metrics = self._label_free
        finally:
            self._label_free = {}  # also after an error: they are of no other evaluation, and of no prediction
        if not metrics:
            return {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        # A schedule by a metric that the first stages lack begins with the first evaluation that has it.
        lacks = is_still_missing(self.args, self.state.log_history)
        metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler or lacks)
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, of the model as it is; see `evaluate`."""
        with self._prepared_by_training_alone():
            output: Any = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(self._label_free)
        self._label_free = {}
        return output

    @contextlib.contextmanager
    def _prepared_by_training_alone(self) -> Iterator[None]:
        """Let an evaluation before training take the model as it is, in the precision of `prediction_step`.

        `Trainer` would let accelerate prepare it for evaluation, and accelerate, which prepares no model twice, would
        not share it among the processes when training begins. FSDP and DeepSpeed need the preparation.
        """
        models = self.accelerator._models
        if models or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            yield
            return
        models.append(self.model)
        try:
            yield
        finally:
            models.clear()

    def label_free_scores(self) -> dict[str, float]:
        """Scores that need no labels: here the metrics of the last stage, without times; empty before the first."""
        return select_last_stage_metrics(self.state.log_history)

    def record(self, metrics: dict[str, float]) -> None:
        """Log metrics that evaluation, card and report read again, by their names in the log.

        The log history, which checkpoints hold, has all of them, whatever the `log` of a subclass makes of them.
        """
        n_before, self.recorded = len(self.state.log_history), metrics
        try:
            self.log(dict(metrics))
        finally:
            self.recorded = None
        entry = next((entry for entry in self.state.log_history[n_before:] if metrics.keys() & entry.keys()), None)
        if entry is None:
            entry = {}
            self.state.log_history.append(entry)
        for name, value in {**metrics, "epoch": self.state.epoch or 0.0, "step": self.state.global_step}.items():
            entry.setdefault(name, value)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor | None]:
        """Features of a batch without augmentation, and its true labels if there are any; no loss."""
        inputs = self._prepare_inputs(inputs)
        backbone = self._backbone_of(model) if self.ema_teacher is None else self.backbone
        with torch.no_grad(), self.accelerator.autocast():
            features = self.modality.features(backbone, inputs)
        return None, features, inputs.get("labels")

    def score(self, moment: str) -> dict[str, float]:
        """Score the features as they are, and remember it under a name such as "before" for the model card.

        Returns:
            The scores of `assess`, on every process; empty if there is nothing to score by.
        """
        scored = self.assess()
        if scored.values:
            self.scores[moment], self.intervals[moment] = scored.values, scored.intervals
        return scored.values

    def assess(self) -> Scored:
        """Score the features as they are with the evaluator; called on every process, and leaves no trace.

        Returns:
            The evaluator's scores and their intervals, on every process; empty without an evaluator.
        """
        if self.evaluator is None:
            return Scored({})
        with isolate_rng(self.args.seed):
            self.check_samples()
            return self.evaluator(self)
