"""`PLRTrainer`: a `transformers.Trainer` with a refinement stage between epochs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel

from hf_plr.clustering.checks import NotFiniteError
from hf_plr.clustering.cluster_means import ClusterMeans
from hf_plr.data.columns import check_dataset
from hf_plr.data.streaming import open_stream
from hf_plr.evaluation.label_free import LABEL_FREE_SCORES
from hf_plr.features.centering import CenteredFeatures, center_features, check_finite
from hf_plr.features.cluster_space import make_cluster_space
from hf_plr.features.source import FeatureSource
from hf_plr.pseudo_labels import assembly
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.given_stage import open_given_stage
from hf_plr.pseudo_labels.holding import make_holder
from hf_plr.pseudo_labels.metrics import compare_labelings, compute_stage_metrics
from hf_plr.pseudo_labels.objective import ClusterObjective
from hf_plr.pseudo_labels.pair_term import OLDER_PAIRS, describe_pairs, make_pair_term
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.sampler import count_samples_per_epoch
from hf_plr.pseudo_labels.shards import ShardSampler, make_cluster_sampler, select_label_shards
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.report.html.sheets import Snapshot
from hf_plr.report.label_results import score_labels, take_snapshot, warn_of_collapse
from hf_plr.report.summary import LABEL_SCORE_PREFIX, STAGE_PREFIX, RunSummary
from hf_plr.trainer import construction, start
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.checkpoints.run_state import STATE_FILE
from hf_plr.trainer.cluster_tree import make_stage_tree
from hf_plr.trainer.continuation import open_continuation, starts_from_scratch
from hf_plr.trainer.label_output import summarize_labels, write_label_files, write_label_table
from hf_plr.trainer.rates import fraction_of_peak
from hf_plr.trainer.settings import as_stored
from hf_plr.training_args import PLRTrainingArguments
from hf_plr.utils.distributed import check_sharding
from hf_plr.utils.rng import isolate_rng, uniform
from hf_plr.utils.serialization import name_file_in_errors, select_prefix
from hf_plr.utils.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

PAIR_PREFIX = "pair_term."


class PLRTrainer(BaseTrainer):
    """Train a backbone of images or sounds without labels, on clusters that are refined from epoch to epoch.

    Before each epoch the trainer extracts the features of the training samples without augmentation, clusters them,
    refines the clusters by those of the last epoch, and rebuilds a memory of one prototype per cluster. The epoch
    then pulls every sample to its prototype, or where targets are soft to several. With several labelings all of this
    is done for each of them, and the loss is their mean. Everything else is `transformers.Trainer`.

    Args:
        model: a backbone of images (a transformer, ConvNeXt, ResNet, ...) or of sounds (HuBERT, AST, Whisper, ...)
            that `AutoModel` loads, its name, or its path. With `args.continue_from` by default that run's.
        args: the arguments.
        train_dataset: a `datasets.Dataset` with a column of images or sounds. It needs no other column, and no label
            is used for training. The samples of an `IterableDataset` are written to this machine first, see
            `hf_plr.data.streaming.materialise`.
        processing_class: the image processor or feature extractor; by default the one saved with the model.
        eval_dataset: a data set or stream with true labels (or a dict of such) that is scored by `evaluate`:
            nearest-neighbour and linear-probe accuracy with labelled training samples as the gallery, NMI and
            clustering accuracy.
        clusterer: object with `fit_predict` on features (N, D), labels (N,), -1 = noise. By default the one named by
            `args.clusterer`: k-means with `args.num_clusters` clusters, warm-started.
        refiner: the refinement; by default the one that `args.refinement` names. With one of your own there is a single
            labeling, unless `args.num_labelings` asks for more.
        augmentation: called with images (B, C, H, W) in [0, 1], or with waveforms (B, T) and lengths (B,), and with
            random numbers (B, 16) uniform in [0, 1) that are fixed by seed, epoch and sample; by default the one named
            by `args.augmentation`.
        evaluator: scores the features in `assess`, see `hf_plr.evaluation.evaluators`; by default a `FeatureEvaluator`
            where there is a label column.
        compute_metrics: as in `Trainer`; predictions are features (N, D), label_ids the true labels (N,).
        **kwargs: further arguments of `Trainer`, such as `callbacks` and `optimizers`.

    Attributes:
        cluster_space: where clusters are sought.
        labelings: the labelings that are trained on; the first is reported and saved.
        cluster_objective: the loss against their prototypes.
        pair_term: the loss between two views of a sample; None with `pair_weight` 0 or without augmentation.
        holder: knows whose labels each process holds, and adds up what they count.
        given_stage: the stage of labels that are given; None where they are made.
        continuation: the run before, with `args.continue_from`; None for a first run.
        from_scratch: True if the weights go back to random ones, for the runs that continue this one.

    Raises:
        ValueError: before any long work, if the data, the model and the arguments do not fit together.
    """

    arguments_class = PLRTrainingArguments
    args: PLRTrainingArguments

    @start.leaves_no_empty_folder
    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str] | None = None,
        args: PLRTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        processing_class: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        clusterer: Any = None,
        refiner: PseudoLabelRefiner | None = None,
        augmentation: Any = None,
        evaluator: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ):
        self.continuation = open_continuation(args) if isinstance(args, PLRTrainingArguments) else None
        if self.continuation is not None and args is not None:
            model, args = self.continuation.choose_start(model, args)
        args = construction.check_arguments(PLRTrainingArguments, args, model, kwargs)
        train_dataset = open_stream(train_dataset, args)
        n_rows = len(check_dataset(train_dataset))
        is_cut = args.segment_seconds is not None and clusterer is None  # into how many samples, reading them tells
        clusterers = [] if is_cut else assembly.select_clusterers(args, n_rows, clusterer, refiner)
        super().__init__(
            model,
            args,
            train_dataset,
            processing_class=processing_class,
            eval_dataset=eval_dataset,
            augmentation=augmentation,
            evaluator=evaluator,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        args = self.args  # for a pretrained backbone, with its defaults
        check_sharding(self.accelerator, self.modality.model)
        self._chosen = clusterers, clusterer, refiner
        self.from_scratch = starts_from_scratch(self.continuation, model, self.modality.model)
        has_views = augmentation is not None or args.augmentation != "none"
        self.cluster_space = make_cluster_space(args, has_views, self.modality.model, self.from_scratch)
        self.pair_term = make_pair_term(args, has_views, self.extractor.width, self.accelerator)
        self.views = 1 if self.pair_term is None else 2
        self._accumulated: list[tuple[torch.Tensor, torch.Tensor]] = []  # features and positions since the last update
        self._ahead: tuple[int, CenteredFeatures] | None = None  # step of an evaluation, and what it extracted
        settings = args.feature_source, args.feature_dtype, args.feature_momentum, args.feature_dir
        self._feature_source = FeatureSource(*settings)
        self.adapt_to_samples()

    def adapt_to_samples(self) -> None:
        """Make the labelings, their prototypes and the sampler, for as many samples as there are."""
        args, n_samples = self.args, len(self.train_dataset)
        clusterers, clusterer, refiner = self._chosen
        clusterers = clusterers or assembly.select_clusterers(args, n_samples, clusterer, refiner)
        self.n_label_shards = select_label_shards(args, n_samples, self.views)
        self.holder = make_holder(self.n_label_shards, self.accelerator, args.feature_dir)
        self._feature_source.keeps_own = self.n_label_shards > 1
        self.given_stage = open_given_stage(args, self.train_dataset, self.modality.column, self.holder)
        self.labelings = assembly.make_labelings(args, clusterers, refiner, n_samples, self.holder, self.given_stage)
        memory = PrototypeMemory(args.temperature, args.prototype_momentum)
        self.cluster_objective = ClusterObjective(self.labelings, memory)
        self._sampler = make_cluster_sampler(args, n_samples, self.n_label_shards, self.views)
        if isinstance(self._sampler, ShardSampler):
            self._sampler.set_bounds(self.extractor.split(self.train_dataset, self.n_label_shards))

    @property
    def stage_dtype(self) -> torch.dtype | None:
        """Of the features that the first stage extracts, see `FeatureExtractor.extract`."""
        return self._feature_source.decide_autocast(self.accelerator.mixed_precision)

    # ---- the stage -----------------------------------------------------------------------------------------------

    def refresh_labels(self, epoch: int) -> None:
        """Make new labels before an epoch, by the method's five steps: cluster, project, blend, re-cluster, train.

        `PseudoLabelRefiner.refine_cells` has the three steps in the middle, `begin_epoch` the last. In the joint space,
        which the default has with k-means, all labelings of the last epochs are side by side in place of a projection.
        """
        clock = Stopwatch()
        with isolate_rng(self.args.seed + epoch):
            with clock("extract"):
                features = self._features_of_evaluation() or self._centered(self.extract_shard(), epoch)
            n_sought = assembly.count_sought(self.labelings, len(self.train_dataset))
            with clock("cluster"):
                self.cluster_space.decide(features, self._extract_view, n_sought, self.accelerator)
                rows = self.cluster_space.map(features, self.accelerator)
                if self.continuation is not None:
                    self.continuation.begin(self.labelings[0], rows, features.part, self.holder, self.accelerator)
            before = self.pseudo_labels
            for labeling in self.labelings:
                with clock("cluster"):
                    clusters = labeling.cluster(rows, epoch)
                with clock("refine"):  # project or join, blend, re-cluster
                    labeling.refine(clusters, epoch, features.part)
            del rows
            means = self.cluster_objective.rebuild_prototypes(features)
            self._feature_source.decide_dtype(self.extractor, self.train_dataset, features, means[0].directions)
            metrics = self._measure_stage(before, features, means[0], clock)
        self.record(metrics)

    def _extract_view(self, positions: torch.Tensor) -> torch.Tensor:
        """Features (n, D) of an augmented view of the samples at these positions, on this process alone."""
        return self.extractor.extract(self.train_dataset, positions, view=(self.args.seed, self._epoch))

    def begin_epoch(self, epoch: int) -> None:
        """Train this epoch on the labels: the sampler draws by them, the loss pulls samples to their prototypes."""
        if self.given_stage is not None:
            self.keep_labels(epoch)
        self.cluster_objective.to(self.args.device)
        self._sampler.set_targets(self.labelings[0].pseudo_labels.targets, epoch)
        self._accumulated.clear()

    def _measure_stage(
        self, before: PseudoLabels | None, features: CenteredFeatures, means: ClusterMeans, clock: Stopwatch
    ) -> dict[str, float]:
        """Metrics of the new labels by their names in the log; the report takes the labels, too."""
        labels = [labeling.pseudo_labels for labeling in self.labelings]
        with clock("score"):
            metrics = compute_stage_metrics(before, labels[0], features.part, self.accelerator, self.holder)
            metrics |= self.labelings[0].score(features, means)
            metrics |= compare_labelings(labels, features.part, self.accelerator, self.holder)
        warn_of_collapse(self._epoch, metrics, self.state.log_history)
        metrics |= clock.seconds()
        self.reporter.note_stage(self._snapshot(), features.rows, features.part, make_stage_tree(self, features))
        scores = {f"{LABEL_SCORE_PREFIX}{name}": value for name, value in self.score_labels().items()}
        return {f"{STAGE_PREFIX}{name}": value for name, value in metrics.items()} | scores

    def begin_labels(self) -> None:
        """Begin anew after an earlier training, and find the samples of the run before, if there is one."""
        for part in (*self.labelings, self.cluster_space, self._feature_source) if self.has_begun else ():
            part.begin_anew()  # type: ignore[attr-defined]  # mypy takes their common class for object
        if self.continuation is not None:
            part = self.extractor.local_slice(self.train_dataset)
            self.continuation.match(self.train_dataset, part, self.accelerator)

    @property
    def continues(self) -> str:
        """The run before and what this one knows of its samples, in a line."""
        return "" if self.continuation is None else self.continuation.describe()

    def describe_clusters(self) -> str:
        """What is clustered into what, and how it is refined, in a line."""
        space, has_own_refiner = self.cluster_space.describe(), self._chosen[2] is not None
        return assembly.describe_labelings(self.labelings, space, self.args, has_own_refiner)

    def needs_new_labels(self, epoch: int) -> bool:
        """True but for a resumed epoch, which keeps the labels that it had; given labels are taken once."""
        is_resumed = self.resumed_from is not None and self.labelings[0].pseudo_labels.epoch == epoch
        return not (is_resumed if self.given_stage is None else self.has_labels)

    def keep_labels(self, epoch: int) -> None:
        """Let this epoch train on the labels of the one before."""
        for labeling in self.labelings:
            labeling.keep_labels(epoch)

    @property
    def pseudo_labels(self) -> PseudoLabels | None:
        """The labels of the current epoch, None before the first stage; samples are in `train_dataset.rows`' order.

        With `label_shards` above 1 those of this process's samples alone, from `first` on.
        """
        return self.labelings[0].pseudo_labels if self.has_labels else None

    @property
    def has_labels(self) -> bool:
        """True from the first stage on."""
        return self.labelings[0].has_labels

    def extract_shard(self) -> torch.Tensor:
        """Features that the stage clusters: this process's training samples, float32 of shape (n, D)."""
        self.check_samples(self.stage_dtype)  # as `train` has done: zeros stand for samples that nobody could read
        return self._feature_source.extract_local(self.extractor, self.train_dataset)

    def _centered(self, features: torch.Tensor, epoch: int) -> CenteredFeatures:
        """Center this process's features (n, D) in place, if all of them are finite."""
        rows = self.train_dataset.rows[self.extractor.local_slice(self.train_dataset)]
        check_finite(features, epoch, rows, self.accelerator)
        return center_features(features, self.accelerator, out=features)

    def _features_of_evaluation(self) -> CenteredFeatures | None:
        """What an evaluation of these very weights has extracted, where there was one."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == self.state.global_step else None

    def extract_now(self) -> torch.Tensor:
        """Features of this process's training samples by the weights as they are, float32 of shape (n, D)."""
        part = self.extractor.local_slice(self.train_dataset)
        return self.extractor.extract(self.train_dataset, torch.arange(part.start, part.stop))

    def score_labels(self) -> dict[str, float]:
        """Agreement of the pseudo-labels with the true labels, by `score_clusters`; empty if either is not known."""
        truth = None if self.evaluator is None or not self.has_labels else self.evaluator.true_labels(self)
        return {} if truth is None else score_labels(self.labelings[0].pseudo_labels, truth, self.holder)

    def _snapshot(self) -> Snapshot | None:
        """The labels as the report shows them, on the main process; called on every process."""
        return None if self.args.report == "no" else take_snapshot(self.labelings[0].pseudo_labels, self.holder)

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
        draw = uniform if self.pair_term is None else self.pair_term.draw
        features = self.modality.features(model, inputs, draw(index, self.args.seed, self._epoch))
        loss = self.cluster_objective.loss(features, index)
        if self.pair_term is not None:
            loss = loss + self.pair_term.loss(features)
        self._accumulated.append((features.detach(), index))
        return (loss, {"features": self.cluster_objective.memory.embed(features)}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step of `Trainer`; at the last of an accumulation the prototypes follow the batch of all processes."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.update_prototypes()
            if self.pair_term is not None:
                assert self.optimizer is not None
                self.pair_term.step(schedule=fraction_of_peak(self.optimizer))
        return loss

    def update_prototypes(self) -> None:
        """Let the prototypes follow the features of all processes since the last update, equally many of each."""
        if not self._accumulated:  # a subclass has a loss of its own
            return
        features, index = (torch.cat(parts) for parts in zip(*self._accumulated, strict=True))
        self._accumulated.clear()
        targets = self.cluster_objective.targets_of(index)
        if self._feature_source.keeps_own:
            self._feature_source.record(index, features)
        if self.accelerator.num_processes > 1:
            features, targets, index = self.accelerator.gather((features, targets, index))
        if not self._feature_source.keeps_own:
            self._feature_source.record(index, features)
        self.cluster_objective.update_prototypes(features, targets)

    def _make_trained_model(self) -> torch.nn.Module:
        self.modality.freeze_unused()
        return self.modality.model

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        n_samples = count_samples_per_epoch(self.args, len(self.train_dataset), self._train_batch_size)
        self._sampler.set_steps(n_samples, self._train_batch_size, self.args.gradient_accumulation_steps)
        return self._sampler

    def label_free_scores(self) -> dict[str, float]:
        """The metrics of the last stage, and scores of the features as they are now under its labels.

        At the end of an epoch the next stage takes over the features, so that they cost nothing more; with
        `feature_source` "epoch", and in the middle of an epoch, they take a pass over the samples.
        """
        if not self.has_labels:
            return {}
        is_of_training = self.args.feature_source == "epoch"  # what training saw is the stage's alone, and older
        with isolate_rng(self.args.seed + self._epoch):
            extracted = self.extract_now() if is_of_training else self.extract_shard()
            try:
                features = self._centered(extracted, self._epoch)
            except NotFiniteError:
                if self.args.on_nan != "skip_epoch":
                    raise
                return super().label_free_scores() | dict.fromkeys(LABEL_FREE_SCORES, float("nan"))
            step, epoch = self.state.global_step, self.state.epoch or 0.0
            has_next = not is_of_training and self.given_stage is None  # a stage that takes the features over
            if has_next and epoch % 1 == 0 and step < self.state.max_steps:
                self._ahead = step, features
            return super().label_free_scores() | self.labelings[0].score(features)

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def label_state(self) -> dict[str, np.ndarray]:
        """Labels, prototypes and features of the epoch, as arrays by name."""
        parts = (self._feature_source, self.cluster_space, self.cluster_objective)
        state = {name: value for part in parts for name, value in part.state_dict().items()}
        if self.continuation is not None:
            state |= self.continuation.state_dict()
        if self.pair_term is not None:
            state |= {f"{PAIR_PREFIX}{name}": value for name, value in self.pair_term.state_dict().items()}
        return state

    def load_label_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        """Restore what `label_state` returned."""
        held, width = self._held(), self.extractor.width
        with name_file_in_errors(os.path.join(checkpoint, STATE_FILE)):
            self.cluster_objective.load_state_dict(state, held, width)
            self._feature_source.load_state_dict(state, self.args.device, held, width)
            self.cluster_space.load_state_dict(state)
            if self.continuation is not None:
                self.continuation.load_state_dict(state, held.stop - held.start)
            if self.pair_term is not None:
                self.pair_term.load_state_dict(select_prefix(PAIR_PREFIX, state))
        self.reporter.resume(self._snapshot())

    def _held(self) -> slice:
        """Positions of the samples whose labels this process holds."""
        is_sharded = self.n_label_shards > 1
        return self.extractor.local_slice(self.train_dataset) if is_sharded else slice(0, len(self.train_dataset))

    @property
    def has_own_state(self) -> bool:
        """True with shards over several processes."""
        return self.n_label_shards > 1 and self.accelerator.num_processes > 1

    def run_settings(self) -> dict[str, Any]:
        """Settings of the run with those of clusterer, refiner and pair term."""
        parts = {"label_shards": self.n_label_shards if self.n_label_shards > 1 else None}
        parts |= assembly.describe_settings(self.labelings, self.args) | describe_pairs(self.args, self.pair_term)
        return super().run_settings() | as_stored(parts)

    def default_settings(self) -> dict[str, Any]:
        """Settings of a run to which nothing is given, with those of clusterer and refiner."""
        return super().default_settings() | as_stored(assembly.describe_default_settings(self.labelings) | OLDER_PAIRS)

    def save_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Write the last labels to `pseudo_labels.parquet`, and beside it what is known of their clusters.

        That is how the backbone as it is now sees them (`prototypes.safetensors`, `known_clusters.safetensors`), their
        tree (`tree.json`), and what a run that continues this one needs to know (`run_history.json`).

        Args:
            directory: where to.
            rows: as for `save_pseudo_labels`.
        """
        write_label_files(self, directory, rows)
        self.publisher.note_labels(directory, rows)

    def save_pseudo_labels(self, path: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Write a row per sample as parquet, in data order, with the columns of `write_pseudo_labels`.

        Called on every process; the main one writes.

        Args:
            path: the file.
            rows: number of each row of `train_dataset` in the data that it was taken from, for `index`; by default the
                row itself. Rows that could not be read are not in the file.
        """
        write_label_table(self, path, rows)

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        return summarize_labels(self, super().summary())
