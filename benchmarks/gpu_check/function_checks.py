"""Every function of a run that computes on the device: the same as on the CPU, up to rounding."""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_blobs

from benchmarks import throughput
from benchmarks.gpu_check.findings import Bench, Findings
from benchmarks.gpu_check.machine import fp32_arithmetic
from hf_plr import KMeans, ReciprocalDBSCAN, ReciprocalHDBSCAN
from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.clustering.neighbors import find_nearest_neighbors
from hf_plr.data.audio_augmentation import AUDIO_AUGMENTATIONS
from hf_plr.data.image_augmentation import IMAGE_AUGMENTATIONS
from hf_plr.evaluation.label_free import effective_rank
from hf_plr.evaluation.retrieval import score_retrieval
from hf_plr.evaluation.scores import score_features
from hf_plr.features.centering import center_features
from hf_plr.models.speech import SpeechBackbone, load_speech_backbone, small_hubert
from hf_plr.models.vision import small_vit
from hf_plr.models.vision_backbone import VisionBackbone
from hf_plr.units.masked_prediction import count_spans, mask_spans
from hf_plr.units.mfcc import mfcc
from hf_plr.utils.rng import uniform

CPU = torch.device("cpu")
ROUNDING = 1e-5
INTERPOLATION = 1e-4  # positions in pixels are rounded too
MANY_LAYERS = 1e-4
TF32 = 1e-3  # the default of convolutions
ORDER = 1e-2  # rounding may exchange two neighbours that are equally near, or two accuracies' samples
Found = Mapping[str, torch.Tensor | np.ndarray | float]
Function = Callable[[torch.device], Found]


def check_functions(bench: Bench, findings: Findings) -> None:
    """Clustering, objective, augmentations, models and scores on the device, against the CPU on small input."""
    if not bench.is_gpu:
        findings.note("there is only a CPU: everything is computed twice on it")
    for name, (function, tolerance) in FUNCTIONS.items():
        try:
            with fp32_arithmetic("ieee"):
                expected, found = function(CPU), function(bench.device)
        except Exception as error:
            findings.expect(name, float("nan"), at_most=tolerance)
            findings.note(f"{name}: {type(error).__name__}: {error}")
            continue
        errors = {key: largest_error(found[key], expected[key]) for key in expected}
        worst = max(errors, key=lambda key: errors[key])
        findings.expect(name, errors[worst], at_most=tolerance)
        if errors[worst] > tolerance:
            findings.note(f"{name}: most in {worst!r}")
    for name, function in {"vision": _vision, "speech": _speech}.items():
        expected, found = function(CPU), function(bench.device)
        errors = {key: largest_error(found[key], expected[key]) for key in expected}
        findings.expect(f"{name} as it is", max(errors.values()), at_most=TF32)


