"""`UnitTrainer`: HuBERT's objective, on units that are refined from round to round."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel

from hf_plr.data.audio_store import AudioStore, collate_recordings
from hf_plr.data.columns import check_column, check_dataset
from hf_plr.data.streaming import open_stream
from hf_plr.data.true_labels import encode_labels
from hf_plr.modality import AudioModality
from hf_plr.pseudo_labels.assembly import resolve_preset
from hf_plr.pseudo_labels.sampler import (
    LengthSampler,
    count_samples_per_epoch,
    count_samples_per_step,
    select_data_seed,
)
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.report.html.sheets import Snapshot
from hf_plr.report.summary import STAGE_PREFIX, RunSummary
from hf_plr.trainer import construction, start
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.checkpoints.run_state import STATE_FILE
from hf_plr.trainer.settings import as_stored
from hf_plr.training_args import UnitTrainingArguments
from hf_plr.units.encoder import CENTROIDS_FILE, UnitEncoder, write_units
from hf_plr.units.frame_refiner import AUTO_FOR_FRAMES, choose_frame_refiner
from hf_plr.units.frames import Frames, compute_frame_bounds, count_frames
from hf_plr.units.masked_prediction import UnitPredictor, count_spans, mask_spans
from hf_plr.units.space import FrameSpaceFitter, number_recordings, number_speakers
from hf_plr.units.stage import FrameStage, FrameUnits, unit_metrics
from hf_plr.utils.distributed import check_sharding
from hf_plr.utils.files import refuse_file
from hf_plr.utils.parameters import default_parameters
from hf_plr.utils.rng import isolate_rng, uniform
from hf_plr.utils.serialization import name_file_in_errors, validate_array
from hf_plr.utils.stopwatch import Stopwatch
from hf_plr.utils.words import count_noun

logger = logging.getLogger(__name__)

DEFAULT_UNITS = 100
UNITS_FILE = "units.parquet"
HEAD_PREFIX = "head."


class UnitTrainer(BaseTrainer):
    """Train a speech backbone without labels by predicting the units of hidden frames (HuBERT, Hsu et al. 2021).

    Before each round of `args.relabel_every` epochs the trainer clusters the frames (MFCC in the first round, a layer
    of the backbone later), and refines the units by those of the round before, so that a unit keeps its number, and the
    predictor what it has learned of it. `save_labels` publishes the centroids.

    Frames are standardised before k-means, see `frame_scaling`: globally by default, and better by speaker where they
    are known. On spoken digits (one run each of 4 epochs) 5-NN accuracy was 0.377 with "none", 0.457 with "global" and
    0.583 with "speaker". "recording" loses the word where a recording is little more than it.

    Args:
        model: a speech transformer (HuBERT, wav2vec 2.0, WavLM, data2vec) that `AutoModel` loads, its name, or its
            path.
        args: the arguments.
        train_dataset: a `datasets.Dataset` with a column of sounds. No label is used for training. The samples of an
            `IterableDataset` are written to this machine first.
        processing_class: the feature extractor; by default the one saved with the model.
        eval_dataset: a data set with sounds and true labels that is scored.
        refiner: the refinement over frames; by default the preset `args.refinement` ("auto" is "slr"), cut at the
            number of units.
        evaluator: scores the features in `assess`, see `hf_plr.evaluation.evaluators`.
        compute_metrics: as in `Trainer`; predictions are features (N, D), label_ids the true labels (N,).
        **kwargs: further arguments of `Trainer`, such as `callbacks` and `optimizers`.

    Attributes:
        unit_layer: layer whose frames are clustered from the second round on.

    Raises:
        ValueError: before any long work, if the data, the model and the arguments do not fit together.
    """

    arguments_class = UnitTrainingArguments
    stage_extracts = False  # frames, not features
    args: UnitTrainingArguments
    train_dataset: AudioStore
    modality: AudioModality

    @start.leaves_no_empty_folder
    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str] | None = None,
        args: UnitTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        processing_class: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        refiner: PseudoLabelRefiner | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **kwargs: Any,
    ):
        args = construction.check_arguments(UnitTrainingArguments, args, model, kwargs)
        train_dataset = check_dataset(open_stream(train_dataset, args))
        if args.augmentation not in (None, "none"):
            raise ValueError(f"augmentation={args.augmentation!r}: units belong to frames, which must stay: use 'none'")
        self._n_units = args.num_clusters or DEFAULT_UNITS
        self._temperature = args.unit_temperature
        self._unmasked_weight = args.unmasked_weight
        self._has_own_refiner = refiner is not None
        refiner = choose_frame_refiner(args, refiner)
        super().__init__(
            model,
            args,
            train_dataset,
            processing_class=processing_class,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            data_collator=kwargs.pop("data_collator", None) or collate_with_positions,
            **kwargs,
        )
        args = self.args  # for a pretrained backbone, with its defaults
        self.epochs_per_stage = args.relabel_every
        check_sharding(self.accelerator, self.modality.model)
        if self.is_fsdp_enabled:
            raise ValueError("units of frames need whole weights on every process: no FSDP")
        self._refiner = refiner
        self._row_speakers = self._read_speakers(train_dataset)
        self.adapt_to_samples()
        self._present = torch.empty(0, dtype=torch.bool)
        self._frame_units: FrameUnits | None = None
        self._published_units: FrameUnits | None = None  # of the last round, for the summary
        n_layers = int(self.modality.model.config.num_hidden_layers)
        self.unit_layer = -(-2 * n_layers // 3) if args.unit_layer is None else args.unit_layer
        if not 0 <= self.unit_layer <= n_layers:
            raise ValueError(f"unit_layer={args.unit_layer} is outside 0 to {n_layers}, the layers of the backbone")

    def adapt_to_samples(self) -> None:
        """Make the stage and the sampler, for as many frames as there are."""
        args, store = self.args, self.train_dataset
        counts = count_frames(self.modality, store)
        if self._n_units > counts.sum():
            raise ValueError(f"num_clusters={self._n_units} but the recordings have {counts.sum()} frames")
        if args.fit_frames < self._n_units:
            raise ValueError(f"fit_frames={args.fit_frames} is below num_clusters={self._n_units}: fit on more frames")
        if counts.max() == 1 and self._unmasked_weight == 0.0:
            raise ValueError(
                f"each of the {len(counts)} recordings is of a single frame, and none can be hidden: use longer ones, "
                "or PLRTrainer (without --objective frames)"
            )
        self._bounds = compute_frame_bounds(counts)
        self._n_spans = count_spans(int(counts.max()), args.mask_probability, args.mask_length)
        self._speakers = None if self._row_speakers is None else number_speakers(self._row_speakers[store.rows])
        if self._speakers is not None and self._speakers.max() < 0:
            raise ValueError(f"speaker_column={args.speaker_column!r} names no speaker: use frame_scaling='recording'")
        if store.segments is not None and args.frame_scaling in ("recording", "speaker"):
            self._speakers = number_recordings(store.rows, self._speakers)
        fitter = FrameSpaceFitter(args.frame_scaling, args.whitening_shrinkage, self._speakers)
        self.stage = FrameStage(
            self._n_units, self._refiner, args.fit_frames, args.seed, self.accelerator, args.feature_dir, fitter
        )
        an_epoch = count_samples_per_epoch(args, len(counts))
        self._sampler = LengthSampler(len(counts), count_samples_per_step(args), select_data_seed(args), an_epoch)

    def _read_speakers(self, dataset: Any) -> np.ndarray | None:
        """Read the speaker of each row, integers (rows,), -1 = unknown; None if frames are not scaled by speaker.

        Raises:
            ValueError: if column and scaling do not fit together.
        """
        column = self.args.speaker_column
        if self.args.frame_scaling != "speaker":
            return None
        if column is None:
            raise ValueError("frame_scaling='speaker' needs the speakers: name their column with speaker_column")
        check_column(dataset, "speaker_column", column)
        return encode_labels(dataset, column)

    # ---- the stage -----------------------------------------------------------------------------------------------

    def begin_labels(self) -> None:
        """Begin anew after an earlier training."""
        if self.has_begun:
            self.stage.begin_anew()
            self._frame_units = self._published_units = None

    def refresh_labels(self, epoch: int) -> None:
        """Make the units of the round that begins with this epoch."""
        round_ = self._round_of(epoch)
        self._refresh_units(round_, self.unit_layer if round_ > 0 or self.args.first_units == "layer" else None)

    def _refresh_units(self, round_: int, layer: int | None) -> None:
        """Make new units of all frames, and train on them from now on."""
        self._frame_units, self._published_units = self._make_units(self.stage, round_, layer), None

    def _make_units(self, stage: FrameStage, round_: int, layer: int | None, is_noted: bool = True) -> FrameUnits:
        """Cluster all frames (MFCC, or those of a layer), project, blend and re-cluster.

        Args:
            stage: does it, and goes on to the next round.
            round_: the round.
            layer: layer of the frames; None for MFCC.
            is_noted: log and report the units.
        """
        clock, before = Stopwatch(), self._frame_units
        with isolate_rng(self.args.seed + round_):
            frames = Frames(self.extractor, self.train_dataset, layer)
            with clock("fit"):
                stage.fit(frames, round_)
            with clock("assign"):
                clusters = stage.assign(frames, round_)
            with clock("refine"):
                units = stage.refine(clusters, round_, stage.own_frames(frames))
            if not is_noted:
                return units
            metrics = unit_metrics(before, units, self.accelerator) | clock.seconds() | self._score_units(units)
            self.reporter.note_stage(self._snapshot(units, None if before is None else before.labels))
        self.record({f"{STAGE_PREFIX}{name}": value for name, value in metrics.items()})
        return units

    def begin_epoch(self, epoch: int) -> None:
        """Train this epoch on the units: the loss knows those in use."""
        self._present = self._units_in_use()
        self._sampler.begin(epoch)

    def describe_clusters(self) -> str:
        """What is clustered into what, and how it is refined, in a line."""
        scaling = self.args.frame_scaling
        space = "" if scaling == "none" else f" standardised {'globally' if scaling == 'global' else f'by {scaling}'}"
        space += "" if self.args.whitening_shrinkage is None else " whitened"
        refined = f"refinement {self._describe_refinement()}"
        chance = f"a loss of {math.log(self._n_units):.2f} is guessing"
        return f"{count_noun(self._n_units, 'unit')} of {self._bounds[-1]:,} frames{space}, {refined}; {chance}"

    def _describe_refinement(self) -> str:
        return "by a refiner of your own" if self._has_own_refiner else resolve_preset(self.args, AUTO_FOR_FRAMES)

    def needs_new_labels(self, epoch: int) -> bool:
        """True where a round begins."""
        return not self.has_labels or self._units.round != self._round_of(epoch)

    def keep_labels(self, epoch: int) -> None:
        """Let the round that begins with this epoch train on the units of the one before."""
        self._frame_units = self._units.move_to_round(self._round_of(epoch))

    def _round_of(self, epoch: int) -> int:
        return epoch // self.args.relabel_every

    @property
    def has_labels(self) -> bool:
        """True from the first stage on."""
        return self._frame_units is not None

    @property
    def frame_units(self) -> FrameUnits | None:
        """The units of the current round, None before the first."""
        return self._frame_units

    @property
    def _units(self) -> FrameUnits:
        if self._frame_units is None:
            raise RuntimeError("there are no units yet: call train() first")
        return self._frame_units

    def score_labels(self) -> dict[str, float]:
        """Agreement of the units with the true labels of their recordings, where there are some."""
        return self._score_units(self._units) if self.has_labels else {}

    def _score_units(self, units: FrameUnits) -> dict[str, float]:
        if self.label_column is None:
            return {}
        return self.stage.score(units, self.train_dataset.true_labels(), self._bounds)

    def _snapshot(self, units: FrameUnits, previous: np.ndarray | None) -> Snapshot:
        """The units as the report shows them."""
        return Snapshot(units.round, units.labels, previous, bounds=self._bounds)

    def _units_in_use(self) -> torch.Tensor:
        present = torch.zeros(self._room_for_units, dtype=torch.bool)
        units = self._units.list_units()
        if len(units) and units[-1] >= len(present):
            raise ValueError(
                f"the refiner made unit {units[-1]}, but with num_clusters={self._n_units} numbers are below "
                f"{len(present)}: cut its clusters at the number of units (n_clusters='current')"
            )
        present[torch.from_numpy(units)] = True
        return present.to(self.args.device)

    # ---- the training loop ---------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        n_samples, batch_size = len(self.train_dataset), self._train_batch_size
        self._sampler.samples_per_epoch = count_samples_per_epoch(self.args, n_samples, batch_size)
        self._sampler.batch_size = count_samples_per_step(self.args, batch_size)
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
        width = self.modality.backbone.width(inputs["input_values"].shape[1])
        masked = mask_spans(numbers, n_frames, self.args.mask_probability, self.args.mask_length, width)
        positions = inputs["positions"] if "positions" in inputs else index.tolist()
        targets = self._targets(positions, width, index.device)
        loss = model(self.modality.waveforms(inputs), lengths, masked, targets, self._present)
        return (loss, {}) if return_outputs else loss

    def _targets(self, positions: list[int], width: int, device: torch.device) -> torch.Tensor:
        """Units of each sound's frames, -1 after its end: int64 (B, width); only those of the batch are on a GPU."""
        labels = self._units.labels
        targets = torch.full((len(positions), width), -1, pin_memory=device.type == "cuda")
        for row, position in zip(targets.numpy(), positions, strict=True):
            units = labels[self._bounds[position] : self._bounds[position + 1]]
            row[: len(units)] = units
        return targets.to(device, non_blocking=True)

    def _make_trained_model(self) -> torch.nn.Module:
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

    def _backbone_of(self, model: torch.nn.Module) -> torch.nn.Module:
        predictor: Any = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        backbone: torch.nn.Module = predictor.backbone
        return backbone

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def save_labels(self, directory: str | os.PathLike[str], rows: np.ndarray | None = None) -> None:
        """Cluster the frames of the trained backbone and publish centroids and units.

        `centroids.safetensors` gives the same units to the same sounds, and continues the numbers of the last round's;
        `units.parquet` has them for every training recording. A run that goes on is trained on the units that it had.

        Args:
            directory: where to.
            rows: as for `PLRTrainer.save_labels`.

        Raises:
            FileExistsError: if the directory is a file.
        """
        refuse_file(directory)
        # On a copy: else the next epoch would find other centroids, and the units of another round.
        stage, is_noted = self.stage.copy(), not self.is_in_train
        published = self._make_units(stage, self._units.round + 1, self.unit_layer, is_noted)
        self._published_units = published if is_noted else None
        self.publisher.note_labels(directory, rows)
        if not self.is_world_process_zero():
            return
        centroids = stage.kmeans.cluster_centers_.cpu().numpy()
        units_of_centroids = published.map_centroids_to_units(len(centroids))
        encoder = UnitEncoder(centroids, units_of_centroids, self.unit_layer, stage.space.to(torch.device("cpu")))
        encoder.save(directory)
        units = stage.apply_centroid_units(encoder.units, published.raw_labels)
        readable = self.train_dataset.rows
        write_units(
            Path(directory) / UNITS_FILE,
            readable if rows is None else rows[readable],
            np.split(np.asarray(units), self._bounds[1:-1]),
            self.train_dataset.files(),
            self.train_dataset.segments,
        )

    def label_state(self) -> dict[str, np.ndarray]:
        """Units, centroids and what is trained beside the backbone, as arrays by name."""
        head = {f"{HEAD_PREFIX}{name}": value.float().cpu().numpy() for name, value in self._head().items()}
        return self.stage.state_dict(self._units) | head

    @property
    def has_own_state(self) -> bool:
        """True with several processes, each of which has refined the frames of its own recordings."""
        return self.accelerator.num_processes > 1

    def load_label_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        """Restore what `label_state` returned."""
        predictor: Any = self.model
        with name_file_in_errors(os.path.join(checkpoint, STATE_FILE)):
            validate_array(state, "units", "integers", (None,), highest=self._room_for_units - 1)
            recordings = self.extractor.local_slice(self.train_dataset)
            own = slice(int(self._bounds[recordings.start]), int(self._bounds[recordings.stop]))
            self._frame_units = self.stage.load_state_dict(state, own, int(self._bounds[-1]))
            head = {
                name: torch.from_numpy(validate_array(state, f"{HEAD_PREFIX}{name}", "floats", tuple(value.shape)))
                for name, value in self._head().items()
            }
        predictor.load_state_dict(head, strict=False)
        self.reporter.resume(self._snapshot(self._units, None))

    def run_settings(self) -> dict[str, Any]:
        """Settings that a resumed run must share, by name."""
        refinement = {
            "refiner": self.stage.refiner.settings(),
            "refinement": self._describe_refinement(),
        }
        if self._speakers is not None:  # the digest of the data knows nothing of them
            refinement["speakers"] = hashlib.sha256(self._speakers.tobytes()).hexdigest()[:16]
        return super().run_settings() | as_stored(refinement)

    def default_settings(self) -> dict[str, Any]:
        """Settings of a run to which nothing is given, with those of the refiner."""
        return super().default_settings() | {"refiner": as_stored(default_parameters(self.stage.refiner))}

    def summary(self) -> RunSummary:
        """What is known of the run so far."""
        sizes, last = np.empty(0, np.int64), ""
        if self.has_labels:
            units = self._published_units or self._units
            sizes = units.count_frames()
            last = f"{count_noun(len(sizes), 'unit')} of {len(units.labels):,} frames"
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


def collate_with_positions(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items as `collate_recordings` does, and list their "positions", which stay with the host."""
    return {**collate_recordings(items), "positions": [item["index"] for item in items]}
