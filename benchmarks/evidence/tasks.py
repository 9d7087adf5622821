"""The data sets, where training on each of them starts, and with which arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as PILImage
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel, set_seed

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer, UnitTrainingArguments
from hf_plr.data.example_data import digits
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.models.vision import load_backbone, small_vit, small_vit_processor
from hf_plr.pseudo_labels.stage import default_num_clusters
from hf_plr.reid.reid_data import load_reid_data
from hf_plr.reid.retrieval_evaluator import KnownLabels, RetrievalEvaluator
from hf_plr.trainer.base_trainer import BaseTrainer

MakeTrainer = Callable[..., BaseTrainer]  # a class, or one with some of its arguments

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
KMEANS = {"K/2": 0.5, "2K": 2.0}  # variations: the number of clusters, off by a factor
EPS = {"eps-0.1": -0.1, "eps+0.1": 0.1}
RATES = {"lr/3": 1 / 3, "3lr": 3.0}
SHRINKAGES = {
    f"s={shrinkage:g}": {"cluster_space": "white", "whitening_shrinkage": shrinkage} for shrinkage in (0.03, 0.3, 3.0)
}
SMALL, LARGE = "small", "large"  # kinds of model: of 0.6 million weights at a rate of 1e-3, of 22 million at 3e-5


@dataclass(frozen=True)
class Task:
    """One data set with one start and one clusterer.

    Attributes:
        name: its name.
        arguments: what differs from the defaults of `PLRTrainingArguments`, the same for every way.
        make: makes the trainer: (class of it, arguments, seed, folder with data, folder for starts).
        model: "small" or "large", which peers have settings of their own for.
        needs: folder under the data folder, or of the machine, without which the task is left out.
        variations: settings that are off, by name: changes to the arguments.
        peers_from: task that differs in the clusterer alone, whose start and peers are this one's, too.
    """

    name: str
    arguments: dict[str, Any]
    make: Callable[..., BaseTrainer]
    model: str = SMALL
    needs: str | Path | None = None
    variations: dict[str, dict[str, Any]] = field(default_factory=dict)
    peers_from: str | None = None

    def is_there(self, data: Path) -> bool:
        """Whether the data are where they are looked for."""
        return self.needs is None or (data / self.needs).exists()


def _digits(trainer: MakeTrainer, args: Any, seed: int, data: Path, starts: Path) -> BaseTrainer:
    set_seed(seed)
    return trainer(small_vit(32, 8), args, digits(), processing_class=small_vit_processor(32))


def _fashion_mnist(
    trainer: MakeTrainer,
    args: Any,
    seed: int,
    data: Path,
    starts: Path,
    train_samples: int = 6000,
    test_samples: int = 2000,
) -> BaseTrainer:
    train, test = _idx_images("train", train_samples), _idx_images("t10k", test_samples)
    set_seed(seed)
    return trainer(
        small_vit(32, 8),
        args,
        train,
        processing_class=small_vit_processor(32),
        eval_dataset=test,
    )


def _cifar(
    trainer: MakeTrainer,
    args: Any,
    seed: int,
    data: Path,
    starts: Path,
    train_samples: int = 2000,
    test_samples: int = 1000,
) -> BaseTrainer:
    splits = load_dataset(str(data / "cifar-5"))
    model, processor = _dinov2_like(data, size=56)
    train, test = _drawn(splits["train"], train_samples), _drawn(splits["test"], test_samples)
    return trainer(model, args, train, processing_class=processor, eval_dataset=test)


def _magnetic_tile(trainer: MakeTrainer, args: Any, seed: int, data: Path, starts: Path) -> BaseTrainer:
    splits = load_dataset(str(data / "magnetic-tile"))
    model, processor = _dinov2_like(data, size=84)
    return trainer(model, args, splits["train"], processing_class=processor, eval_dataset=splits["test"])


def _omniglot(trainer: MakeTrainer, args: Any, seed: int, data: Path, starts: Path) -> BaseTrainer:
    target = load_reid_data(str(data / "omniglot" / "target"), None, None, "character", "drawer", "train")
    start = starts / f"omniglot-{seed}"
    with _making(start) as wanted:
        if wanted:
            source = load_reid_data(str(data / "omniglot" / "source"), None, None, "character", None, "train").train
            set_seed(seed)
            supervised = _arguments(
                str(start),
                seed,
                {
                    **OMNIGLOT,
                    "learning_rate": 2e-3,
                    "num_train_epochs": 32,
                    "refinement": "none",
                    "clusterer_kwargs": None,  # identities are no clusters
                    "prototype_momentum": 0.9,
                },
            )
            supervisor = PLRTrainer(
                small_vit(32, 8),
                supervised,
                source.images,
                processing_class=small_vit_processor(32),
                clusterer=KnownLabels(source.identities),
            )
            supervisor.train()
            supervisor.save_model()
    return trainer(
        load_backbone(str(start)),
        args,
        target.train.images,
        processing_class=small_vit_processor(32),
        evaluator=RetrievalEvaluator(target),
    )


def _fsdd(trainer: MakeTrainer, args: Any, seed: int, data: Path, starts: Path) -> BaseTrainer:
    splits = load_dataset(str(data / "fsdd"))
    start = starts / "fsdd"
    with _making(start) as wanted:
        if wanted:
            set_seed(0)
            settings: dict[str, Any] = {
                "num_train_epochs": 30,
                "relabel_every": 10,
                "mask_length": 5,
                "max_seconds": 1.0,
                "num_clusters": 100,
            }
            frames = UnitTrainer(
                small_hubert(8_000),
                UnitTrainingArguments(str(start), seed=0, **QUIET, **settings),
                splits["train"].remove_columns(["digit", "speaker"]),
                processing_class=small_hubert_extractor(8_000),
            )
            frames.train()
            frames.save_model()
    return trainer(str(start), args, splits["train"], eval_dataset=splits["test"])


OMNIGLOT: dict[str, Any] = {
    "pooling": "mean",
    "augmentation": "affine",
    "clusterer": "dbscan",
    "clusterer_kwargs": {"eps": 0.4, "min_samples": 4, "k1": 20, "k2": 6},
    "per_device_train_batch_size": 128,
    "samples_per_cluster": 1,
    "steps_per_epoch": 40,
    "num_train_epochs": 15,
    "learning_rate": 1e-3,
    "prototype_momentum": 0.9,
    "temperature": 0.1,
}


DINOV2_LIKE: dict[str, Any] = {
    "learning_rate": 3e-5,
    "per_device_train_batch_size": 64,
    "augmentation": "photo",
    "bf16": True,
}


def _clusters(n: int) -> dict[str, Any]:
    return {"num_clusters": n}


def _varied_clusters(n: int, rate: float = 1e-3) -> dict[str, dict[str, Any]]:
    return {name: _clusters(round(n * factor)) for name, factor in KMEANS.items()} | _varied_settings(rate)


def _varied_settings(rate: float = 1e-3) -> dict[str, dict[str, Any]]:
    return {name: {"learning_rate": rate * factor} for name, factor in RATES.items()} | SHRINKAGES


TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            {"num_train_epochs": 12, **_clusters(64)},
            _digits,
            variations=_varied_clusters(64),
        ),
        Task(
            "fashion-mnist",
            {"num_train_epochs": 8, **_clusters(116)},
            _fashion_mnist,
            needs=FASHION_MNIST,
            variations=_varied_clusters(116),
        ),
        Task(
            "cifar-5",
            {"num_train_epochs": 4, **DINOV2_LIKE, **_clusters(67)},
            _cifar,
            model=LARGE,
            needs="cifar-5",
            variations=_varied_clusters(67, DINOV2_LIKE["learning_rate"]),
        ),
        Task(
            "magnetic-tile",
            {"num_train_epochs": 5, **DINOV2_LIKE, **_clusters(default_num_clusters(1_075))},
            _magnetic_tile,
            model=LARGE,
            needs="magnetic-tile",
            variations=_varied_clusters(default_num_clusters(1_075), DINOV2_LIKE["learning_rate"]),
        ),
        Task(
            "omniglot",
            OMNIGLOT,
            _omniglot,
            needs="omniglot",
            variations={
                name: {"clusterer_kwargs": {**OMNIGLOT["clusterer_kwargs"], "eps": round(0.4 + change, 2)}}
                for name, change in EPS.items()
            }
            | _varied_settings(),
        ),
        Task(
            "omniglot-hdbscan",
            {
                **OMNIGLOT,
                "clusterer": "reciprocal_hdbscan",
                "clusterer_kwargs": {"min_cluster_size": 4, "min_samples": 4, "k1": 20, "k2": 6},
            },
            _omniglot,
            needs="omniglot",
            variations={
                f"k1 {k1}": {
                    "clusterer_kwargs": {"min_cluster_size": 4, "min_samples": 4, "k1": k1, "k2": 6},
                }
                for k1 in (15, 30)
            }
            | _varied_settings(),
            peers_from="omniglot",
        ),
        Task(
            "fsdd",
            {
                "num_train_epochs": 8,
                "learning_rate": 5e-4,
                "per_device_train_batch_size": 128,
                "per_device_eval_batch_size": 64,
                "max_seconds": 1.0,
                "label_column": "digit",
                **_clusters(150),
            },
            _fsdd,
            needs="fsdd",
            variations=_varied_clusters(150, 5e-4),
        ),
    )
}


def _longer(name: str, changes: dict[str, Any], **sizes: int) -> Task:
    """A task with more epochs, and with more samples where its maker takes a number of them; without variations."""
    task = TASKS[name]
    make = functools.partial(task.make, **sizes) if sizes else task.make
    return dataclasses.replace(
        task,
        name=f"{name}-long",
        arguments={**task.arguments, **changes},
        make=make,
        variations={},
        peers_from=task.peers_from and f"{task.peers_from}-long",
    )


TASKS |= {
    task.name: task
    for task in (
        _longer("digits", {"num_train_epochs": 30}),
        _longer(
            "fashion-mnist",
            {"num_train_epochs": 30, "per_device_train_batch_size": 256, **_clusters(default_num_clusters(60_000))},
            train_samples=60_000,
            test_samples=10_000,
        ),
        _longer(
            "cifar-5",
            {"num_train_epochs": 10, "per_device_train_batch_size": 256, **_clusters(default_num_clusters(10_000))},
            train_samples=10_000,
            test_samples=2_000,
        ),
        _longer("magnetic-tile", {"num_train_epochs": 15}),
        _longer("omniglot", {"num_train_epochs": 30}),
        _longer("omniglot-hdbscan", {"num_train_epochs": 30}),
        _longer("fsdd", {"num_train_epochs": 24, "per_device_train_batch_size": 128}),
    )
}


QUIET: dict[str, Any] = {
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "report": "no",
}


def _arguments(output_dir: str, seed: int, settings: dict[str, Any]) -> PLRTrainingArguments:
    return PLRTrainingArguments(output_dir, seed=seed, **{**QUIET, **settings})


def arguments_of(
    task: Task, output_dir: str, seed: int, changes: dict[str, Any], budget: int = 1, rate: float = 1.0
) -> PLRTrainingArguments:
    """The arguments of a run: the task's, with changes, then `budget` times the epochs and `rate` times the rate."""
    args = _arguments(output_dir, seed, {**task.arguments, **changes})
    args.num_train_epochs *= budget
    args.learning_rate *= rate
    return args


