"""The copy that follows the trained weights: what it is, and that it is what is clustered, scored and saved."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers.runs import StopAt, assert_same_weights, weights
from transformers import AutoModel, TrainerCallback

from hf_plr import UnitTrainer


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


@pytest.mark.parametrize("stop_at", [7, 10])
def test_resume_is_bit_exact(make_trainer, tmp_path, stop_at):
    whole = make_trainer(output_dir=str(tmp_path / "whole"), ema_decay=0.9)
    whole.train()
    make_trainer({"callbacks": [StopAt(stop_at)]}, output_dir=str(tmp_path / "part"), ema_decay=0.9).train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), ema_decay=0.9)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop_at}"))
    assert_same_weights(weights(whole), weights(resumed))
    assert_same_weights(whole.ema_teacher.model.state_dict(), resumed.ema_teacher.model.state_dict())
    np.testing.assert_array_equal(whole.pseudo_labels.labels, resumed.pseudo_labels.labels)


def test_it_works_for_frames_of_sounds(make_sound_trainer, tmp_path):
    whole = make_sound_trainer(UnitTrainer, output_dir=str(tmp_path / "whole"), ema_decay=0.9)
    whole.train()
    stopped = {"callbacks": [StopAt(4)]}
    make_sound_trainer(UnitTrainer, stopped, output_dir=str(tmp_path / "part"), ema_decay=0.9).train()
    resumed = make_sound_trainer(UnitTrainer, output_dir=str(tmp_path / "part"), ema_decay=0.9)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole), weights(resumed))
    assert_same_weights(whole.backbone.state_dict(), resumed.backbone.state_dict())
    np.testing.assert_array_equal(whole.frame_units.labels, resumed.frame_units.labels)


def test_decay_outside_its_range_is_named(make_trainer):
    with pytest.raises(ValueError, match=r"ema_decay=1.0 is outside \[0, 1\)"):
        make_trainer(ema_decay=1.0)