def largest_error(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest expected value if that is above 1; shares for integers."""
    first, second = (torch.as_tensor(values).detach().cpu() for values in (found, expected))
    if first.shape != second.shape or first.dtype != second.dtype:
        return float("inf")
    if first.numel() == 0:
        return 0.0
    if not first.is_floating_point():
        return float((first != second).float().mean())
    if not torch.isfinite(first).all():
        return float("inf")
    return float((first - second).abs().max() / max(1.0, float(second.abs().max())))


def _blobs() -> tuple[torch.Tensor, np.ndarray]:
    points, labels = make_blobs(900, n_features=24, centers=20, cluster_std=0.8, random_state=0)
    return torch.from_numpy(points.astype(np.float32)), labels


def _numbers(n: int) -> torch.Tensor:
    return uniform(torch.arange(n), 0, 0)


def _kmeans(device: torch.device) -> Found:
    points, _ = _blobs()
    found: dict[str, Any] = {}
    for name, kmeans in {
        "spherical": KMeans(20, init=points[:20]),
        "euclidean": KMeans(20, init=points[:20], spherical=False),
        "empty": KMeans(20, init=torch.cat([points[:15], torch.full((5, 24), 1e3)]), spherical=False),
        "sample": KMeans(20, init=points[:20], fit_samples=500),
    }.items():
        kmeans.fit(points.to(device))
        found |= {f"{name} labels": kmeans.labels_, f"{name} centers": kmeans.cluster_centers_.cpu()}
    return found


def _means(device: torch.device) -> Found:
    points, labels = _blobs()
    centered = center_features(points.to(device))
    targets = torch.from_numpy(np.where(labels == 3, -1, labels)).to(device)
    means = average_clusters(centered.rows, targets, 20)
    found = {"center": centered.center, "rows": centered.rows, "directions": means.directions, "sizes": means.sizes}
    return found | {"lengths": means.lengths}


def _objective(device: torch.device) -> Found:
    """Loss and gradient of a batch under three labelings with soft targets; prototypes after four steps."""
    parser = argparse.ArgumentParser()
    throughput.add_arguments(parser)
    words = ["--samples", "300", "--batch_size", "32", "--steps", "1", "--device", device.type]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = throughput.trainers(parser.parse_args(words), throughput.many_digits(300), folder)
        trainer.begin_epoch(2)
        batch = trainer.train_dataset.batch(torch.arange(16).repeat_interleave(2))  # two views of each
        loss = trainer.compute_loss(trainer.model, {name: values.to(device) for name, values in batch.items()})
        loss.backward()
        gradient = torch.cat([each.grad.flatten() for each in trainer.model.parameters() if each.grad is not None])
        trainer.model.zero_grad()
        trainer.train()
        state = trainer.label_state()
    prototypes = {name: value for name, value in state.items() if name.endswith("prototypes")}
    return {"loss": loss.detach(), "gradient": gradient / gradient.norm(), **prototypes}


def _reciprocal(device: torch.device) -> Found:
    points, _ = _blobs()
    rows = torch.nn.functional.normalize(points, dim=1).to(device)
    return {
        "neighbors": find_nearest_neighbors(rows, 15),
        "dbscan": ReciprocalDBSCAN(eps=0.5, k1=15, k2=4).fit(rows).labels_,
        "hdbscan": ReciprocalHDBSCAN(k1=15, k2=4).fit(rows).labels_,
    }


def _scores(device: torch.device) -> Found:
    points, labels = _blobs()
    rows = points.to(device)
    found = score_features(rows[:600], labels[:600], rows[600:], labels[600:])
    found |= score_retrieval(rows[:100], rows[100:], labels[:100], labels[100:])
    return found | {"effective_rank": effective_rank(rows)}


def _image_augmentations(device: torch.device) -> Found:
    images = torch.rand(12, 3, 40, 32, generator=torch.Generator().manual_seed(0)).to(device)
    numbers = _numbers(12).to(device)
    return {name: augment(images, numbers) for name, augment in IMAGE_AUGMENTATIONS.items()}


def _sounds() -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(6, 6000, generator=torch.Generator().manual_seed(0)) * 0.1
    return values, torch.tensor([6000, 5000, 4100, 900, 3000, 6000])


def _audio_augmentations(device: torch.device) -> Found:
    values, lengths = (each.to(device) for each in _sounds())
    numbers = _numbers(6).to(device)
    return {name: augment(values, lengths, numbers) for name, augment in AUDIO_AUGMENTATIONS.items()}


def _mfcc(device: torch.device) -> Found:
    values, lengths = (each.to(device) for each in _sounds())
    return {"mfcc": mfcc(values, lengths, 8000, 240, 160)}


def _masks(device: torch.device) -> Found:
    n_frames = torch.tensor([200, 150, 30, 5, 1], device=device)
    numbers = uniform(torch.arange(5, device=device), 3, 4, n=count_spans(200, 0.65, 10))
    return {"numbers": numbers, "mask": mask_spans(numbers, n_frames, 0.65, 10)}


def _vision(device: torch.device) -> Found:
    torch.manual_seed(0)
    model: Any = small_vit(32, 8)
    pixels = torch.randn(8, 3, 32, 32)
    found = {}
    for pooling in ("cls", "mean"):
        backbone = VisionBackbone(model, pooling, (32, 32))
        moved = copy.deepcopy(model).to(device).eval()
        with torch.inference_mode():
            found[pooling] = backbone.features(moved, pixels.to(device))
    return found


def _speech(device: torch.device) -> Found:
    torch.manual_seed(0)
    model: Any = load_speech_backbone(small_hubert(8000, hidden_size=64, num_hidden_layers=2))
    backbone = SpeechBackbone(model)
    values, lengths = (each.to(device) for each in _sounds())
    with torch.inference_mode():
        return {"features": backbone.features(model.to(device).eval(), values, lengths)}


FUNCTIONS: dict[str, tuple[Function, float]] = {
    "k-means": (_kmeans, ROUNDING),
    "centering and means": (_means, ROUNDING),
    "neighbours and density": (_reciprocal, ORDER),
    "scores": (_scores, ORDER),
    "image augmentations": (_image_augmentations, INTERPOLATION),
    "sound augmentations": (_audio_augmentations, ROUNDING),
    "mfcc": (_mfcc, TF32),
    "masks": (_masks, ROUNDING),
    "vision": (_vision, MANY_LAYERS),
    "speech": (_speech, MANY_LAYERS),
    "objective": (_objective, TF32),
}