@contextlib.contextmanager
def _making(start: Path) -> Iterator[bool]:
    """Whether a start is still to be made; another process that makes it is waited for."""
    start.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{start}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not (start / "config.json").exists()


def _dinov2_like(data: Path, size: int) -> tuple[PreTrainedModel, Any]:
    """A ViT-S that was tuned for saliency, and its processor for square images of `size` pixels.

    Attention is computed step by step: for so few tokens in bfloat16, torch's fused kernel takes longer on a CPU.
    """
    name = str(data / "dinov2-small-saliency")
    model = AutoModel.from_pretrained(name, dtype=torch.float32, attn_implementation="eager")
    processor = AutoImageProcessor.from_pretrained(name)
    processor.size, processor.do_center_crop = {"height": size, "width": size}, False
    return model, processor


def _drawn(dataset: Dataset, n: int) -> Dataset:
    return dataset.select(draw_samples(len(dataset), n))


def draw_samples(n_rows: int, n: int) -> np.ndarray:
    """Draw the rows of a task, at most `n` of `n_rows`; returns them ascending.

    The records are of these rows. The draw of the recipes may change with the library, and this one does not.
    """
    if n >= n_rows:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(0).choice(n_rows, n, replace=False))


def _idx_images(split: str, n: int) -> Dataset:
    """The first n images of Fashion-MNIST, from the files of the IDX format."""

    def read(kind: str, header: int) -> np.ndarray:
        with gzip.open(FASHION_MNIST / f"{split}-{kind}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)

    pixels = read("images-idx3", 16).reshape(-1, 28, 28)[:n]
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    return Dataset.from_dict(
        {"image": [PILImage.fromarray(image) for image in pixels], "label": read("labels-idx1", 8)[:n].tolist()},
        features=features,
    )
