"""`UnitTrainer`'s step where a GPU computes: what the host waits for, and what it sends.

The forward of transformers' HuBERT waits twice itself, for its padding and for the frames to mask: it is left out here.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.absent_gpu import GPU, CountedCopies
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_plr.data.audio_store import collate_recordings
from hf_plr.units.masked_prediction import mask_spans


class CountedWaits(TorchDispatchMode):
    """Counts, while entered, the choices of places by a mask: the host waits for the number of them.

    Attributes:
        n: their number. Each takes every place, as the values are not there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.ops.aten.nonzero.default:
            return function(*args, **(kwargs or {}))
        self.n += 1
        return torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.int64, device=args[0].device)


class Frames(nn.Module):
    """A backbone that sees nothing: hidden states of the right shape, and a parameter."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, mask_time_indices: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.weight.expand(*mask_time_indices.shape, -1))


def step_on_a_gpu(trainer, batch):
    """How often the host waits in a step, and the names of the functions that copy."""
    model = trainer.model
    model.backbone = Frames(model.backbone.config)
    model.to(GPU)
    trainer._present = trainer._present.to(GPU)
    on_gpu = {name: part.to(GPU) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
    with CountedWaits() as waits, CountedCopies() as copies:
        trainer.compute_loss(model, on_gpu).backward()
    return waits.n, copies.names


def first_batch(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(8)])


def test_choices_are_noticed():
    values, mask = torch.ones(3, 4, device=GPU), torch.ones(3, 4, dtype=torch.bool, device=GPU)
    with CountedWaits() as waits:
        assert mask.nonzero().shape == (12, 2)
        values[torch.zeros(2, dtype=torch.int64, device=GPU)]
        with pytest.raises((RuntimeError, NotImplementedError)):
            values[mask]  # waits too
    assert waits.n == 1


@pytest.mark.parametrize(("unmasked_weight", "n_waits"), [(0.0, 1), (0.5, 2)])
def test_the_host_waits_for_each_choice_of_frames_and_sends_the_units_of_the_batch(
    make_sound_trainer, monkeypatch, unmasked_weight, n_waits
):
    """Once for the number of masked frames, and once for that of the others if they count."""
    trainer = make_sound_trainer(unmasked_weight=unmasked_weight, num_train_epochs=1)
    trainer.train()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # "meta" devices have none
    waits, copies = step_on_a_gpu(trainer, first_batch(trainer))
    assert waits == n_waits
    assert copies == ["to"]  # the units


def test_widths_of_masks_need_no_look_at_lengths():
    numbers, n_frames = torch.rand(4, 8, device=GPU), torch.full((4,), 60, device=GPU)
    assert mask_spans(numbers, n_frames, 0.8, 10, width=60).shape == (4, 60)
    with pytest.raises((RuntimeError, NotImplementedError)):
        mask_spans(numbers, n_frames, 0.8, 10)


def test_batches_without_positions_give_the_same_loss(make_sound_trainer):
    """A collator that a user gives need not list them: the host waits for the index."""
    trainer = make_sound_trainer(num_train_epochs=1)
    trainer.train()
    batch = first_batch(trainer)
    assert batch["positions"] == batch["index"].tolist() == list(range(8))
    trainer.model.eval()
    plain = collate_recordings([trainer.train_dataset[i] for i in range(8)])
    assert plain.keys() == batch.keys() - {"positions"}
    assert torch.equal(trainer.compute_loss(trainer.model, batch), trainer.compute_loss(trainer.model, plain))
    with pytest.raises((RuntimeError, NotImplementedError)):  # on a GPU that is not there
        step_on_a_gpu(trainer, plain)


def test_units_of_a_batch_are_those_of_its_recordings(make_sound_trainer):
    trainer = make_sound_trainer(num_train_epochs=1)
    trainer.train()
    bounds, labels = trainer._bounds, trainer.frame_units.labels
    width = int((bounds[1:] - bounds[:-1]).max()) + 3
    targets = trainer._targets([80, 0, 7], width, torch.device("cpu"))
    assert targets.dtype is torch.int64
    for row, position in zip(targets.tolist(), (80, 0, 7), strict=True):
        own = labels[bounds[position] : bounds[position + 1]].tolist()
        assert row == own + [-1] * (width - len(own))
