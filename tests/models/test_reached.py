"""Parameters that a feature depends on."""

from __future__ import annotations

import torch
from torch import nn

from hf_plr.models.reached import find_reached, freeze_unreached


class Branches(nn.Module):
    """A used and an unused layer, a weight that is used twice, and one that was frozen before."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.unused(rows)
        return self.used(self.frozen(self.used(rows)))


def test_what_gets_no_gradient_is_frozen_and_named():
    model = Branches()
    output = model(torch.rand(2, 3))
    assert find_reached(output) == set(model.used.parameters())
    assert freeze_unreached(model, output) == ["unused.weight", "unused.bias"]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "used.weight",
        "used.bias",
    ]


def test_an_output_without_a_graph_reaches_nothing():
    assert find_reached(torch.rand(2)) == set()
    model = Branches()
    with torch.no_grad():
        assert find_reached(model(torch.rand(2, 3))) == set()
