"""Trainers: `transformers.Trainer` with a refinement stage between epochs."""

from hf_plr.trainer.plr_trainer import PLRTrainer
from hf_plr.trainer.unit_trainer import UnitTrainer

__all__ = ["PLRTrainer", "UnitTrainer"]
