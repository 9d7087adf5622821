"""`BackboneTrainer`: a `transformers.Trainer` of a backbone that is extracted, scored and saved bare."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, ProgressCallback, TrainerCallback

from hf_plr.data.columns import AmbiguousLabelColumns, find_label_column
from hf_plr.data.image_augmentation import uniform
from hf_plr.data.sample_store import SampleStore
from hf_plr.evaluation.intervals import Interval, Scored
from hf_plr.evaluation.scores import SCORES, assess_features, score_features
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.hub.model_card import write_model_card
from hf_plr.hub.publisher import PublishingTrainer
from hf_plr.modality import find_modality
from hf_plr.models.vision import cannot_load
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.report.html.reporter import Reporter
from hf_plr.report.summary import RunSummary
from hf_plr.trainer.checkpointing import STATE_FILE, settings_of
from hf_plr.trainer.ema import EMATeacher
from hf_plr.trainer.progress_display import ProgressDisplay
from hf_plr.trainer.score_callback import SCORE_PREFIX, ScoreCallback
from hf_plr.training_args import AUTO, AUTO_PRESET, BaseTrainingArguments
from hf_plr.utils.distributed import on_main
from hf_plr.utils.rng import isolated_rng
from hf_plr.utils.serialization import checked, read_from

logger = logging.getLogger(__name__)

LOG_PREFIX = "plr/"
STUDENT_PREFIX = "student."
GALLERY_SAMPLES = 10_000  # training samples that an evaluation compares with


class BackboneTrainer(PublishingTrainer):
    """What training on images or sounds without labels needs beside its objective.

    It opens the samples, calls `prepare_epoch` where labels may change, extracts features, scores them against true
    labels, and saves and resumes the bare backbone together with the state of the labels. `PLRTrainer` and
    `UnitTrainer` add what they train on. Their augmentation depends on (seed, epoch, sample) alone.

    Args:
        model: the backbone, a model that `AutoModel` loads, its name, or its path.
        args: the arguments.
        train_dataset: a `datasets.Dataset` with a column of images or sounds.
        processing_class: image processor or feature extractor; by default the one saved with the model.
        eval_dataset: a data set (or a dict of such) with true labels that `evaluate` scores.
        augmentation: in place of the one that the arguments name; see `hf_plr.modality`.
        compute_metrics: as in `Trainer`; predictions are features (N, D), label_ids the true labels (N,).
        **kwargs: further arguments of `Trainer`, such as `callbacks` and `optimizers`.

    Attributes:
        modality: how samples are read and turned into features.
        scores: what `score` found, by moment.
        intervals: 95% intervals of those scores that have one, (low, high), by moment.
        reporter: gathers what `report.html` shows.
        teacher: the copy that follows the trained weights, None with `ema_decay` 0.

    Raises:
        ValueError: before any long work, if the data, the model and the arguments do not fit together.
    """

    arguments_class: type[BaseTrainingArguments]
    args: BaseTrainingArguments
    model: PreTrainedModel
    train_dataset: SampleStore
    eval_dataset: Any
    control: Any
    compute_metrics: Callable[[EvalPrediction], dict] | None

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        args: BaseTrainingArguments,
        train_dataset: Dataset,
        processing_class: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        augmentation: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ):
        self.label_column = _label_column_for_scoring(train_dataset, args.label_column)
        self.modality = find_modality(train_dataset, model, args, processing_class, augmentation)
        self.scores: dict[str, dict[str, float]] = {}
        self.intervals: dict[str, dict[str, Interval]] = {}
        self._scored_on_test = False
        self._label_names: dict[str, int] = {}  # shared by all splits, so that a class has one number
        self._eval_stores: dict[int, tuple[Dataset, SampleStore]] = {}  # the data set is held, so that its id stays its
        unscored = self.label_column is None and compute_metrics is None
        if args.load_best_model_at_end and args.metric_for_best_model in SCORES and unscored:
            raise ValueError(
                f"load_best_model_at_end with metric_for_best_model={args.metric_for_best_model!r} needs a label "
                "column to score by, and there is none: take a score that needs no labels, such as plr/silhouette"
            )
        store = self._store(train_dataset, self.label_column)
        super().__init__(
            model=self._trained_model(),
            args=args,
            data_collator=kwargs.pop("data_collator", self.modality.collate),
            train_dataset=store,
            eval_dataset={} if eval_dataset is None else eval_dataset,  # None would be refused: see `evaluate`
            processing_class=self.modality.processor,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a batch mean: let Trainer divide by accumulation steps
        self.label_names = ["labels"]
        self.eval_dataset = eval_dataset
        self._label_free: dict[str, float] = {}
        if self.compute_metrics is None and self.label_column is not None:
            self.compute_metrics = self._score_against_gallery
        if args.ema_decay and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(f"ema_decay={args.ema_decay} needs whole weights on every process: no FSDP, no DeepSpeed")
        self.ema_teacher = EMATeacher(self._bare(self.model), args.ema_decay) if args.ema_decay else None
        self._epoch = 0
        self.reporter = Reporter(args.report, str(args.output_dir), self.train_dataset, args.seed, self.accelerator)
        for display in (ProgressCallback, PrinterCallback):
            self.remove_callback(display)
        self.add_callback(ProgressDisplay(bar=not args.disable_tqdm))
        self.add_callback(_StageCallback(self))
        if args.score_every:
            self.add_callback(ScoreCallback(self, args.score_every))

    # ---- what an objective adds ----------------------------------------------------------------------------------

    @abstractmethod
    def prepare_epoch(self, epoch: int) -> None:
        """Make what this epoch trains on; a resumed epoch keeps what it had."""

    @abstractmethod
    def label_state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside weights and optimizer, as arrays by name; empty before the first epoch."""

    @abstractmethod
    def load_label_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        """Restore what `label_state` gave.

        Raises:
            ValueError: if it was written for another data set, naming the checkpoint.
        """

    def _trained_model(self) -> torch.nn.Module:
        """What is trained: the backbone, or a module that holds it."""
        return self.modality.model

    def _bare(self, model: torch.nn.Module) -> torch.nn.Module:
        """The backbone in what is trained."""
        return model

    # ---- features ------------------------------------------------------------------------------------------------

    def extract_features(self, dataset: Dataset | SampleStore | None = None) -> torch.Tensor:
        """Features without augmentation, float32 (N, D), on every process: of the training samples by default.

        They are computed in the precision of training; those that the stage clusters may be older or less precise.
        Samples are in the order of `train_dataset.rows`: that of the data set for images, by length for sounds.
        """
        return self._extractor.all(self.train_dataset if dataset is None else self._eval_store(dataset))

    @property
    def backbone(self) -> PreTrainedModel:
        """What is clustered, scored and saved: the backbone, or the copy that follows it, without anything around."""
        found: Any = self._student() if self.ema_teacher is None else self.ema_teacher.model
        return found

    def _student(self) -> torch.nn.Module:
        return self._bare(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    @property
    def _extractor(self) -> FeatureExtractor:
        return FeatureExtractor(
            self._bare(self.model) if self.ema_teacher is None else self.ema_teacher.model,
            self.modality,
            self.accelerator,
            self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress=not self.args.disable_tqdm,
        )

    def _numbers(self, index: torch.Tensor) -> torch.Tensor:
        """Random numbers (B, 16) of samples in this epoch."""
        return uniform(index, self.args.seed, self._epoch)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: str | Any = None) -> DataLoader:
        """Loader of an evaluation set, which may be given as a data set with images or by its name."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        if chosen is None:
            raise ValueError("evaluation needs an eval_dataset")
        return super().get_eval_dataloader(self._eval_store(chosen))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Loader of a test set with images."""
        return super().get_test_dataloader(self._eval_store(test_dataset))

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, with the scores that need no labels among the metrics as `eval_plr/...`.

        Without an evaluation set these are all that there is. They are of the training samples, and in the metrics of
        the first evaluation set where there are several.
        """
        if metric_key_prefix == "eval":
            found = self.label_free_scores()
            self._label_free = {f"eval_{LOG_PREFIX}{name}": value for name, value in found.items()}
        if eval_dataset is not None or self.eval_dataset is not None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics, self._label_free = self._label_free, {}
        if not metrics:
            return {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; see `evaluate`."""
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(self._label_free)
        self._label_free = {}
        return output

    def label_free_scores(self) -> dict[str, float]:
        """Scores that need no labels: here the figures of the last stage, without times; empty before the first."""
        stages = [entry for entry in self.state.log_history if f"{LOG_PREFIX}seconds" in entry]
        if not stages:
            return {}
        named = {name.removeprefix(LOG_PREFIX): value for name, value in stages[-1].items() if name != "epoch"}
        return {name: value for name, value in named.items() if name != "step" and not name.startswith("seconds")}

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor | None]:
        """Features of a batch without augmentation, and its true labels if there are any; no loss."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            features = self.modality.features(self._bare(model) if self.ema_teacher is None else self.backbone, inputs)
        return None, features, inputs.get("labels")

    def score(self, moment: str) -> dict[str, float]:
        """Score the features as they are now against the true labels, and remember it for the model card.

        Args:
            moment: name of the moment, such as "before" or "after".

        Returns:
            The scores that `assess` finds, on every process; empty if there is no label column.
        """
        found = self.assess()
        if found.values:
            self.scores[moment], self.intervals[moment] = found.values, found.intervals
        return found.values

    @property
    def can_score(self) -> bool:
        """Whether there is something to score by."""
        return self.label_column is not None

    def assess(self) -> Scored:
        """Score the features as they are now against the true labels; every process must call it.

        With an evaluation set (a single one) that has labels, all training images are the gallery; otherwise the
        training images are cross-validated. Labels are used for nothing else; the model, the mode of its modules and
        the random generators are left as they were.

        Returns:
            The scores of `hf_plr.evaluation.scores.SCORES` and their intervals, on every process; empty if there is no
            label column.
        """
        if not self.can_score:
            return Scored({})
        with isolated_rng(self.args.seed):
            found: Scored = self._assess()
        return found

    def _assess(self) -> Scored:
        features = self.extract_features().cpu().numpy()
        labels = self.train_dataset.true_labels()
        test_features = test_labels = None
        if isinstance(self.eval_dataset, Dataset) and self.label_column in self.eval_dataset.column_names:
            test = self._eval_store(self.eval_dataset)
            if (test.true_labels() >= 0).any():
                self._scored_on_test = True
                test_features, test_labels = self.extract_features(test).cpu().numpy(), test.true_labels()
        found: Scored = on_main(self.accelerator, lambda: assess_features(features, labels, test_features, test_labels))
        return found

    def _score_against_gallery(self, prediction: EvalPrediction) -> dict[str, float]:
        images = self.train_dataset
        chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), GALLERY_SAMPLES)).astype(np.int64))
        gallery = self._extractor.all(images, torch.from_numpy(chosen))
        labels = images.true_labels()[chosen]
        return score_features(gallery.cpu().numpy(), labels, prediction.predictions, prediction.label_ids)

    def _eval_store(self, dataset: Dataset | SampleStore) -> SampleStore:
        if isinstance(dataset, SampleStore):
            return dataset
        if id(dataset) not in self._eval_stores:
            has_labels = self.label_column is not None and self.label_column in dataset.column_names
            store = self._store(dataset, self.label_column if has_labels else None)
            self._eval_stores[id(dataset)] = dataset, store
        return self._eval_stores[id(dataset)][1]

    def _store(self, dataset: Dataset, label_column: str | None) -> SampleStore:
        return self.modality.open(dataset, label_column, self._label_names)

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def run_state(self) -> dict[str, np.ndarray]:
        state = self.label_state()
        if state and self.ema_teacher is not None:
            weights = self._student().state_dict()
            state |= {f"{STUDENT_PREFIX}{name}": value.cpu().numpy() for name, value in weights.items()}
        return state

    def load_run_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        self.load_label_state(state, checkpoint)
        self._load_student(state, checkpoint)

    def run_settings(self) -> dict[str, Any]:
        samples = {"samples": len(self.train_dataset), "data": self.train_dataset.digest()}
        return samples | settings_of(self.args, self.arguments_class)

    def create_model_card(self, **kwargs: Any) -> None:
        """Write the model card `README.md` into the output directory; `write_model_card` has the arguments."""
        if self.is_world_process_zero():
            write_model_card(self.summary(), **kwargs)

    def write_report(self, rows: np.ndarray | None = None) -> None:
        """Write `report.html` and `report.json` into the output directory, on the main process; not with `report` "no".

        A report that cannot be written is warned of.

        Args:
            rows: number of each row of `train_dataset` in the data that it was taken from; by default the row itself.
        """
        if self.is_world_process_zero():
            self.reporter.rows = self.reporter.rows if rows is None else rows
            with isolated_rng(self.args.seed):
                self.reporter.write(self.summary(), self.state.log_history)

    def _write_stage_report(self) -> None:
        if self.is_world_process_zero():
            with isolated_rng(self.args.seed):
                self.reporter.write_stage(self.summary(), self.state.log_history)

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        return RunSummary(
            args=self.args,
            modality=self.modality,
            architecture=type(self.backbone).__name__,
            start=self.backbone.name_or_path,
            n_samples=len(self.train_dataset),
            unreadable_rows=self.train_dataset.unreadable,
            epochs=self.state.epoch or 0.0,
            steps=self.state.global_step,
            processes=self.accelerator.num_processes,
            stages=[entry for entry in self.state.log_history if f"{LOG_PREFIX}seconds" in entry],
            scores=self.scores,
            intervals=self.intervals,
            epoch_scores=[
                entry
                for entry in self.state.log_history
                if f"{LOG_PREFIX}seconds" not in entry and any(name.startswith(SCORE_PREFIX) for name in entry)
            ],
            scored_on_test=self._scored_on_test,
        )

    def labelled_media(self) -> tuple[Dataset, np.ndarray]:
        return self.train_dataset.stored, self.train_dataset.rows

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_weights(self.state.best_model_checkpoint)

    def _load_weights(self, checkpoint: str) -> None:
        """Load a checkpoint's weights into the model in place.

        `save_pretrained` writes ViT's weights under the names that older releases had, `from_pretrained` knows both,
        but Trainer's own loading goes by name alone and leaves such weights as they are, with only a warning.
        """
        backbone: Any = self.backbone if self.ema_teacher is not None else self._bare(self.model)
        try:
            saved = type(backbone).from_pretrained(checkpoint, dtype=torch.float32)
        except Exception as error:  # of transformers, safetensors or the file system
            raise ValueError(cannot_load(checkpoint, error)) from error
        backbone.load_state_dict(saved.state_dict())

    def _load_student(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        """The trained weights, where what was saved is the copy that follows them."""
        if self.ema_teacher is None:
            return
        student = self._bare(self.model)
        weights = {}
        with read_from(os.path.join(checkpoint, STATE_FILE)):
            for name, value in student.state_dict().items():
                kind = "floats" if value.is_floating_point() else "integers"
                stored = checked(state, f"{STUDENT_PREFIX}{name}", kind, tuple(value.shape))
                weights[name] = torch.from_numpy(stored)
        student.load_state_dict(weights)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the bare backbone, as `Trainer` saves a model."""
        if self.backbone is self.accelerator.unwrap_model(self.model, keep_torch_compile=False):
            super()._save(output_dir, state_dict)
            return
        trained, self.model = self.model, self.backbone
        try:
            super()._save(output_dir)
        finally:
            self.model = trained


