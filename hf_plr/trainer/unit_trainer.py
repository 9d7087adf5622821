"""`UnitTrainer`: HuBERT's objective, on units that are refined from round to round."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel

from hf_plr.clustering.checks import NotFiniteError
from hf_plr.data.audio_store import AudioStore
from hf_plr.data.image_augmentation import uniform
from hf_plr.evaluation.units import score_units
from hf_plr.modality import AudioModality
from hf_plr.pseudo_labels.sampler import LengthSampler, data_seed, samples_per_epoch, samples_per_step
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.report.html.sheets import Snapshot
from hf_plr.report.summary import RunSummary, cluster_sizes
from hf_plr.trainer.base_trainer import LOG_PREFIX, BackboneTrainer, check_dataset, preset_of, refiner_from
from hf_plr.trainer.checkpointing import STATE_FILE, as_stored
from hf_plr.training_args import UnitTrainingArguments
from hf_plr.units.encoder import CENTROIDS_FILE, UnitEncoder, write_units
from hf_plr.units.frames import Frames, frame_counts, one_after_the_other
from hf_plr.units.masked_prediction import UnitPredictor, mask_spans, span_count
from hf_plr.units.stage import FrameStage, FrameUnits
from hf_plr.utils.distributed import check_sharding
from hf_plr.utils.rng import isolated_rng
from hf_plr.utils.serialization import checked, read_from

logger = logging.getLogger(__name__)

DEFAULT_UNITS = 100
AUTO_FOR_FRAMES = "slr"  # what refinement="auto" stands for; soft targets are not for units
UNITS_FILE = "units.parquet"
HEAD_PREFIX = "head."


class UnitTrainer(BackboneTrainer):
    """Train a speech backbone without labels by predicting the units of hidden frames (HuBERT, Hsu et al. 2021).

    Before each round of `args.relabel_every` epochs the trainer clusters the frames (MFCC in the first round, a layer
    of the backbone later), and refines the units by those of the round before, so that a unit keeps its number, and the
    predictor what it has learned of it. `save_labels` publishes the centroids.

    Args:
        model: a speech transformer (HuBERT, wav2vec 2.0, WavLM, data2vec) that `AutoModel` loads, its name, or its
            path.
        args: the arguments.
        train_dataset: a `datasets.Dataset` with a column of sounds. No label is used for training.
        processing_class: the feature extractor; by default the one saved with the model.
        eval_dataset: a data set with sounds and true labels that is scored.
        refiner: the refinement over frames; by default the preset `args.refinement` ("auto" is "slr"), cut at the
            number of units.
        compute_metrics: as in `Trainer`; predictions are features (N, D), label_ids the true labels (N,).
        **kwargs: further arguments of `Trainer`, such as `callbacks` and `optimizers`.

    Attributes:
        frame_units: the units of the current round, None before the first.

    Raises:
        ValueError: before any long work, if the data, the model and the arguments do not fit together.
    """

    arguments_class = UnitTrainingArguments
    args: UnitTrainingArguments
    train_dataset: AudioStore
    modality: AudioModality

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        args: UnitTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        processing_class: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        refiner: PseudoLabelRefiner | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ):
        args = UnitTrainingArguments("plr_output") if args is None else args
        if not isinstance(args, UnitTrainingArguments):
            raise TypeError(f"args must be UnitTrainingArguments, not {type(args).__name__}")
        if args.augmentation not in (None, "none"):
            raise ValueError(f"augmentation={args.augmentation!r}: units belong to frames, which must stay: use 'none'")
        self._n_units = args.num_clusters or DEFAULT_UNITS
        self._temperature = args.unit_temperature
        self._unmasked_weight = args.unmasked_weight
        refiner = _frame_refiner(args) if refiner is None else refiner
        super().__init__(
            model,
            args,
            check_dataset(train_dataset),
            processing_class=processing_class,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            **kwargs,
        )
        check_sharding(self.accelerator, self.modality.model)
        if self.is_fsdp_enabled:
            raise ValueError("units of frames need whole weights on every process: no FSDP")
        counts = frame_counts(self.modality, self.train_dataset)
        if self._n_units > counts.sum():
            raise ValueError(f"num_clusters={self._n_units} but the recordings have {counts.sum()} frames")
        self._bounds = one_after_the_other(counts)
        self._n_spans = span_count(int(counts.max()), args.mask_probability, args.mask_length)
        self.stage = FrameStage(self._n_units, refiner, args.fit_frames, args.seed, self.accelerator, args.feature_dir)
        n_samples = len(counts)
        an_epoch = samples_per_epoch(args, n_samples)
        self._sampler = LengthSampler(n_samples, samples_per_step(args), data_seed(args), an_epoch)
        self._present = torch.empty(0, dtype=torch.bool)
        n_layers = int(self.modality.model.config.num_hidden_layers)
        self.unit_layer = -(-2 * n_layers // 3) if args.unit_layer is None else args.unit_layer
        if not 0 <= self.unit_layer <= n_layers:
            raise ValueError(f"unit_layer={args.unit_layer} is outside 0 to {n_layers}, the layers of the backbone")

    # ---- the stage -----------------------------------------------------------------------------------------------

    @property
    def frame_units(self) -> FrameUnits | None:
        return self.stage.current

    def prepare_epoch(self, epoch: int) -> None:
        """Make the units that this epoch trains on, where a round begins."""
        self._epoch = epoch
        round_ = epoch // self.args.relabel_every
        now = self.frame_units
        if now is None or now.round != round_:
            layer = self.unit_layer if round_ > 0 or self.args.first_units == "layer" else None
            try:
                self._relabel(round_, layer)
            except NotFiniteError as error:
                if now is None or self.args.on_nan != "skip_epoch":
                    raise
                logger.warning("%s This round keeps the units of the last one.", error)
                self.stage.keep(round_)
        self._present = self._units_in_use()
        self._sampler.begin(epoch)

    def _relabel(self, round_: int, layer: int | None) -> None:
        with isolated_rng(self.args.seed + round_):
            frames = Frames(self._extractor, self.train_dataset, layer)
            last = self.frame_units
            figures = self.stage.run(frames, round_) | self._score_units()
            self.reporter.note_stage(self._snapshot(None if last is None else last.labels))
        self.log({f"{LOG_PREFIX}{name}": value for name, value in figures.items()})

    def _snapshot(self, previous: np.ndarray | None) -> Snapshot:
        """The units as the report shows them."""
        now = self._units_now()
        return Snapshot(now.round, now.labels, previous, bounds=self._bounds)

    def _score_units(self) -> dict[str, float]:
        """Agreement of the units with the true labels of their recordings, where there are some."""
        if self.label_column is None:
            return {}
        labels = np.repeat(self.train_dataset.true_labels(), np.diff(self._bounds))
        return score_units(self._units_now().labels, labels)

    def _units_now(self) -> FrameUnits:
        if self.frame_units is None:
            raise RuntimeError("there are no units yet: call train() first")
        return self.frame_units

    def _units_in_use(self) -> torch.Tensor:
        present = torch.zeros(self._room_for_units, dtype=torch.bool)
        units = np.unique(self._units_now().labels)
        if units[-1] >= len(present):
            raise ValueError(
                f"the refiner made unit {units[-1]}, but with num_clusters={self._n_units} numbers are below "
                f"{len(present)}: cut its clusters at the number of units (n_clusters='current')"
            )
        present[torch.from_numpy(units[units >= 0].astype(np.int64))] = True
        return present.to(self.args.device)

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
        """Cross-entropy of the hidden frames of a batch against their units."""
        index, lengths = inputs["index"], inputs["lengths"]
        n_frames = self.modality.backbone.n_frames(lengths)
        numbers = uniform(index, self.args.seed, self._epoch, n=self._n_spans)
        masked = mask_spans(numbers, n_frames, self.args.mask_probability, self.args.mask_length)
        targets = self._targets(index, masked.shape[1])
        loss = model(self.modality.waveforms(inputs), lengths, masked, targets, self._present)
        return (loss, {}) if return_outputs else loss

    def _targets(self, index: torch.Tensor, width: int) -> torch.Tensor:
        """Units of each sound's frames, -1 after its end: int64 (B, width)."""
        labels = self._units_now().labels
        targets = np.full((len(index), width), -1, dtype=np.int64)
        for row, position in enumerate(index.tolist()):
            units = labels[self._bounds[position] : self._bounds[position + 1]]
            targets[row, : len(units)] = units
        return torch.from_numpy(targets).to(index.device)

    def _trained_model(self) -> torch.nn.Module:
        return UnitPredictor(
            self.modality.model,
            self._room_for_units,
            temperature=self._temperature,
            unmasked_weight=self._unmasked_weight,
        )

    @property
    def _room_for_units(self) -> int:
        """Numbers of units are below this: new ones take the lowest that the round before did not use."""
        return 2 * self._n_units

    def _bare(self, model: torch.nn.Module) -> torch.nn.Module:
        predictor: Any = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        backbone: torch.nn.Module = predictor.backbone
        return backbone

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def save_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Cluster the frames of the trained backbone and publish centroids and units.

        `centroids.safetensors` gives the same units to the same sounds, and continues the numbers of the last round's;
        `units.parquet` has them for every training recording.

        Args:
            directory: where to.
            rows: as for `PLRTrainer.save_labels`.
        """
        self._relabel(self._units_now().round + 1, self.unit_layer)
        self._note_saved_labels(directory, rows)
        if not self.is_world_process_zero():
            return
        encoder = UnitEncoder(
            self.stage.kmeans.cluster_centers_.cpu().numpy(), self.stage.unit_of_centroid(), self.unit_layer
        )
        encoder.save(directory)
        units = encoder.units[self._units_now().raw_labels]
        readable = self.train_dataset.rows
        write_units(
            Path(directory) / UNITS_FILE,
            readable if rows is None else rows[readable],
            np.split(units, self._bounds[1:-1]),
            self.train_dataset.files(),
        )

    def label_state(self) -> dict[str, np.ndarray]:
        state = self.stage.state_dict()
        if state:
            state |= {f"{HEAD_PREFIX}{name}": value.float().cpu().numpy() for name, value in self._head().items()}
        return state

    def load_label_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        predictor: Any = self.model
        with read_from(os.path.join(checkpoint, STATE_FILE)):
            checked(state, "units", "integers", (self._bounds[-1],), highest=self._room_for_units - 1)
            self.stage.load_state_dict(state)
            head = {
                name: torch.from_numpy(checked(state, f"{HEAD_PREFIX}{name}", "floats", tuple(value.shape)))
                for name, value in self._head().items()
            }
        predictor.load_state_dict(head, strict=False)
        self.reporter.go_on(self._snapshot(None))

    def run_settings(self) -> dict[str, Any]:
        refinement = {
            "refiner": self.stage.refiner.settings(),
            "refinement": preset_of(self.args, auto=AUTO_FOR_FRAMES),
        }
        return super().run_settings() | as_stored(refinement)

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        now = self.frame_units
        sizes = cluster_sizes(None if now is None else now.labels)
        last = "" if now is None else f"{len(sizes)} units of {len(now.labels):,} frames"
        files = (
            (CENTROIDS_FILE, "the centroids of the units, for `hf-plr units`"),
            (UNITS_FILE, "the units of every recording"),
        )
        return dataclasses.replace(
            super().summary(), last_labels=last, label_files=files, cluster_sizes=sizes, cluster_members="frames"
        )

    def _head(self) -> dict[str, torch.Tensor]:
        """What is trained beside the backbone."""
        predictor: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return {name: value for name, value in predictor.state_dict().items() if not name.startswith("backbone.")}


def _frame_refiner(args: UnitTrainingArguments) -> PseudoLabelRefiner:
    """The preset, cut at the number of units where it clusters anew."""
    refiner = refiner_from(args, auto=AUTO_FOR_FRAMES)
    if refiner.harden == "none":
        raise ValueError(
            f"refinement={args.refinement!r} gives soft targets, which frames do not take: use slr or joint"
        )
    return PseudoLabelRefiner(**{**refiner.settings(), "n_clusters": "current", "distance_threshold": None})
