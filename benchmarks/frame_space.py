"""Units in several spaces of frames: what they tell about the word, and about the speaker.

Frames of spoken digits are standardised (by nothing, globally, by recording, by speaker; "mean" takes the means off
alone), whitened, and clustered by k-means. A row has the PNMI of the units against digits and against speakers, and the
number of units that have frames; each is the mean over the seeds of k-means. Frames are MFCC, and those of a backbone's
layer with --model. They are those of single digits, and of recordings in which one speaker says three to five.

The data are --data, a folder of parquet files with columns audio, digit, speaker: the Free Spoken Digit Dataset.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from accelerate import Accelerator
from datasets import Audio, Dataset, Features, Value, load_dataset

from hf_plr.clustering import KMeans
from hf_plr.data.audio_store import AudioStore
from hf_plr.data.loader import StoreLoader
from hf_plr.data.true_labels import encode_labels
from hf_plr.evaluation.units import score_units
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.modality import AudioModality
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.training_args import UnitTrainingArguments
from hf_plr.units.frames import Frames
from hf_plr.units.space import FrameSpaceFitter, MomentSums, number_speakers, spread

RATE = 8_000
SCALINGS = ("none", "global", "recording: mean", "speaker: mean", "recording", "speaker")
SHRINKAGES = (None, 1.0, 0.1, 0.01)
SECONDS = 64  # of sound per batch


class KeptFrames(Frames):
    """Frames of a whole store, computed once."""

    def __init__(self, extractor: FeatureExtractor, store: AudioStore, layer: int | None):
        super().__init__(extractor, store, layer)
        self.batches = list(super().stream_recordings(torch.arange(len(store))))

    def stream_recordings(self, positions: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        assert len(positions) == len(self.store)
        yield from self.batches


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the spoken digits")
    parser.add_argument("--model", help="folder of a backbone, such as a trained one (default: MFCC alone)")
    parser.add_argument("--layer", type=int, help="its layer (default: two thirds of the way up)")
    parser.add_argument("--units", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="of k-means (default: %(default)s)")
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"Left out: {args.data} is not there; --data names a folder of spoken digits")
        return
    dataset = load_dataset(str(args.data))["train"]
    for source in ["MFCC"] if args.model is None else ["MFCC", "layer"]:
        extractor, layer = open_backbone(args.model, args.layer if source == "layer" else None, source == "MFCC")
        for length, parts in (("one digit", (1, 1)), ("three to five", (3, 5))):
            print(f"\n{source if layer is None else f'layer {layer}'}, recordings of {length}")
            print(f"{'scaling':<18}{'shrinkage':>10}{'digit':>9}{'speaker':>9}{'units':>7}")
            frames, digits, speakers = make_frames(extractor, layer, dataset, parts)
            for scaling in SCALINGS:
                for shrinkage in SHRINKAGES:
                    rows = map_frames(frames, scaling, shrinkage, speakers)
                    digit, speaker, units = measure(rows, digits, spread(speakers, frames.counts, CPU), args)
                    print(
                        f"{scaling:<18}{shrinkage or '-':>10}{digit:>9.3f}{speaker:>9.3f}{units:>7.0f}",
                        flush=True,
                    )


CPU = torch.device("cpu")


def open_backbone(model: str | None, layer: int | None, is_mfcc: bool) -> tuple[FeatureExtractor, int | None]:
    """Open the backbone, and choose the layer; for MFCC its frame rate alone counts."""
    with tempfile.TemporaryDirectory() as folder:
        training = UnitTrainingArguments(folder, report_to="none", disable_tqdm=True, use_cpu=True)
    processor = small_hubert_extractor(RATE) if model is None else None
    modality = AudioModality(small_hubert(RATE) if model is None else model, training, "audio", processor)
    if not is_mfcc and layer is None:
        layer = -(-2 * int(modality.model.config.num_hidden_layers) // 3)
    loader = StoreLoader(training, modality.collate)
    return FeatureExtractor(modality.model, modality, Accelerator(cpu=True), SECONDS, loader), layer


def make_frames(
    extractor: FeatureExtractor, layer: int | None, dataset: Dataset, parts: tuple[int, int]
) -> tuple[KeptFrames, np.ndarray, np.ndarray]:
    """Join digits of one speaker to recordings of `parts` (fewest, most), and compute their frames.

    Returns:
        The frames, the digit of each (F,), by the middle of its window, and the speaker of each recording (N,).
    """
    modality = extractor.modality
    assert isinstance(modality, AudioModality)
    single = modality.open(dataset, None, {})
    digits, speakers = (encode_labels(dataset, name)[single.rows] for name in ("digit", "speaker"))
    speakers = number_speakers(speakers)
    rng = np.random.default_rng(0)
    files, members = [], []
    for speaker in np.unique(speakers):
        left = rng.permutation(np.flatnonzero(speakers == speaker))
        while len(left):
            size = int(rng.integers(parts[0], parts[1] + 1))
            taken, left = left[:size], left[size:]
            waveforms = [single[int(position)]["input_values"].numpy() for position in taken]
            buffer = io.BytesIO()
            soundfile.write(buffer, np.concatenate(waveforms), RATE, "PCM_16", format="WAV")
            files.append({"bytes": buffer.getvalue(), "path": None})
            members.append((taken, np.cumsum([len(waveform) for waveform in waveforms])))
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}})
    joined = Dataset.from_dict({"audio": files}, features=features).cast_column("audio", Audio())
    store = modality.open(joined, None, {})
    assert isinstance(store, AudioStore)
    frames = KeptFrames(extractor, store, layer)
    backbone = modality.backbone
    labels = []
    for row, count in zip(store.rows, frames.counts, strict=True):
        taken, ends = members[row]
        middles = np.arange(count) * backbone.hop + backbone.receptive_field // 2
        labels.append(digits[taken[np.searchsorted(ends[:-1], middles, side="right")]])
    of_recordings = np.array([speakers[members[row][0][0]] for row in store.rows])
    return frames, np.concatenate(labels), of_recordings


def map_frames(frames: KeptFrames, scaling: str, shrinkage: float | None, speakers: np.ndarray) -> torch.Tensor:
    """Map all frames to a space: float32 (F, D)."""
    accelerator, batches = frames.extractor.accelerator, frames.batches
    if scaling.endswith("mean"):  # by hand, since it is no setting: means are taken in the space of "global"
        space, rows = FrameSpaceFitter("global").fit(frames, batches, accelerator)
        assert space.std is not None
        groups = spread(speakers if scaling.startswith("speaker") else np.arange(len(speakers)), frames.counts, CPU)
        sums = MomentSums(int(groups.max()) + 1, frames.width, len(rows), CPU)
        sums.add(rows, groups)
        rows = (rows - sums.moments(None).mean[groups]) * space.std
        batches = [(rows, torch.arange(len(speakers)))]
        scaling = "none"
    return FrameSpaceFitter(scaling, shrinkage, speakers).fit(frames, batches, accelerator)[1]


def measure(
    rows: torch.Tensor, digits: np.ndarray, speakers: torch.Tensor, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Means over the seeds: PNMI against digits, PNMI against speakers, and the number of units with frames."""
    found = []
    for seed in range(args.seeds):
        units = KMeans(args.units, spherical=False, seed=seed).fit(rows).labels_
        scores = [score_units(units, labels)["pnmi"] for labels in (digits, speakers.numpy())]
        found.append([*scores, len(np.unique(units))])
    digit, speaker, n_units = np.mean(found, axis=0)
    return float(digit), float(speaker), float(n_units)


if __name__ == "__main__":
    main()
