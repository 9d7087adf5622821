"""Random weights are told from trained ones."""

from __future__ import annotations

import torch
from torch import nn

from hf_plr.models.initial_weights import is_untrained
from hf_plr.models.speech import small_hubert
from hf_plr.models.vision import small_vit


def test_models_of_the_library_begin_untrained():
    for model in (small_vit(32, 8), small_hubert(8_000)):
        assert is_untrained(model)


def test_one_step_is_training():
    model = small_vit(32, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    model(torch.randn(2, 3, 32, 32)).last_hidden_state.square().sum().backward()
    optimizer.step()
    assert not is_untrained(model)


def test_a_model_without_normalisations_counts_as_trained():
    assert not is_untrained(nn.Linear(2, 2))
