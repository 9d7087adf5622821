"""`PeerTrainer`: a peer's objective on the same data, augmentation, backbone and optimizer as `PLRTrainer`'s."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback

from benchmarks.evidence.passes import count_peer_steps
from benchmarks.evidence.peers import TEMPERATURE, Batch, Objective, make_objective
from hf_plr import PLRTrainingArguments
from hf_plr.pseudo_labels.sampler import EpochSampler, count_samples_per_step, select_data_seed
from hf_plr.pseudo_labels.stage import default_num_clusters
from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.utils.rng import isolate_rng, uniform

HEAD_LEARNING_RATE = 1e-3
SECOND_VIEW = 1 << 20  # what the seed of the second view's random numbers is above that of the first


class PeerTrainer(BaseTrainer):
    """Train a backbone by a peer's objective, in as many steps as spend the image passes of a `PLRTrainer`.

    A batch has as many rows as a `PLRTrainer`'s: half as many samples in two views, one after the other.

    Args:
        model, args, train_dataset, **kwargs: as for `PLRTrainer`. `args.num_train_epochs` are a `PLRTrainer`'s: the
            passes of so many are spent.
        peer: name of the objective, one of `benchmarks.evidence.peers.PEERS`.
        temperature: of SimCLR and SwAV.

    """

    arguments_class = PLRTrainingArguments
    stage_extracts = False  # there is no stage
    args: PLRTrainingArguments

    def __init__(
        self,
        model: Any,
        args: PLRTrainingArguments,
        train_dataset: Dataset,
        peer: str,
        temperature: float = TEMPERATURE,
        **kwargs: Any,
    ):
        n_samples = len(train_dataset)
        n_clusters = args.num_clusters or default_num_clusters(n_samples)

        def make(backbone: nn.Module) -> Objective:
            with isolate_rng(args.seed):
                return make_objective(peer, backbone, n_samples, n_clusters, temperature)

        self._make_objective = make
        super().__init__(model, args, train_dataset, **kwargs)
        args = self.args
        self._sampler = ViewSampler(n_samples, self.peer.views, count_samples_per_step(args), select_data_seed(args))
        self.args.max_steps = count_peer_steps(args, n_samples, self.peer.extra_passes)
        self.add_callback(_Following(self))

    @property
    def peer(self) -> Objective:
        """The loss, and what is trained beside the backbone."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        assert isinstance(model, PeerModel)
        return model.objective

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Loss of a batch of views, whose features come from one forward pass."""
        numbers = self.draw_numbers(inputs["index"])

        def encode(backbone: nn.Module) -> torch.Tensor:
            def forward(**arguments: Any) -> Any:
                with torch.no_grad(), self.accelerator.autocast():  # as accelerate does for the model that is trained
                    return backbone(**arguments)

            return self.modality.features(cast(nn.Module, forward), inputs, numbers)

        features = self.modality.features(model, inputs, numbers)
        loss = self.peer(features, Batch(inputs["index"], self._epoch, encode))
        return (loss, {"features": features}) if return_outputs else loss

    def draw_numbers(self, index: torch.Tensor) -> torch.Tensor:
        """Draw the random numbers (B, 16) that rows of these samples (B,) are augmented by; views have their own."""
        numbers = uniform(index, self.args.seed, self._epoch)
        for view in range(1, self.peer.views):
            part = slice(view, None, self.peer.views)
            numbers[part] = uniform(index[part], self.args.seed + view * SECOND_VIEW, self._epoch)
        return numbers

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create `Trainer`'s optimizer, with a learning rate of its own for what is trained beside the backbone."""
        optimizer = super().create_optimizer(model)
        beside = {id(parameter) for parameter in self.peer.parameters()}
        for group in list(optimizer.param_groups):
            head = [parameter for parameter in group["params"] if id(parameter) in beside]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in beside]
            if head:
                optimizer.add_param_group({**group, "params": head, "lr": HEAD_LEARNING_RATE})
        return optimizer

    def _make_trained_model(self) -> nn.Module:
        self.modality.freeze_unused()
        return PeerModel(self.modality.model, self._make_objective(self.modality.model))

    def _backbone_of(self, model: nn.Module) -> nn.Module:
        unwrapped: Any = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        backbone: nn.Module = unwrapped.backbone
        return backbone

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return self._sampler

    # ---- there are no labels -------------------------------------------------------------------------------------

    @property
    def has_labels(self) -> bool:
        """False: a peer has no labels."""
        return False

    def describe_clusters(self) -> str:
        """The objective's name."""
        return type(self.peer).__name__

    def needs_new_labels(self, epoch: int) -> bool:
        """False."""
        return False

    def refresh_labels(self, epoch: int) -> None:
        """Nothing to do."""

    def keep_labels(self, epoch: int) -> None:
        """Nothing to do."""

    def begin_epoch(self, epoch: int) -> None:
        """Begin a pass over the samples, in an order of its own."""
        self._sampler.begin(epoch)

    def label_state(self) -> dict[str, np.ndarray]:
        """Nothing: these runs are not resumed."""
        return {}

    def load_label_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        """Refuse: these runs are not resumed."""
        raise NotImplementedError("a peer's run cannot be resumed")

    def save_labels(self, directory: Any, rows: np.ndarray | None = None) -> None:
        """Nothing to save."""

    def score_labels(self) -> dict[str, float]:
        """Nothing to score."""
        return {}


class PeerModel(nn.Module):
    """A backbone, and the objective that trains it."""

    def __init__(self, backbone: nn.Module, objective: Objective):
        super().__init__()
        self.backbone = backbone
        self.objective = objective

    def forward(self, **arguments: Any) -> Any:
        """Output of the backbone; the loss is no part of it, as it is none of `PLRTrainer`'s model."""
        return self.backbone(**arguments)


class ViewSampler(EpochSampler):
    """Sampler of all samples once per epoch, in random order, each as many times in a row as it has views.

    The last batch of an epoch is filled up with samples of another pass.

    Args:
        n_samples: samples N of the data set.
        views: views of a sample.
        batch_size: rows of a batch, which views divide.
        seed: seed of the order, which depends on it and on the epoch.
    """

    def __init__(self, n_samples: int, views: int, batch_size: int, seed: int):
        super().__init__(n_samples, seed, samples_per_epoch=-(-views * n_samples // batch_size) * batch_size)
        self.views = views

    def begin(self, epoch: int) -> None:
        """Begin an epoch, which has an order of its own."""
        self._epoch = epoch

    def _draw_pass(self, rng: np.random.Generator) -> np.ndarray:
        return np.repeat(rng.permutation(self.n_samples), self.views)


class _Following(TrainerCallback):
    """Lets the objective follow each optimizer step."""

    def __init__(self, trainer: PeerTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.peer.follow(self.trainer.student, (state.global_step + 1) / state.max_steps)
