"""Scores against true labels every few epochs, which change nothing of the run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from hf_plr.trainer.base_trainer import BackboneTrainer

logger = logging.getLogger(__name__)

SCORE_PREFIX = "score/"


class ScoreCallback(TrainerCallback):
    """Logs `score/...` after every so many epochs: what `trainer.assess` finds, and the bounds of its intervals.

    Weights, labels, optimizer, random generators and the mode of every module are those of a run that is not scored.

    Args:
        trainer: the trainer; all its processes extract features, the main one scores them.
        every: epochs from one scoring to the next, at least 1.
    """

    def __init__(self, trainer: BackboneTrainer, every: int):
        self.trainer = trainer
        self.every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer.can_score:
            logger.warning("score_every=%d, but there is no label column to score by: nothing is scored.", self.every)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ended = state.epoch % 1 == 0  # not where a signal or a number of steps stopped it
        if not (ended and self.trainer.can_score and int(state.epoch) % self.every == 0):
            return
        found = self.trainer.assess()
        figures = dict(found.values)
        for name, (low, high) in found.intervals.items():
            figures |= {f"{name}_low": low, f"{name}_high": high}
        logs = control.should_log
        self.trainer.log({f"{SCORE_PREFIX}{name}": value for name, value in figures.items()})
        control.should_log = logs  # logging takes it for done, and the epoch's loss is still to come
