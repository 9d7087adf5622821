"""Arguments of the trainers. Imports only checks of ours, so that everything may import it."""

from hf_plr.training_args.backbone import BackboneArguments
from hf_plr.training_args.base import BaseTrainingArguments
from hf_plr.training_args.choices import (
    AUTO,
    AUTO_FOR_DBSCAN,
    AUTO_LABELINGS,
    AUTO_PRESET,
    CONSENSUS,
    FINER_PRESET,
    LOWER_IS_BETTER,
    NESTED,
    Augmentation,
    Clusterer,
    ClusterSpace,
    FeatureDtype,
    FeatureSource,
    Pooling,
    Refinement,
)
from hf_plr.training_args.plr import PLRTrainingArguments
from hf_plr.training_args.units import UnitTrainingArguments

__all__ = [
    "AUTO",
    "AUTO_FOR_DBSCAN",
    "AUTO_LABELINGS",
    "AUTO_PRESET",
    "CONSENSUS",
    "FINER_PRESET",
    "LOWER_IS_BETTER",
    "NESTED",
    "Augmentation",
    "BackboneArguments",
    "BaseTrainingArguments",
    "ClusterSpace",
    "Clusterer",
    "FeatureDtype",
    "FeatureSource",
    "PLRTrainingArguments",
    "Pooling",
    "Refinement",
    "UnitTrainingArguments",
]
