"""Names of other libraries that are private, and in use here: a release that renames one is to be noticed here."""

from __future__ import annotations

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sklearn.cluster import HDBSCAN
from torch.utils.data import DataLoader
from transformers import HubertModel, Trainer, TrainingArguments

from hf_plr.trainer.plr_trainer import PLRTrainer
from hf_plr.trainer.unit_trainer import UnitTrainer

TRAINER_METHODS = (
    *("_save", "_save_checkpoint", "_load_from_checkpoint", "_load_best_model", "_push_from_checkpoint"),
    *(
        "_finish_current_push",
        "_determine_best_metric",
        "_evaluate",
        "_prepare_inputs",
        "_get_output_dir",
        "_get_dataloader",
        "_get_train_sampler",
    ),
)


@pytest.mark.parametrize("name", TRAINER_METHODS)
def test_trainer_has_the_methods_that_are_overridden_or_called(name):
    assert callable(getattr(Trainer, name))


def test_every_private_method_that_overrides_one_is_in_the_list():
    overriding = {
        name
        for each in (PLRTrainer, UnitTrainer)
        for base in each.__mro__[: each.__mro__.index(Trainer)]
        for name in vars(base)
        if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }
    assert overriding <= set(TRAINER_METHODS)


def test_trainer_has_the_numbers_that_checkpoints_keep(tmp_path):
    class Squared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return {"loss": (self.weight * x).square().mean()}

    data = [{"x": torch.ones(1)}] * 4
    trainer = Trainer(Squared(), TrainingArguments(str(tmp_path), max_steps=1, report_to=[]), train_dataset=data)
    trainer.train()
    numbers = (trainer._tr_loss, trainer._total_loss_scalar, trainer._globalstep_last_logged, trainer._train_batch_size)
    assert all(isinstance(float(number), float) for number in numbers)


@pytest.fixture
def no_accelerator():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_accelerate_keeps_the_forward_of_a_model_that_it_prepares_and_its_loaders(no_accelerator):
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = torch.nn.Linear(2, 2)
    written = model.forward
    prepared = accelerator.prepare(model)
    assert prepared._original_forward == written
    assert accelerator._models == [prepared]
    assert prepared(torch.ones(1, 2)).dtype == torch.float32  # accelerate converts what it computes in bfloat16
    assert written(torch.ones(1, 2)).dtype == torch.float32
    loader = accelerator.prepare(DataLoader([1, 2]))
    assert accelerator._dataloaders == [loader]


def test_torch_tells_of_its_arithmetic_and_its_loaders():
    assert {torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()} <= {True, False}
    loader = DataLoader([1, 2])
    assert callable(loader._get_iterator)
    assert loader._iterator is None
    values = [torch.ones(2)]
    torch._foreach_div_(values, 2.0)
    assert values[0].tolist() == [0.5, 0.5]


def test_data_sets_and_others_have_theirs():
    rows = datasets.Dataset.from_dict({"a": [1, 2, 3]})
    assert isinstance(rows._fingerprint, str)
    assert rows.select([0, 2])._indices is not None
    assert rows.to_iterable_dataset()._ex_iterable is not None
    with pytest.raises(ValueError, match="min_cluster_size"):
        HDBSCAN(min_cluster_size=-1)._validate_params()
    assert callable(HubertModel._get_feat_extract_output_lengths)
