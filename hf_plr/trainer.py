"""`PLRTrainer`: a `transformers.Trainer` with a refinement stage between epochs."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_plr.clustering import make_clusterer
from hf_plr.data.augmentation import AUGMENTATIONS, Augmentation, uniform
from hf_plr.data.columns import AmbiguousLabelColumns, find_image_column, find_label_column
from hf_plr.data.images import ImageGeometry, ImageStore, collate_images
from hf_plr.data.sampler import ClusterSampler
from hf_plr.evaluation.scores import SCORES, score_features
from hf_plr.feature_source import FeatureSource
from hf_plr.features import FeatureExtractor
from hf_plr.models.backbone import VisionBackbone, load_backbone, load_image_processor
from hf_plr.models.cluster_memory import ClusterMemory
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.report.model_card import write_model_card
from hf_plr.report.outputs import write_pseudo_labels
from hf_plr.report.summary import RunSummary
from hf_plr.stage import Clusterer, PseudoLabels, RefinementStage, check_finite, default_num_clusters
from hf_plr.state import load_state, save_state
from hf_plr.training_args import PLRTrainingArguments

logger = logging.getLogger(__name__)

LOG_PREFIX = "plr/"
GALLERY_SAMPLES = 10_000  # training images that an evaluation compares with


class PLRTrainer(Trainer):
    """Train a vision backbone without labels, on clusters that are refined from epoch to epoch.

    Before each epoch the trainer extracts the features of the training images without augmentation, clusters them,
    refines the clusters by those of the last epoch, and rebuilds a memory of one prototype for each refined cluster.
    The epoch then pulls every image to its prototype. Everything else is `transformers.Trainer`.

    Args:
        model: a vision transformer that `AutoModel` loads (ViT, DeiT, DINOv2, ...), its name, or its path.
        args: the arguments.
        train_dataset: a `datasets.Dataset` with a column of images. It needs no other column, and no label is used
            for training.
        processing_class: the image processor; by default the one saved with the model.
        eval_dataset: a data set with images and true labels (or a dict of such) that is scored by `evaluate`:
            5-nearest-neighbour and linear-probe accuracy with labelled training images as the gallery, NMI and
            clustering accuracy.
        clusterer: object with `fit_predict` on features (N, D), labels (N,), -1 = noise. By default the one named by
            `args.clusterer`: k-means with `args.num_clusters` clusters, warm-started.
        refiner: the refinement; by default the preset `args.refinement`.
        augmentation: called with images (B, C, H, W) in [0, 1] and random numbers (B, 16) uniform in [0, 1) that are
            fixed by seed, epoch and image; by default the one named by `args.augmentation`.
        compute_metrics: as in `Trainer`; predictions are features (N, D), label_ids the true labels (N,).
        **kwargs: further arguments of `Trainer`, such as `callbacks` and `optimizers`.

    Attributes:
        pseudo_labels: the labels of the current epoch, None before the first stage.
        scores: what `score` found, by moment.

    Raises:
        ValueError: before any long work, if the data, the model and the arguments do not fit together.
    """

    args: PLRTrainingArguments
    model: PreTrainedModel
    train_dataset: ImageStore
    compute_metrics: Callable[[EvalPrediction], dict] | None

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        args: PLRTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        processing_class: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        clusterer: Clusterer | None = None,
        refiner: PseudoLabelRefiner | None = None,
        augmentation: Augmentation | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ):
        args = PLRTrainingArguments("plr_output") if args is None else args
        if not isinstance(args, PLRTrainingArguments):
            raise TypeError(f"args must be PLRTrainingArguments, not {type(args).__name__}")
        if not isinstance(train_dataset, Dataset):
            raise TypeError(
                f"train_dataset must be a datasets.Dataset with a column of images, not {type(train_dataset).__name__}"
            )
        num_clusters = args.num_clusters or default_num_clusters(len(train_dataset))
        if clusterer is None and num_clusters > len(train_dataset) > 0:
            raise ValueError(f"num_clusters={num_clusters} but the data set has {len(train_dataset)} samples")
        if clusterer is None:
            progress = not args.disable_tqdm and args.process_index == 0
            settings: Any = args.clusterer_kwargs
            clusterer = make_clusterer(args.clusterer, num_clusters, settings, seed=args.seed, verbose=progress)
        counted = getattr(clusterer, "n_clusters", None)
        self.image_column = find_image_column(train_dataset, args.image_column)
        self.label_column = _label_column_for_scoring(train_dataset, args.label_column)

        backbone_model = load_backbone(model)
        processing_class = load_image_processor(backbone_model) if processing_class is None else processing_class
        self.geometry = ImageGeometry(processing_class, backbone_model.config.num_channels)
        self.backbone = VisionBackbone(backbone_model, args.pooling, self.geometry.image_size)
        self.scores: dict[str, dict[str, float]] = {}
        self._scored_on_test = False
        self._label_names: dict[str, int] = {}  # shared by all splits, so that a class has one number
        self._eval_stores: dict[int, tuple[Dataset, ImageStore]] = {}  # the data set is held, so that its id stays its
        unscored = self.label_column is None and compute_metrics is None
        if args.load_best_model_at_end and args.metric_for_best_model in SCORES and unscored:
            raise ValueError(
                f"load_best_model_at_end with metric_for_best_model={args.metric_for_best_model!r} needs a label "
                "column to score by, and there is none"
            )
        images = self._store(train_dataset, args, self.label_column)
        if isinstance(counted, int) and counted > len(images):
            raise ValueError(f"num_clusters={counted} but only {len(images)} images can be read")

        super().__init__(
            model=backbone_model,
            args=args,
            data_collator=kwargs.pop("data_collator", collate_images),
            train_dataset=images,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a batch mean: let Trainer divide by accumulation steps
        self.label_names = ["labels"]
        if self.compute_metrics is None and self.label_column is not None:
            self.compute_metrics = self._score_against_gallery
        self.augmentation = AUGMENTATIONS[args.augmentation] if augmentation is None else augmentation
        self.memory = ClusterMemory(args.temperature, args.prototype_momentum)
        self.stage = RefinementStage(
            clusterer=clusterer,
            refiner=_refiner_from(args) if refiner is None else refiner,
            refine_start_epoch=args.refine_start_epoch,
            accelerator=self.accelerator,
        )
        self._feature_source = FeatureSource(
            args.feature_source, args.feature_dtype, args.feature_momentum, args.feature_dir
        )
        data_seed = args.seed if args.data_seed is None else args.data_seed
        self._sampler = ClusterSampler(len(images), args.samples_per_cluster, data_seed, _samples_per_epoch(args))
        self._targets = torch.empty(0, dtype=torch.int64)
        self._epoch = 0
        self._resumed = False
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.add_callback(_StageCallback(self))

    # ---- the stage -----------------------------------------------------------------------------------------------

    @property
    def pseudo_labels(self) -> PseudoLabels | None:
        return self.stage.current

    def prepare_epoch(self, epoch: int) -> None:
        """Make the labels that this epoch trains on; a resumed epoch keeps the labels that it had."""
        goes_on = self._resumed and self._labels_now().epoch == epoch
        self._resumed = False
        self._epoch = epoch
        if not goes_on:
            with _isolated_rng(self.args.seed + epoch):
                started = time.perf_counter()
                features = self.extract_shard()
                mine = self._extractor.shard(len(self.train_dataset))
                check_finite(features, epoch, self.train_dataset.rows[mine], self.accelerator)
                features = self.memory.recenter(features, self.accelerator)
                extracted = time.perf_counter()
                figures = self.stage.run(features, epoch)
                targets = self._targets_on(features.device)[mine]
                self.memory.rebuild(features, targets, self._labels_now().n_clusters, self.accelerator)
                figures |= {"seconds_extract": extracted - started, "seconds": time.perf_counter() - started}
            self.log({f"{LOG_PREFIX}{name}": value for name, value in figures.items()})
        self._targets = self._targets_on(self.args.device)
        self.memory.to(self.args.device)
        self._sampler.set_targets(self._labels_now().targets, epoch)
        self._pending.clear()

    def extract_features(self, dataset: Dataset | ImageStore | None = None) -> torch.Tensor:
        """Features without augmentation, float32 of shape (N, D), on every process: of the training images by default.

        They are computed in the precision of training; those that the stage clusters may be older or less precise.
        """
        images = self.train_dataset if dataset is None else self._eval_store(dataset)
        return self._extractor.all(images)

    def extract_shard(self) -> torch.Tensor:
        """Features that the stage clusters: this process's training images, float32 of shape (n, D)."""
        return self._feature_source.shard(self._extractor, self.train_dataset, self.stage.clusterer)

    @property
    def _extractor(self) -> FeatureExtractor:
        return FeatureExtractor(
            self.model,
            self.backbone,
            self.accelerator,
            self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress=not self.args.disable_tqdm,
        )

    def _labels_now(self) -> PseudoLabels:
        if self.pseudo_labels is None:
            raise RuntimeError("there are no pseudo-labels yet: call train() first")
        return self.pseudo_labels

    def _targets_on(self, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self._labels_now().targets).to(device)

    # ---- the training loop ---------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return self._sampler

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of a batch of images against the prototypes of their refined clusters."""
        index = inputs["index"]
        raw = self.backbone.features(model, self._augmented(inputs["pixel_values"], index))
        features = self.memory.embed(raw)
        targets = self._targets[index]
        soft = self._labels_now().soft_targets
        if soft is None:
            loss = self.memory.loss(features, targets)
        else:
            rows = torch.from_numpy(soft[index.cpu().numpy()].toarray())
            loss = self.memory.loss(features, rows.to(features))
        self._pending.append((raw.detach(), index))
        return (loss, {"features": features}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step of `Trainer`; at the last of an accumulation the prototypes follow the batch of all processes."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            raw, index = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
            self._pending.clear()
            if self.accelerator.num_processes > 1:
                raw = self.accelerator.pad_across_processes(raw)
                index = self.accelerator.pad_across_processes(index, pad_index=-1)
                raw, index = self.accelerator.gather((raw, index))
            self.memory.update(self.memory.embed(raw), torch.where(index >= 0, self._targets[index], -1))
            self._feature_source.note(index, raw)
        return loss

    def _augmented(self, pixels: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        numbers = uniform(index, self.args.seed, self._epoch)
        return self.geometry.normalise(self.augmentation(self.geometry.unit_range(pixels), numbers))

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

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor | None]:
        """Features of a batch without augmentation, and its true labels if there are any; no loss."""
        inputs = self._prepare_inputs(inputs)
        pixels = self.geometry.normalise(self.geometry.unit_range(inputs["pixel_values"]))
        with torch.no_grad(), self.accelerator.autocast():
            features = self.backbone.features(model, pixels)
        return None, features, inputs.get("labels")

    def score(self, moment: str) -> dict[str, float]:
        """Score the features as they are now against the true labels, and remember it for the model card.

        With an evaluation set (a single one) that has labels, all training images are the gallery; otherwise the
        training images are cross-validated. Labels are used for nothing else.

        Args:
            moment: name of the moment, such as "before" or "after".

        Returns:
            The scores of `hf_plr.evaluation.scores.SCORES`; empty if there is no label column.
        """
        if self.label_column is None:
            return {}
        features = self.extract_features().cpu().numpy()
        labels = self.train_dataset.true_labels()
        test_features = test_labels = None
        if isinstance(self.eval_dataset, Dataset) and self.label_column in self.eval_dataset.column_names:
            test = self._eval_store(self.eval_dataset)
            if (test.true_labels() >= 0).any():
                self._scored_on_test = True
                test_features, test_labels = self.extract_features(test).cpu().numpy(), test.true_labels()
        if self.is_world_process_zero():
            self.scores[moment] = score_features(features, labels, test_features, test_labels)
        return self.scores.get(moment, {})

    def _score_against_gallery(self, prediction: EvalPrediction) -> dict[str, float]:
        images = self.train_dataset
        chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), GALLERY_SAMPLES)).astype(np.int64))
        gallery = self._extractor.all(images, torch.from_numpy(chosen))
        labels = images.true_labels()[chosen]
        return score_features(gallery.cpu().numpy(), labels, prediction.predictions, prediction.label_ids)

    def _eval_store(self, dataset: Dataset | ImageStore) -> ImageStore:
        if isinstance(dataset, ImageStore):
            return dataset
        if id(dataset) not in self._eval_stores:
            has_labels = self.label_column is not None and self.label_column in dataset.column_names
            store = self._store(dataset, self.args, self.label_column if has_labels else None)
            self._eval_stores[id(dataset)] = dataset, store
        return self._eval_stores[id(dataset)][1]

    def _store(self, dataset: Dataset, args: PLRTrainingArguments, label_column: str | None) -> ImageStore:
        # With a file for the decoded images, one process of a machine writes it and the others wait for it.
        shared = args.image_cache_dir is not None and args.world_size > 1
        with args.main_process_first(desc="reading images") if shared else contextlib.nullcontext():
            return ImageStore(
                dataset,
                find_image_column(dataset, self.image_column),
                self.geometry,
                label_column=label_column,
                label_names=self._label_names,
                cache_bytes=int(args.image_cache_gib * 2**30),
                cache_dir=args.image_cache_dir,
                skip_unreadable=args.skip_unreadable,
                progress=not args.disable_tqdm and args.process_index == 0,
            )

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; a resumed run takes up its labels and prototypes too.

        Raises:
            ValueError: if the checkpoint was written for another data set.
        """
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
        if checkpoint:
            self._load_plr_state(str(checkpoint))
        self._resumed = bool(checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the bare backbone and the image processor, with the state of labels and prototypes beside them."""
        directory = self.args.output_dir if output_dir is None else output_dir
        if self.args.should_save and self.pseudo_labels is not None:
            os.makedirs(directory, exist_ok=True)
            save_state(
                directory, self.stage.state_dict() | self.memory.state_dict() | self._feature_source.state_dict()
            )
        super().save_model(output_dir, _internal_call)

    def save_pseudo_labels(self, path: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Write index, label, previous_label and confidence of every training sample as parquet, in data order.

        Args:
            path: the file.
            rows: number of each row of `train_dataset` in the data that it was taken from, for `index`; by default the
                row itself. Rows that could not be read are not in the file.
        """
        readable = self.train_dataset.rows
        write_pseudo_labels(path, readable if rows is None else rows[readable], self._labels_now())

    def create_model_card(self, **kwargs: Any) -> None:
        """Write the model card `README.md` into the output directory; `write_model_card` has the arguments."""
        if self.is_world_process_zero():
            write_model_card(self.summary(), **kwargs)

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        backbone = self.accelerator.unwrap_model(self.model)
        return RunSummary(
            args=self.args,
            architecture=type(backbone).__name__,
            start=backbone.name_or_path,
            hidden_size=backbone.config.hidden_size,
            feature=self.backbone.feature_expression(),
            interpolates=bool(self.backbone.forward_arguments),
            n_samples=len(self.train_dataset),
            unreadable_rows=self.train_dataset.unreadable,
            epochs=self.state.epoch or 0.0,
            steps=self.state.global_step,
            processes=self.accelerator.num_processes,
            labels=self.pseudo_labels,
            stages=[entry for entry in self.state.log_history if f"{LOG_PREFIX}clusters" in entry],
            scores=self.scores,
            scored_on_test=self._scored_on_test,
        )

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
        saved = type(self.model).from_pretrained(checkpoint, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())

    def _load_plr_state(self, checkpoint: str) -> None:
        state = load_state(checkpoint)
        n_stored = len(state["labels"])
        if n_stored != len(self.train_dataset):
            raise ValueError(
                f"{checkpoint} has labels for {n_stored} samples but the data set has {len(self.train_dataset)}: "
                "resume with the data set that the run was started with"
            )
        self.memory.load_state_dict(state)
        self.stage.load_state_dict(state)
        self._feature_source.load_state_dict(state, self.args.device)


class _StageCallback(TrainerCallback):
    """Runs the stage where Trainer lets labels change: after the model is prepared, before the loader is opened."""

    def __init__(self, trainer: PLRTrainer):
        self.trainer = trainer
        self.epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Counted, since a callback that stops an epoch early leaves state.epoch behind.
        self.trainer.prepare_epoch(self.epoch)
        self.epoch += 1


def _samples_per_epoch(args: PLRTrainingArguments) -> int | None:
    if args.steps_per_epoch is None:
        return None
    return args.steps_per_epoch * args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _refiner_from(args: PLRTrainingArguments) -> PseudoLabelRefiner:
    overrides = {} if args.refinement_weight is None else {"weight": args.refinement_weight}
    return PseudoLabelRefiner.from_preset(args.refinement, **overrides)


def _label_column_for_scoring(dataset: Dataset, wanted: str | None) -> str | None:
    try:
        return find_label_column(dataset, wanted)
    except AmbiguousLabelColumns as error:
        logger.warning("%s: nothing is scored; choose one with label_column.", error)
        return None


@contextlib.contextmanager
def _isolated_rng(seed: int) -> Iterator[None]:
    """Seed all global random generators inside, and leave them as they were: a resumed run must not see the stage."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
