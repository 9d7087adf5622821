"""The pair term: two views of a sample agree in a head of their own, beside the loss against the prototypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from hf_plr.training_args import AUTO, PLRTrainingArguments
from hf_plr.utils.distributed import is_single_process
from hf_plr.utils.rng import isolate_rng, uniform_of_pairs
from hf_plr.utils.serialization import validate_array

HIDDEN_SIZE = 512
OUTPUT_SIZE = 128
LEARNING_RATE = 1e-3  # of the head, at the peak of the schedule: it always starts from random weights
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0  # weights of VICReg's three terms, as published


def vicreg_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Compute the loss of VICReg (Bardes, Ponce and LeCun, ICLR 2022, arXiv 2105.04906, algorithm 1).

    Views of a sample are equal, every column has a standard deviation of at least 1, and no two columns are correlated.

    The code that its authors published halves the term of the deviations. Alone, on digits, that is 10 points of kNN
    worse.

    Args:
        first, second: embeddings of the two views of P samples, both of shape (P, E), P at least 2.

    Returns:
        A scalar.
    """
    loss = INVARIANCE * F.mse_loss(first, second)
    for view in (first, second):
        centered = view - view.mean(dim=0)
        deviation = (centered.square().sum(dim=0) / (len(view) - 1) + 1e-4).sqrt()
        loss = loss + VARIANCE * F.relu(1.0 - deviation).mean()
        covariance = centered.T @ centered / (len(view) - 1)
        off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
        loss = loss + COVARIANCE * off_diagonal / view.shape[1]
    return loss


