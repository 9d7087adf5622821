"""`PLRTrainer`: a `transformers.Trainer` with a refinement stage between epochs."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel

from hf_plr.clustering import can_be_finer, make_clusterers
from hf_plr.clustering.checks import NotFiniteError
from hf_plr.evaluation.clusters import score_clusters
from hf_plr.evaluation.label_free import LABEL_FREE_SCORES, collapse
from hf_plr.features.source import FeatureSource
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.sampler import ClusterSampler, data_seed, samples_per_epoch
from hf_plr.pseudo_labels.stage import Clusterer, PseudoLabels, RefinementStage, check_finite, default_num_clusters
from hf_plr.refinement import NOISE, PseudoLabelRefiner, adjusted_rand, cooccurrence
from hf_plr.report.html.sheets import Snapshot
from hf_plr.report.outputs import PROTOTYPES_FILE, PSEUDO_LABELS_FILE, write_prototypes, write_pseudo_labels
from hf_plr.report.summary import LABEL_SCORE_PREFIX, RunSummary, cluster_sizes
from hf_plr.trainer.base_trainer import LOG_PREFIX, BackboneTrainer, check_dataset, preset_of, refiner_from
from hf_plr.trainer.checkpointing import STATE_FILE, as_stored, estimator_settings
from hf_plr.training_args import AUTO, AUTO_LABELINGS, PLRTrainingArguments
from hf_plr.utils.distributed import check_sharding, gather_all
from hf_plr.utils.rng import isolated_rng
from hf_plr.utils.serialization import read_from, under

logger = logging.getLogger(__name__)


class PLRTrainer(BackboneTrainer):
    """Train a backbone of images or sounds without labels, on clusters that are refined from epoch to epoch.

    Before each epoch the trainer extracts the features of the training samples without augmentation, clusters them,
    refines the clusters by those of the last epoch, and rebuilds a memory of one prototype for each cluster. The epoch
    then pulls every sample to its prototype, or where targets are soft to several. With several labelings all of this
    is done for each of them, and the loss is their mean. Everything else is `transformers.Trainer`.

    Args:
        model: a vision transformer (ViT, DeiT, DINOv2, ...) or a speech transformer (HuBERT, wav2vec 2.0, WavLM,
            data2vec) that `AutoModel` loads, its name, or its path.
        args: the arguments.
        train_dataset: a `datasets.Dataset` with a column of images or sounds. It needs no other column, and no label
            is used for training.
        processing_class: the image processor or feature extractor; by default the one saved with the model.
        eval_dataset: a data set with true labels (or a dict of such) that is scored by `evaluate`:
            nearest-neighbour and linear-probe accuracy with labelled training samples as the gallery, NMI and
            clustering accuracy.
        clusterer: object with `fit_predict` on features (N, D), labels (N,), -1 = noise. By default the one named by
            `args.clusterer`: k-means with `args.num_clusters` clusters, warm-started.
        refiner: the refinement; by default the one that `args.refinement` names. With one of your own there is a single
            labeling, unless `args.num_labelings` asks for more.
        augmentation: called with images (B, C, H, W) in [0, 1], or with waveforms (B, T) and lengths (B,), and with
            random numbers (B, 16) uniform in [0, 1) that are fixed by seed, epoch and sample; by default the one named
            by `args.augmentation`.
        compute_metrics: as in `Trainer`; predictions are features (N, D), label_ids the true labels (N,).
        **kwargs: further arguments of `Trainer`, such as `callbacks` and `optimizers`.

    Attributes:
        pseudo_labels: the labels of the current epoch, None before the first stage; samples are in the order of
            `train_dataset.rows`.
        scores: what `score` found, by moment.

    Raises:
        ValueError: before any long work, if the data, the model and the arguments do not fit together.
    """

    arguments_class = PLRTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        args: PLRTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        processing_class: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        clusterer: Clusterer | None = None,
        refiner: PseudoLabelRefiner | None = None,
        augmentation: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ):
        args = PLRTrainingArguments("plr_output") if args is None else args
        if not isinstance(args, PLRTrainingArguments):
            raise TypeError(f"args must be PLRTrainingArguments, not {type(args).__name__}")
        train_dataset = check_dataset(train_dataset)
        num_clusters = args.num_clusters or default_num_clusters(len(train_dataset))
        if clusterer is None and num_clusters > len(train_dataset) > 0:
            raise ValueError(f"num_clusters={num_clusters} but the data set has {len(train_dataset)} samples")
        if clusterer is None:
            clusterers = _clusterers(args.num_labelings or 1, args, num_clusters, len(train_dataset))
            is_auto = args.num_labelings is None and args.refinement == AUTO and refiner is None
            if is_auto and can_be_finer(clusterers[0]):
                clusterers = _clusterers(AUTO_LABELINGS, args, num_clusters, len(train_dataset))
        elif (args.num_labelings or 1) == 1:
            clusterers = [clusterer]
        else:
            raise ValueError(f"num_labelings={args.num_labelings} needs a clusterer by name, not one of your own")
        super().__init__(
            model,
            args,
            train_dataset,
            processing_class=processing_class,
            eval_dataset=eval_dataset,
            augmentation=augmentation,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        check_sharding(self.accelerator, self.modality.model)
        counted = getattr(clusterers[0], "n_clusters", None)
        if isinstance(counted, int) and counted > len(self.train_dataset):
            raise ValueError(
                f"num_clusters={counted} but only {len(self.train_dataset)} {self.modality.plural} can be read"
            )
        self.labelings = [
            Labeling(self._stage_of(each, is_first=i == 0), self._new_memory(), args.confidence_power)
            for i, each in enumerate(clusterers)
        ]
        if refiner is not None:
            for labeling in self.labelings:
                labeling.stage.refiner = refiner if labeling is self.labelings[0] else copy.deepcopy(refiner)
        self._feature_source = FeatureSource(
            args.feature_source, args.feature_dtype, args.feature_momentum, args.feature_dir
        )
        n_samples, in_a_row = len(self.train_dataset), args.samples_per_cluster
        self._sampler = ClusterSampler(n_samples, in_a_row, data_seed(args), samples_per_epoch(args, n_samples))
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._ahead: tuple[int, torch.Tensor, torch.Tensor] | None = None  # step, features and their mean

    # ---- the stage -----------------------------------------------------------------------------------------------

    @property
    def stage(self) -> RefinementStage:
        """The stage of the labels that are reported and saved: those of the first labeling."""
        return self.labelings[0].stage

    @property
    def memory(self) -> PrototypeMemory:
        """The prototypes of these labels."""
        return self.labelings[0].memory

    @property
    def pseudo_labels(self) -> PseudoLabels | None:
        return self.stage.current

    def _stage_of(self, clusterer: Clusterer, is_first: bool) -> RefinementStage:
        return RefinementStage(
            clusterer=clusterer,
            refiner=refiner_from(self.args),
            refine_start_epoch=self.args.refine_start_epoch,
            min_confidence=self.args.min_confidence,
            accelerator=self.accelerator,
            may_be_empty=not is_first,
        )

    def prepare_epoch(self, epoch: int) -> None:
        """Make the labels that this epoch trains on; a resumed epoch keeps the labels that it had."""
        goes_on = self._resumed and self._labels_now().epoch == epoch
        self._resumed = False
        self._epoch = epoch
        if not goes_on:
            try:
                with isolated_rng(self.args.seed + epoch):
                    figures = self._relabel(epoch)
            except NotFiniteError as error:
                if self.pseudo_labels is None or self.args.on_nan != "skip_epoch":
                    raise
                logger.warning("%s This epoch keeps the labels of the last one.", error)
                for labeling in self.labelings:
                    labeling.stage.keep(epoch)
            else:
                scores = {f"{LABEL_SCORE_PREFIX}{name}": value for name, value in self.score_labels().items()}
                self.log({f"{LOG_PREFIX}{name}": value for name, value in figures.items()} | scores)
        for labeling in self.labelings:
            labeling.to(self.args.device)
        self._sampler.set_targets(self._labels_now().targets, epoch)
        self._pending.clear()

    def _relabel(self, epoch: int) -> dict[str, float]:
        """New labels and prototypes; returns the stage's figures for the log."""
        started = time.perf_counter()
        features, center = self._evaluated() or self._embedded(self.extract_shard())
        extracted = time.perf_counter()
        mine = self._extractor.shard(self.train_dataset)
        found = [labeling.renew(features, center, mine, epoch) for labeling in self.labelings]
        renewed = time.perf_counter()
        figures = found[0] | self.labelings[0].score(features, mine) | self._between_labelings()
        self._warn_of_collapse(figures)
        finished = time.perf_counter()
        self.reporter.note_stage(self._snapshot(), features, mine)
        return figures | {
            **{name: sum(each[name] for each in found) for name in ("seconds_cluster", "seconds_refine")},
            "seconds_extract": extracted - started,
            "seconds_score": finished - renewed,
            "seconds": finished - started,
        }

    def _between_labelings(self) -> dict[str, float]:
        """Mean agreement of the first labeling with the others, where there are some."""
        mine = self._extractor.shard(self.train_dataset)
        first, *others = (labeling.now.labels[mine] for labeling in self.labelings)
        tables = [sum(gather_all(self.accelerator, cooccurrence(first, other))) for other in others]
        agreements = [adjusted_rand(table.previous, table.current, table.counts) for table in tables]
        return {"labelings_ari": float(np.mean(agreements))} if agreements else {}

    def _evaluated(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What `_embedded` gave to an evaluation of these very weights, where there was one."""
        ahead, self._ahead = self._ahead, None
        return ahead[1:] if ahead is not None and ahead[0] == self.state.global_step else None

    def _embedded(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's features (n, D), overwritten by their embedding, and the mean of all."""
        mine = self._extractor.shard(self.train_dataset)
        check_finite(features, self._epoch, self.train_dataset.rows[mine], self.accelerator)
        memory = self._new_memory()
        return memory.recenter(features, self.accelerator), memory.center

    def _new_memory(self) -> PrototypeMemory:
        return PrototypeMemory(self.args.temperature, self.args.prototype_momentum)

    def _warn_of_collapse(self, figures: dict[str, float]) -> None:
        rank = f"{LOG_PREFIX}effective_rank"
        logged = (entry[rank] for entry in self.state.log_history if rank in entry)
        sign = collapse(figures, next(logged, figures["effective_rank"]))
        if sign is not None:
            logger.warning(
                "Epoch %d: %s. The features may be collapsing: lower the learning rate, or use more clusters.",
                self._epoch,
                sign,
            )

    def score_labels(self) -> dict[str, float]:
        """How well the pseudo-labels agree with the true labels now, by `score_clusters`; empty if none is known."""
        truth, labels = self.true_labels(), self._labels_now().labels
        if truth is None or not ((truth != NOISE) & (labels != NOISE)).any():
            return {}
        if truth.min() < NOISE:  # classes may have any numbers
            truth = np.where(truth == NOISE, NOISE, truth - truth.min())
        return score_clusters(labels, truth)

    def true_labels(self) -> np.ndarray | None:
        """True label of each training sample, -1 = unknown, shape (N,), for scoring alone; None if there are none."""
        return None if self.label_column is None else self.train_dataset.true_labels()

    def _snapshot(self) -> Snapshot:
        """The labels as the report shows them."""
        now = self._labels_now()
        is_first = (now.previous_labels == NOISE).all()
        return Snapshot(now.epoch, now.labels, None if is_first else now.previous_labels, now.confidence)

    def extract_shard(self) -> torch.Tensor:
        """Features that the stage clusters: this process's training samples, float32 of shape (n, D)."""
        return self._feature_source.shard(self._extractor, self.train_dataset, self.stage.clusterer)

    def _shard_now(self) -> torch.Tensor:
        """Features of this process's training samples by the weights as they are, float32 of shape (n, D)."""
        mine = self._extractor.shard(self.train_dataset)
        return self._extractor.of(self.train_dataset, torch.arange(mine.start, mine.stop))

    def _labels_now(self) -> PseudoLabels:
        return self.labelings[0].now

    # ---- the training loop ---------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of a batch of samples against the prototypes of their refined clusters, a mean of labelings."""
        index = inputs["index"]
        raw = self.modality.features(model, inputs, self._numbers(index))
        teaching = [labeling for labeling in self.labelings if labeling.now.n_clusters]
        loss = torch.stack([labeling.loss(raw, index) for labeling in teaching]).mean()
        self._pending.append((raw.detach(), index))
        return (loss, {"features": self.memory.embed(raw)}) if return_outputs else loss

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
            for labeling in self.labelings:
                if labeling.now.n_clusters:
                    labeling.follow(raw, index)
            self._feature_source.note(index, raw)
        return loss

    def _trained_model(self) -> torch.nn.Module:
        self.modality.freeze_unused()
        return self.modality.model

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return self._sampler

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def label_free_scores(self) -> dict[str, float]:
        """The figures of the last stage, and scores of the features as they are now under its labels.

        At the end of an epoch the next stage takes over the features, so that they cost nothing more; with
        `feature_source` "epoch", and in the middle of an epoch, they take a pass over the samples.
        """
        if self.pseudo_labels is None:
            return {}
        mine = self._extractor.shard(self.train_dataset)
        of_training = self.args.feature_source == "epoch"  # what training saw is the stage's alone, and older
        with isolated_rng(self.args.seed + self._epoch):
            fresh = self._shard_now() if of_training else self.extract_shard()
            try:
                features, center = self._embedded(fresh)
            except NotFiniteError:
                if self.args.on_nan != "skip_epoch":
                    raise
                return super().label_free_scores() | dict.fromkeys(LABEL_FREE_SCORES, float("nan"))
            step, epoch = self.state.global_step, self.state.epoch or 0.0
            if not of_training and epoch % 1 == 0 and step < self.state.max_steps:
                self._ahead = step, features, center
            return super().label_free_scores() | self.labelings[0].score(features, mine)

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def label_state(self) -> dict[str, np.ndarray]:
        if self.pseudo_labels is None:
            return {}
        state = self._feature_source.state_dict()
        for labeling, prefix in self._prefixed_labelings():
            state |= {f"{prefix}{name}": value for name, value in labeling.state_dict().items()}
        return state

    def load_label_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        n_samples, width = len(self.train_dataset), self._extractor.width
        with read_from(os.path.join(checkpoint, STATE_FILE)):
            for labeling, prefix in self._prefixed_labelings():
                labeling.load_state_dict(under(prefix, state), n_samples, width)
            self._feature_source.load_state_dict(state, self.args.device, (n_samples, width))
        self.reporter.go_on(self._snapshot())

    def _prefixed_labelings(self) -> list[tuple[Labeling, str]]:
        """The labelings, and what their arrays' names begin with in a state."""
        return [(labeling, f"labeling.{i}." if i else "") for i, labeling in enumerate(self.labelings)]

    def run_settings(self) -> dict[str, Any]:
        clusterers = [estimator_settings(labeling.stage.clusterer) for labeling in self.labelings]
        parts = {
            "clusterer's parameters": clusterers[0] if len(clusterers) == 1 else clusterers,
            "refiner": self.stage.refiner.settings(),
            "refinement": preset_of(self.args),
            "num_labelings": len(self.labelings),
        }
        return super().run_settings() | as_stored(parts)

    def save_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Write the last labels to `pseudo_labels.parquet`, and what their clusters look like to the backbone as it is
        now to `prototypes.safetensors`.

        Args:
            directory: where to.
            rows: as for `save_pseudo_labels`.
        """
        labels, memory = self._prototypes_now()
        if self.is_world_process_zero():
            self.save_pseudo_labels(os.path.join(directory, PSEUDO_LABELS_FILE), rows)
            arrays = memory.state_dict()
            path = os.path.join(directory, PROTOTYPES_FILE)
            write_prototypes(path, arrays["prototypes"], labels, arrays["center"])
        self._note_saved_labels(directory, rows)

    def _prototypes_now(self) -> tuple[np.ndarray, PrototypeMemory]:
        """The clusters' labels (K,), and a memory of their mean features: those that training moves are older."""
        now = self._labels_now().labels
        labels = np.unique(now[now != NOISE])
        memory = self._new_memory()
        mine = self._extractor.shard(self.train_dataset)
        features = memory.recenter(self._shard_now(), self.accelerator)
        targets = np.where(now != NOISE, np.searchsorted(labels, now), NOISE)[mine]
        memory.rebuild(features, torch.from_numpy(targets).to(features.device), len(labels), self.accelerator)
        return labels, memory

    def save_pseudo_labels(self, path: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Write index, file if known, label, previous_label and confidence of every sample as parquet, in data order.

        Args:
            path: the file.
            rows: number of each row of `train_dataset` in the data that it was taken from, for `index`; by default the
                row itself. Rows that could not be read are not in the file.
        """
        readable = self.train_dataset.rows
        index = readable if rows is None else rows[readable]
        write_pseudo_labels(path, index, self._labels_now(), self.train_dataset.files())

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        summary = super().summary()
        files = (
            (PSEUDO_LABELS_FILE, f"index, label, previous_label and confidence of every training {self.modality.noun}"),
            (PROTOTYPES_FILE, "mean feature of every cluster, its label, and the mean that features are relative to"),
        )
        return dataclasses.replace(
            summary,
            last_labels=self._last_labels(summary.stages),
            label_files=files,
            cluster_sizes=cluster_sizes(None if self.pseudo_labels is None else self.pseudo_labels.labels),
            cluster_members=self.modality.plural,
        )

    def _last_labels(self, stages: list[dict[str, float]]) -> str:
        now = self.pseudo_labels
        if now is None:
            return ""
        words = f"{now.n_clusters} clusters, {(now.labels == NOISE).mean():.1%} of the {self.modality.plural} in none"
        agreement = stages[-1].get(f"{LOG_PREFIX}agreement_ari") if stages else None
        if agreement is not None:
            words += f", adjusted Rand index {agreement:.2f} with the epoch before"
        others = [f"{labeling.now.n_clusters}" for labeling in self.labelings[1:]]
        return f"{words}; trained together with labelings of {' and '.join(others)} clusters" if others else words


def _clusterers(n: int, args: PLRTrainingArguments, num_clusters: int, n_samples: int) -> list[Any]:
    """The clusterers of n labelings, by the arguments."""
    progress = not args.disable_tqdm and args.process_index == 0
    settings: Any = args.clusterer_kwargs
    return make_clusterers(
        n,
        args.clusterer,
        num_clusters,
        settings,
        n_samples=n_samples,
        seed=args.seed,
        verbose=progress,
    )
