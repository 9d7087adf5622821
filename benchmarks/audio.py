"""Extraction of features from sounds: batches in order of length against batches in random order.

Three ways take turns over the same recordings with the same backbone; no batch with its padding has more than
`--batch_size` seconds:

  sorted  what PLRTrainer does: neighbours by length, read from the store
  random  the same batches' limit, recordings in random order
  bare    the limit: the sorted batches, ready and on the device

Whether the features are the same is part of the result. Without a data set the recordings are noise of lengths like
those of spoken words and sentences (log-normal, median 1.5 s, 0.3 to 15 s).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from accelerate import Accelerator
from datasets import Audio, Dataset

from hf_plr import PLRTrainingArguments
from hf_plr.data.audio_store import AudioStore
from hf_plr.data.loader import StoreLoader
from hf_plr.data.loading import load_train_and_test
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.modality import AudioModality
from hf_plr.models.speech import small_hubert, small_hubert_extractor

RATE = 16_000


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", metavar="DATA", help="recordings to take (default: noise of many lengths)")
    parser.add_argument("--recordings", type=int, default=300, help="how many at most (default: %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="size of the HuBERT, 768 is base (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="its layers, 12 is base (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="seconds of sound a batch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns, after one that is not counted (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    result = compare(args)
    if args.json:
        print(json.dumps(result))
        return
    for name in ("sorted", "random", "bare"):
        padding = f"   {result[f'{name}_padding']:.0%} padding" if f"{name}_padding" in result else ""
        print(f"{name:<8}{result[f'{name}_times_real_time']:>8.1f} times real time{padding}")
    low, high = result["sorted_over_random_min"], result["sorted_over_random_max"]
    print(f"sorted / random {result['sorted_over_random']:.2f} ({low:.2f} to {high:.2f})")
    print(f"sorted / bare   {result['sorted_over_bare']:.2f}")
    print(f"largest difference of the features {result['largest_difference']:.1e}")


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by name; ratios are formed inside each turn."""
    dataset = noise(args.recordings) if args.dataset_name is None else load_train_and_test(args.dataset_name)[0]
    dataset = dataset.select(range(min(len(dataset), args.recordings)))
    torch.manual_seed(0)
    model = small_hubert(RATE, args.width, args.layers)
    settings = PLRTrainingArguments("unused", disable_tqdm=True, report_to="none")
    column = next(name for name, feature in dataset.features.items() if isinstance(feature, Audio))
    sounds = AudioModality(model, settings, column, small_hubert_extractor(RATE))
    store = sounds.open(dataset, label_column=None, label_names={})
    extractor = FeatureExtractor(
        sounds.model, sounds, Accelerator(), args.batch_size, StoreLoader(settings, sounds.collate)
    )
    extractor.model.to(extractor.accelerator.device)
    in_order = torch.arange(len(store))
    at_random = torch.from_numpy(np.random.default_rng(0).permutation(len(store)))
    ready = list(extractor.batches(store, in_order))
    ways = {
        "sorted": lambda: extractor.extract(store, in_order),
        "random": lambda: extractor.extract(store, at_random),
        "bare": lambda: bare(extractor, ready),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    features: dict[str, torch.Tensor] = {}
    for turn in range(args.turns + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            features[name] = way().cpu()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    heard = float(store.lengths.sum()) / RATE
    result: dict[str, Any] = {
        f"{name}_times_real_time": round(heard / statistics.median(times), 1) for name, times in seconds.items()
    }
    for other in ("random", "bare"):
        ratios = [theirs / ours for theirs, ours in zip(seconds[other], seconds["sorted"], strict=True)]
        result[f"sorted_over_{other}"] = round(statistics.median(ratios), 3)
        result[f"sorted_over_{other}_min"] = round(min(ratios), 3)
        result[f"sorted_over_{other}_max"] = round(max(ratios), 3)
    return result | {
        "sorted_padding": round(padding(sounds, store, in_order, args.batch_size), 3),
        "random_padding": round(padding(sounds, store, at_random, args.batch_size), 3),
        "largest_difference": float((features["sorted"][at_random] - features["random"]).abs().max()),
        "recordings": len(store),
        "seconds_of_sound": round(heard, 1),
        "width": args.width,
        "layers": args.layers,
        "batch_size": args.batch_size,
        "turns": args.turns,
        "device": str(extractor.accelerator.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def noise(n_recordings: int) -> Dataset:
    """Recordings of white noise, as wav files in memory."""
    rng = np.random.default_rng(0)
    rows = []
    for seconds in rng.lognormal(np.log(1.5), 0.7, n_recordings).clip(0.3, 15.0):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * rng.normal(size=int(seconds * RATE)), RATE, format="WAV")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"audio": rows}).cast_column("audio", Audio())


def bare(extractor: FeatureExtractor, ready: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Features of ready batches."""
    with extractor.evaluation_mode():
        return torch.cat([extractor.modality.features(extractor.model, batch) for batch in ready])


def padding(sounds: AudioModality, store: AudioStore, positions: torch.Tensor, size: int) -> float:
    """Share of padding in all batches."""
    lengths = [store.lengths[batch.numpy()] for batch in sounds.batches(store, positions, size)]
    return 1.0 - sum(each.sum() for each in lengths) / sum(len(each) * each.max() for each in lengths)


if __name__ == "__main__":
    main()