def nt_xent(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute the loss of SimCLR (Chen et al., ICML 2020, arXiv 2002.05709, equation 1).

    It is the cross-entropy of each row's other view among all other rows, by cosine.

    Args:
        projections: of two views of each sample, which follow each other, shape (B, E), B at least 2.
        temperature: divisor of the cosines, above 0.

    Returns:
        A scalar.
    """
    directions = F.normalize(projections, dim=1)
    own = torch.eye(len(directions), dtype=torch.bool, device=directions.device)
    logits = (directions @ directions.T / temperature).masked_fill(own, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(directions), device=directions.device) ^ 1)


@dataclass(frozen=True)
class PairLoss:
    """A loss between the two views of each sample.

    Attributes:
        compute: the loss of embeddings (B, E), in which the two views of a sample follow each other, a scalar.
        weight: its usual weight beside the loss against the prototypes.
    """

    compute: Callable[[torch.Tensor], torch.Tensor]
    weight: float


PAIR_LOSSES = {
    "vicreg": PairLoss(lambda embeddings: vicreg_loss(embeddings[0::2], embeddings[1::2]), 0.3),
    "simclr": PairLoss(functools.partial(nt_xent, temperature=0.1), 1.0),
}
# Their clusters are many and small, so that few of a batch that are pushed apart belong together.
CLUSTERERS_WITH_SIMCLR = ("dbscan", "reciprocal_hdbscan")


OLDER_PAIRS = {"pair_loss": "vicreg"}  # settings of checkpoints that are older than the choice


def resolve_pair_loss(args: PLRTrainingArguments) -> str:
    """Resolve the name of the loss; "auto" is SimCLR's with a clusterer that finds many small clusters."""
    if args.pair_loss != AUTO:
        return args.pair_loss
    return "simclr" if args.clusterer in CLUSTERERS_WITH_SIMCLR else "vicreg"


def resolve_pair_weight(args: PLRTrainingArguments, name: str) -> float:
    """Resolve the weight of the loss of that name."""
    return PAIR_LOSSES[name].weight if args.pair_weight is None else args.pair_weight


def describe_pairs(args: PLRTrainingArguments, term: PairTerm | None) -> dict[str, Any]:
    """Describe what the arguments stand for, for the settings that a resumed run must share.

    Without a term nothing depends on its loss, and every choice of it is described as that of older checkpoints.
    """
    name = OLDER_PAIRS["pair_loss"] if term is None else resolve_pair_loss(args)
    return {"pair_loss": name, "pair_weight": resolve_pair_weight(args, name)}


class PairTerm:
    """A loss between the two views of each sample, in a head that ends with the training.

    Every process gathers the features of all of them and computes the whole loss, so that the statistics of the batch
    are those of a single process, and so are the head's gradients. The head has an optimizer of its own: it needs
    another learning rate than a pretrained backbone, and works beside FSDP, DeepSpeed and a user's own optimizer.

    Args:
        loss: loss of embeddings, as in `PairLoss`.
        width: size D of the features.
        weight: weight of the term in the loss, above 0.
        seed: seed of the head's first weights.
        accelerator: connects the processes.
    """

    def __init__(
        self,
        loss: Callable[[torch.Tensor], torch.Tensor],
        width: int,
        weight: float,
        seed: int,
        accelerator: Accelerator,
    ):
        self._loss = loss
        self.weight = weight
        self.accelerator = accelerator
        self._may_overflow = accelerator.mixed_precision == "fp16"
        self._checked_epoch: int | None = None  # the epoch whose first batch has been looked at
        with isolate_rng(seed):
            self.head = nn.Sequential(  # without biases: the loss would not change with them
                nn.Linear(width, HIDDEN_SIZE, bias=False),
                nn.BatchNorm1d(HIDDEN_SIZE, track_running_stats=False),
                nn.ReLU(inplace=True),
                nn.Linear(HIDDEN_SIZE, OUTPUT_SIZE, bias=False),
            )
        self.head.to(accelerator.device)
        # Fused: it counts its steps on the device, where others let the host wait for each parameter.
        self._optimizer = torch.optim.AdamW(self.head.parameters(), LEARNING_RATE, fused=True)

    def draw(self, index: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
        """Draw random numbers by `uniform_of_pairs`, for the samples at positions (B,), shape (B, 16).

        A batch on a GPU is looked at where the epoch begins, since the host would wait for it at every step.

        Raises:
            ValueError: if the batch does not hold every sample twice in a row, or is odd.
        """
        is_read = index.device.type == "cpu" or epoch != self._checked_epoch
        self._checked_epoch = epoch
        if len(index) % 2:
            raise ValueError(
                f"a batch of {len(index)} views cuts a pair in two, and the pair term compares both: use an even batch "
                "size, or pair_weight=0"
            )
        if is_read and not torch.equal(index[0::2], index[1::2]):
            raise ValueError(
                "a batch does not hold every sample twice in a row, as the pair term compares them: take "
                "sampler=self._get_train_sampler() in a loader of your own, or pair_weight=0"
            )
        return uniform_of_pairs(index, seed, epoch)

    def loss(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the weighted term of features (B, D), in which the two views of a sample follow each other."""
        return self.weight * self._loss(self.head(gather_with_gradient(features.float(), self.accelerator)))

    def step(self, schedule: float) -> None:
        """Update the head by the gradients since the last update, if there are any.

        Args:
            schedule: learning rate of the run as a fraction of its peak, in [0, 1].
        """
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()  # of the loss in float16
        gradients = [parameter.grad for parameter in self.head.parameters() if parameter.grad is not None]
        if scale != 1.0 and gradients:
            torch._foreach_div_(gradients, scale)
        # In float16 a scale that is too large gives infinite gradients; asking costs a wait for a GPU.
        if not self._may_overflow or all(gradient.isfinite().all() for gradient in gradients):
            self._optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule
            self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name: the head, and the moments of its optimizer."""
        state = {f"head.{name}": value.cpu().numpy() for name, value in self.head.state_dict().items()}
        for (name, _), moments in zip(self.head.named_parameters(), self._moments(), strict=True):
            state |= {f"optimizer.{name}.{key}": np.atleast_1d(value.cpu().numpy()) for key, value in moments.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the output of `state_dict`; other entries are ignored.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        weights = self.head.state_dict()
        self.head.load_state_dict(
            {name: _read(state, f"head.{name}", tuple(value.shape)) for name, value in weights.items()}
        )
        for name, parameter in self.head.named_parameters():
            if f"optimizer.{name}.step" not in state:  # saved before the first step
                continue
            shape = tuple(parameter.shape)
            self._optimizer.state[parameter] = {
                "step": _read(state, f"optimizer.{name}.step", (1,))[0].to(parameter.device),
                "exp_avg": _read(state, f"optimizer.{name}.exp_avg", shape).to(parameter.device),
                "exp_avg_sq": _read(state, f"optimizer.{name}.exp_avg_sq", shape).to(parameter.device),
            }

    def _moments(self) -> list[dict[str, torch.Tensor]]:
        return [self._optimizer.state.get(parameter, {}) for parameter in self.head.parameters()]


def make_pair_term(
    args: PLRTrainingArguments, has_views: bool, width: int, accelerator: Accelerator
) -> PairTerm | None:
    """Make the pair term that the arguments ask for; None if its weight is 0, or if two views would be the same.

    Args:
        args: the arguments.
        has_views: True if samples are augmented.
        width: size D of the features.
        accelerator: connects the processes.

    Raises:
        ValueError: if a batch cannot hold every sample twice, or a term is asked for and there is one view.
    """
    given = f"pair_loss={args.pair_loss!r}" if args.pair_loss != AUTO else f"pair_weight={args.pair_weight}"
    if not has_views and (args.pair_loss != AUTO or args.pair_weight):
        raise ValueError(f"{given} compares two views of a sample: it needs an augmentation")
    if args.pair_weight == 0.0 or not has_views:
        return None
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size=True needs pair_weight=0: it may find an odd batch, and pairs need even ones"
        )
    if args.train_batch_size % 2 or args.train_batch_size * args.world_size < 4:
        size = args.per_device_train_batch_size
        raise ValueError(
            f"per_device_train_batch_size={size}: a batch holds every sample in two views, so use an even number of at "
            "least 4, or pair_weight=0"
        )
    name = resolve_pair_loss(args)
    return PairTerm(PAIR_LOSSES[name].compute, width, resolve_pair_weight(args, name), args.seed, accelerator)


class _GatherRows(torch.autograd.Function):
    """Gathers the rows of all processes; a gradient goes back to the own rows.

    Every process computes the same loss of all rows. Averaged over processes, as for the backbone's weights, each row's
    gradient counts once for all of them: it is multiplied by their number here.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
        ctx.accelerator = accelerator
        parts = [torch.empty_like(rows) for _ in range(accelerator.num_processes)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        parts = gradients[0].chunk(ctx.accelerator.num_processes)
        return parts[ctx.accelerator.process_index] * ctx.accelerator.num_processes, None


def gather_with_gradient(rows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Gather the rows (n, D) of all processes, equally many of each, for a loss that each process computes alike."""
    if is_single_process(accelerator):
        return rows
    gathered: torch.Tensor = _GatherRows.apply(rows, accelerator)
    return gathered


def _read(state: dict[str, Any], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.array(validate_array(state, name, "floats", shape)))