class _StageCallback(TrainerCallback):
    """Runs the stage where Trainer lets labels change: after the model is prepared, before the loader is opened."""

    def __init__(self, trainer: BackboneTrainer):
        self.trainer = trainer
        self.epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Counted, since a callback that stops an epoch early leaves state.epoch behind.
        self.trainer.prepare_epoch(self.epoch)
        self.trainer._write_stage_report()
        self.epoch += 1

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ema_teacher is not None:
            self.trainer.ema_teacher.follow(self.trainer._student())


def check_dataset(dataset: Any) -> Dataset:
    """Refuse what is no `datasets.Dataset`.

    Raises:
        TypeError: naming what came.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"train_dataset must be a datasets.Dataset with a column of images or sounds, not {type(dataset).__name__}"
        )
    return dataset


def preset_of(args: BaseTrainingArguments, auto: str = AUTO_PRESET) -> str:
    """The preset that the arguments name; `auto` is what "auto" stands for."""
    return auto if args.refinement == AUTO else args.refinement


def refiner_from(args: BaseTrainingArguments, auto: str = AUTO_PRESET) -> PseudoLabelRefiner:
    """The refiner that the arguments name; `auto` is the preset that "auto" stands for."""
    overrides = {} if args.refinement_weight is None else {"weight": args.refinement_weight}
    return PseudoLabelRefiner.from_preset(preset_of(args, auto), **overrides)


def _label_column_for_scoring(dataset: Dataset, wanted: str | None) -> str | None:
    try:
        return find_label_column(dataset, wanted)
    except AmbiguousLabelColumns as error:
        logger.warning("%s: nothing is scored; choose one with --label_column (label_column=...).", error)
        return None
