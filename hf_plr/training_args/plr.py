"""Arguments of `PLRTrainer`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hf_plr.training_args.base import BaseTrainingArguments
from hf_plr.training_args.choices import Clusterer, ClusterSpace, FeatureDtype, FeatureSource, PairLoss
from hf_plr.training_args.ignored import OF_CLUSTERS, refuse_ignored
from hf_plr.utils.argument_checks import (
    AboveZero,
    AtLeastZero,
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    check_values,
    read_json_object,
    read_levels_argument,
)


@dataclass
class PLRTrainingArguments(BaseTrainingArguments):
    """Arguments of `PLRTrainer`: `BaseTrainingArguments` with the settings of clustering and of its objective.

    Raises:
        ValueError: if a value is outside its range, or has no effect beside others, naming the argument.
    """

    labels: str | None = field(
        default=None,
        metadata={
            "help": "Train on the labels in this file or folder, as hf-plr cluster and hf-plr refine write them, in "
            "all epochs, and neither cluster nor refine. Samples without a label there are in no cluster."
        },
    )
    continue_from: str | None = field(
        default=None,
        metadata={
            "help": "Continue the run in this output folder with grown or changed data: start from its weights unless "
            "others are named, refine the first labels by its last ones, and go on with its numbers of clusters."
        },
    )
    levels: list[int] | str | None = field(
        default=None,
        metadata={
            "help": "Levels of the tree of the last clusters, each a column of pseudo_labels.parquet: numbers of "
            "clusters, such as 8,16,32. Default: those of the run that is continued, or three that the tree suggests."
        },
    )
    clusterer: Clusterer = field(
        default="kmeans",
        metadata={
            "help": "kmeans, dbscan (on k-reciprocal neighbours, as in re-identification), reciprocal_hdbscan (the "
            "same without an eps), hdbscan or agglomerative."
        },
    )
    clusterer_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": """Arguments of the clusterer as JSON, such as '{"eps": 0.5, "k1": 20}' for dbscan."""},
    )
    num_labelings: Count | None = field(
        default=None,
        metadata={
            "help": "Clusterings per epoch that are trained on at once, each with prototypes and refinement of its own "
            "and twice as many clusters as the one before (dbscan: three quarters of its eps). The first is reported "
            "and saved. With refinement nested they are levels of one hierarchy. Default: 3 with nested, and with auto "
            "where the clusterer has a number of clusters or an eps; otherwise 1."
        },
    )
    cluster_space: ClusterSpace = field(
        default="auto",
        metadata={
            "help": "Space in which clusters are sought: centered (features relative to their mean), white (also "
            "whitened, so that directions of little variance count) or auto (the one of these that a trial at the "
            "first stage finds better: it more often puts a sample and its augmented view into one cluster)."
        },
    )
    whitening_shrinkage: AboveZero | None = field(
        default=None,
        metadata={
            "help": "Shrinkage of the whitening, as a multiple of the mean variance, such as 0.1 or 1; a large one "
            "leaves the features as they are. Default: what the trial at the first stage finds."
        },
    )
    pair_loss: PairLoss = field(
        default="auto",
        metadata={
            "help": "Loss between the two augmented views of a sample: vicreg, simclr (which pushes other samples of "
            "the batch away, too: for many small classes) or auto (simclr with clusterer dbscan or reciprocal_hdbscan, "
            "which says so of given labels, too)."
        },
    )
    pair_weight: AtLeastZero | None = field(
        default=None,
        metadata={
            "help": "Weight of that loss, beside the one against the prototypes. 0: one view, of twice as many "
            "samples a batch. Default: 0.3 of vicreg, 1 of simclr."
        },
    )
    confidence_power: AtLeastZero = field(
        default=0.0,
        metadata={
            "help": "Weight a sample's loss by the confidence of its label to this power; 0 gives equal weights."
        },
    )
    min_confidence: Fraction = field(
        default=0.0,
        metadata={"help": "Leave samples whose refined label has less confidence out of the epoch, in [0, 1]."},
    )
    refine_start_epoch: CountOrZero = field(
        default=1, metadata={"help": "First epoch whose labels are refined by those of the epochs before."}
    )
    samples_per_cluster: Count = field(
        default=4, metadata={"help": "Views of one cluster in a row (K of batches of P clusters x K views)."}
    )
    temperature: AboveZero = field(default=0.05, metadata={"help": "Divisor of the cosines in the loss, above 0."})
    prototype_momentum: Fraction = field(
        default=0.2, metadata={"help": "Fraction of the old prototype that an update keeps, in [0, 1]."}
    )
    feature_source: FeatureSource = field(
        default="extract",
        metadata={
            "help": "Features to cluster: extract (from a pass over all samples without augmentation) or epoch (those "
            "of the last epoch's training steps, averaged by sample: older features, and a pass only over what it did "
            "not draw, half of them where a batch has two views of each)."
        },
    )
    feature_momentum: FractionBelowOne = field(
        default=0.2,
        metadata={"help": "With feature_source epoch: fraction of a sample's old feature to keep, in [0, 1)."},
    )
    feature_dtype: FeatureDtype = field(
        default="auto",
        metadata={
            "help": "Arithmetic of the features that are clustered: float32, bfloat16, or auto (bfloat16 if training "
            "is in bf16, otherwise where the device has it and at most 2% of 2,048 samples get another cluster by it)."
        },
    )

    label_shards: Count | None = field(
        default=None,
        metadata={
            "help": "Logical shards of the samples, a multiple of the processes: each process keeps the labels of its "
            "own shards and trains on these, with equal parts of every batch from each. 1 keeps the labels of all "
            "samples on every process. Default: 1, from 2^20 samples a power of two up to 64; with "
            "auto_find_batch_size 1."
        },
    )

    def check(self) -> None:
        """Check all values as `BaseTrainingArguments` does, and those of clusters, and read JSON and levels."""
        super().check()
        check_values(self, PLRTrainingArguments)
        self.clusterer_kwargs = read_json_object("clusterer_kwargs", self.clusterer_kwargs)
        self.levels = read_levels_argument(self.levels, self.num_clusters)
        refuse_ignored(self, OF_CLUSTERS)
        if self.continue_from is not None:
            before, own = (os.path.realpath(str(folder)) for folder in (self.continue_from, self.output_dir))
            if before == own:
                raise ValueError(
                    f"continue_from={self.continue_from!r} is output_dir, too: give the new run a folder of its own"
                )
