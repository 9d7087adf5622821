"""The copy that follows the trained weights: what it is, and that it is what is clustered, scored and saved."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.runs import assert_same_weights, weights
from transformers import AutoModel, TrainerCallback

from hf_plr.trainer.ema import EMATeacher


class Average(TrainerCallback):
    """The moving average, weight by weight."""

    def __init__(self, decay):
        self.decay = decay
        self.trainer = None
        self.weights = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.weights = copy.deepcopy(weights(self.trainer))

    def on_step_end(self, args, state, control, **kwargs):
        for name, value in weights(self.trainer).items():
            self.weights[name] = self.decay * self.weights[name] + (1 - self.decay) * value


def test_it_is_the_moving_average_of_the_weights(make_trainer):
    average = Average(0.9)
    average.trainer = trainer = make_trainer({"callbacks": [average]}, ema_decay=0.9)
    trainer.train()
    for name, value in trainer.ema_teacher.model.state_dict().items():
        torch.testing.assert_close(value, average.weights[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(trainer.backbone.state_dict()["layernorm.weight"], weights(trainer)["layernorm.weight"])


def test_it_is_what_is_clustered_scored_and_saved(make_trainer, all_digits):
    trainer = make_trainer({"eval_dataset": all_digits.select(range(300, 400))}, ema_decay=0.9, num_train_epochs=2)
    trainer.train()
    trainer.save_model()
    saved = AutoModel.from_pretrained(trainer.args.output_dir)
    assert_same_weights(saved.state_dict(), trainer.ema_teacher.model.state_dict())
    features, evaluated = trainer.extract_features(), trainer.evaluate()
    scored, shard = trainer.score("after"), trainer.extract_shard()
    trainer.model.load_state_dict(trainer.ema_teacher.model.state_dict())
    trainer.ema_teacher = None
    torch.testing.assert_close(trainer.extract_features(), features)
    torch.testing.assert_close(trainer.extract_shard(), shard)
    assert trainer.score("after") == scored
    assert trainer.evaluate()["eval_knn_accuracy"] == evaluated["eval_knn_accuracy"]


def test_decay_outside_its_range_is_named(make_trainer):
    with pytest.raises(ValueError, match=r"ema_decay=1.0 is outside \[0, 1\)"):
        make_trainer(ema_decay=1.0)


def test_statistics_of_batches_are_those_of_the_trained_model():
    model = torch.nn.BatchNorm1d(2)
    teacher = EMATeacher(model, 0.9)
    model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    teacher.update(model)
    assert torch.equal(teacher.model.running_mean, model.running_mean)
    assert torch.equal(teacher.model.running_var, model.running_var)
    assert teacher.model.num_batches_tracked == 1
