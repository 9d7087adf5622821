"""Adapt a vision transformer to re-identification data without labels, with or without a labelled source.

  accelerate launch recipes/reid_plr.py --dataset_name TARGET --model_name_or_path MODEL --output_dir out
      adapts a pretrained backbone to unlabelled images
  accelerate launch recipes/reid_plr.py --dataset_name TARGET --source_dataset_name SOURCE --output_dir out
      trains on the identities of SOURCE first; that backbone stays in out/source, to start from another time
  accelerate launch recipes/reid_plr.py --config recipes/configs/cluster_contrast_market1501.yaml ...
      takes published settings

TARGET, SOURCE: a folder with Market-1501, MSMT17 or VeRi-776 as it was unpacked; a folder of images, with or without a
folder for each identity; or a Hub id or a folder of parquet files, with columns of identities and cameras, if known.

Identities of the target score mAP and CMC and are used for nothing else. Without them nothing is scored.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.image_store import read_image_sizes
from hf_plr.data.loading import draw_rows
from hf_plr.evaluation.intervals import Interval
from hf_plr.models.vision import choose_vit_size, load_backbone, load_image_processor, small_vit, small_vit_processor
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.launch_environment import localize_commands
from hf_plr.recipe_tools.output_folder import OutputArguments, check_output_dir, claim_early, claim_output_dir
from hf_plr.recipe_tools.running import (
    SOUND_ARGUMENTS,
    check_given_labels,
    run_recipe,
    set_cpu_threads,
    train,
    write_results,
)
from hf_plr.reid.reid_data import JUNK, ReidData, load_reid_data
from hf_plr.reid.retrieval_evaluator import KnownLabels, RetrievalEvaluator, can_score
from hf_plr.report.file_names import METRICS_FILE
from hf_plr.report.metrics_file import read_intervals, read_scores, write_metrics
from hf_plr.trainer.continuation import open_continuation
from hf_plr.trainer.predecessor import find_predecessor
from hf_plr.training_args.defaults import ADAPTERS, FROM_SCRATCH, PRETRAINED
from hf_plr.utils.distributed import run_main_first, wait_for_all

logger = logging.getLogger(__name__)
SOURCE_FOLDER = "source"
TRAINING = ("learning_rate", "per_device_train_batch_size")  # what was trained on the source alone counts as new
OWN_DEFAULTS = {  # from any start
    "clusterer": "dbscan",
    "augmentation": "reid",
    "samples_per_cluster": 4,
    "num_train_epochs": 30,
}
DEFAULTS = {**OWN_DEFAULTS, **{name: FROM_SCRATCH[name] for name in TRAINING}}
PRETRAINED_DEFAULTS = {**{name: PRETRAINED["image"][name] for name in TRAINING}, "source_learning_rate": 1e-4}
WHAT_IS_NEEDED = (
    "--dataset_name is needed: a folder with Market-1501 (bounding_box_train, query, bounding_box_test), MSMT17 "
    "(list_train.txt and so on) or VeRi-776 (image_train, image_query, image_test); or a Hub id or a folder of parquet "
    "files with --identity_column and --camera_column"
)


@dataclass
class RecipeArguments:
    """The target, the source and the start."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Target: a folder with Market-1501, MSMT17 or VeRi-776, a folder of images, a Hub id, a folder of "
            "parquet files, an archive or a table. "
            "Splits query and gallery are scored; without them, every training image is a query among all others."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    source_dataset_name: str | None = field(
        default=None, metadata={"help": "Labelled data to train on first, of the same kinds. Default: none."}
    )
    source_dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set as the source."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on, of target and source."})
    identity_column: str | None = field(
        default=None,
        metadata={"help": "Column of identities; the target's only score. Default: identity or label, if it is there."},
    )
    camera_column: str | None = field(
        default=None, metadata={"help": "Column of cameras, for scoring. Default: camera, if it is there."}
    )
    source_identity_column: str | None = field(
        default=None, metadata={"help": "The source's column of identities. Default: identity_column."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Backbone to start from, a Hub id or a folder; changes the defaults of learning_rate to 3e-5, of "
            "source_learning_rate to 1e-4 and of per_device_train_batch_size to 64, and leaves that of "
            "num_train_epochs at 30. Default: the weights of continue_from, or a small ViT with random weights."
        },
    )
    source_epochs: float = field(default=30, metadata={"help": "Epochs on the source."})
    source_learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Peak learning rate on the source; 1e-4 with a pretrained backbone."},
    )
    image_height: int | None = field(
        default=None, metadata={"help": "Height of the images in pixels, 256 for persons. Default: the processor's."}
    )
    image_width: int | None = field(
        default=None, metadata={"help": "Width of the images in pixels, 128 for persons. Default: the processor's."}
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Threads per process on CPUs. Default: all cores, where one process runs alone."},
    )
    max_samples: int | None = field(
        default=None,
        metadata={"help": "Train on at most this many images of source and target each, drawn at random: a first try."},
    )


@dataclass
class ReidPLRArguments(OutputArguments, PLRTrainingArguments):
    """The arguments of training."""


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    recipe, args = parse(argv)
    set_cpu_threads(recipe.cpu_threads, args)
    started = time.perf_counter()
    check_output_dir(args)
    check_given_labels(recipe, args)
    target, rows = load(recipe, args)
    model, processor = start(recipe, args, target)
    source_folder = Path(str(args.output_dir)) / SOURCE_FOLDER
    source_name = ""
    scores: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Interval]] = {}
    if recipe.source_dataset_name is not None:
        claim_early(args)
        source_name, scores, intervals = train_on_source(recipe, args, target, model, processor, source_folder)
        model = load_backbone(source_folder)
        if not args.lora:  # adapters belong to the weights that are trained on
            model.name_or_path = recipe.model_name_or_path or ""  # reports tell what it was before

    evaluator = RetrievalEvaluator(target) if can_score(target) else None
    trainer = PLRTrainer(model, args, target.train.images, processing_class=processor, evaluator=evaluator)
    trainer.source = source_name
    if args.continue_from is None:
        trainer.from_scratch = recipe.model_name_or_path is None  # also where it was trained on a source
    claim_output_dir(trainer, args)
    trainer.scores |= scores
    trainer.intervals |= intervals
    trainer.reporter.rows = rows
    if not source_name:  # with one, it was scored before that
        trainer.score("before")
    train(trainer, args)
    trainer.score("after")

    again = f"--model_name_or_path {source_folder if source_name else 'MODEL'} --output_dir out/other"
    next_command = (f"accelerate launch recipes/reid_plr.py --dataset_name OTHER {again}", "another target")
    card = {"dataset": recipe.dataset_name, "tags": ["vit", "re-identification"]}
    write_results(trainer, rows, started, next_command, card)


def parse(argv: list[str] | None) -> tuple[RecipeArguments, ReidPLRArguments]:
    """Parse the recipe's arguments."""
    assert __doc__ is not None
    parser = RecipeParser(
        [RecipeArguments, ReidPLRArguments],
        localize_commands(__doc__),
        adjust_defaults,
        hidden=SOUND_ARGUMENTS,
        defaults=OWN_DEFAULTS,
    )
    recipe, args = parser.parse_args_and_config(argv)
    return recipe, args


def adjust_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's defaults, which depend on the given arguments.

    Raises:
        ValueError: if an argument is missing, or two do not fit together.
    """
    if given.get("dataset_name") is None:
        raise ValueError(WHAT_IS_NEEDED)
    if given.get("output_dir") is None:
        raise ValueError("--output_dir is needed: the folder for the results")
    if given.get("label_column") is not None:
        raise ValueError("--label_column is not for this recipe: --identity_column names the column that scores")
    if (given.get("image_height") is None) != (given.get("image_width") is None):
        raise ValueError("--image_height and --image_width: give both or none")
    if given.get("image_height") is not None and given.get("image_size") is not None:
        raise ValueError("--image_size scales --image_height and --image_width: give these alone, as they should be")
    for name in ("image_height", "image_width"):
        if given.get(name) is not None and given[name] < 8:
            raise ValueError(f"{name}={given[name]} must be at least 8")
    if given.get("source_epochs") is not None and given["source_epochs"] <= 0:
        raise ValueError(f"source_epochs={given['source_epochs']} must be above 0")
    if given.get("continue_from") is not None and given.get("source_dataset_name") is not None:
        raise ValueError("--source_dataset_name has no effect with --continue_from, whose run is a start: leave it out")
    if given.get("model_name_or_path") is None and not continues_pretrained(given):
        return DEFAULTS
    return {**DEFAULTS, **PRETRAINED_DEFAULTS, **(ADAPTERS if given.get("lora") else {})}


def continues_pretrained(given: dict[str, Any]) -> bool:
    """True if the run continues one that a pretrained backbone began; ValueErrors as of `find_predecessor`."""
    if given.get("continue_from") is None:
        return False
    resumed = given.get("resume_from_checkpoint")
    output_dir = None if resumed is None and given.get("overwrite") else given["output_dir"]
    return not find_predecessor(given["continue_from"], output_dir, resumed).history.from_scratch


def load(recipe: RecipeArguments, args: ReidPLRArguments) -> tuple[ReidData, np.ndarray]:
    """Load the target; returns it and the rows of its training split that are trained on."""
    with run_main_first(args.distributed_state, "loading the target"):
        target = load_reid_data(
            str(recipe.dataset_name),
            recipe.dataset_config_name,
            args.image_column,
            recipe.identity_column,
            recipe.camera_column,
            recipe.train_split,
        )
    rows = draw_rows(len(target.train.images), recipe.max_samples, args.seed)
    target = target.select_train(rows)
    if not can_score(target):
        logger.warning(
            "Nothing is scored: no two images of %s are known to show the same identity", recipe.dataset_name
        )
    return target, rows


def start(recipe: RecipeArguments, args: ReidPLRArguments, target: ReidData) -> tuple[PreTrainedModel, Any]:
    """Load the backbone to start from and the image processor, which makes images of the size in the arguments."""
    height, width = recipe.image_height, recipe.image_width
    name = recipe.model_name_or_path
    if name is None and (continuation := open_continuation(args)) is not None:
        name = continuation.predecessor.weights
    if name is not None:
        model = load_backbone(name)
        processor = load_image_processor(model)
    else:
        if height is not None and width is not None:
            image_size, patch_size = max(height, width), max(8, min(height, width) // 8)
        else:
            image_size, patch_size = choose_vit_size(*read_image_sizes(target.train.images, "image"), args.image_size)
        set_seed(args.seed)
        model, processor = small_vit(image_size, patch_size), small_vit_processor(image_size)
    if height is not None and width is not None:
        processor.size = {"height": height, "width": width}
        processor.do_resize = True
        processor.do_center_crop = False  # where a processor crops, its crop would cut this size again
    return model, processor


def train_on_source(
    recipe: RecipeArguments,
    args: ReidPLRArguments,
    target: ReidData,
    model: PreTrainedModel,
    processor: Any,
    folder: Path,
) -> tuple[str, dict[str, dict[str, float]], dict[str, dict[str, Interval]]]:
    """Train the model on the identities of the source, score it on the target before and after, and save it.

    A resumed run takes what the first one left.

    Returns:
        A description of the source, and the scores and their intervals by moment.
    """
    source_name = str(recipe.source_dataset_name)
    with run_main_first(args.distributed_state, "loading the source"):
        identity_column = recipe.source_identity_column or recipe.identity_column
        source = load_reid_data(
            source_name,
            recipe.source_dataset_config_name,
            args.image_column,
            identity_column,
            train_split=recipe.train_split,
        ).train
    if (source.identities == JUNK).all():
        raise ValueError(f"source_dataset_name={source_name!r} has no identities to train on")
    source = source.select(draw_rows(len(source.images), recipe.max_samples, args.seed))
    known_identities = source.identities[source.identities != JUNK]
    n_identities = len(np.unique(known_identities))
    name = f"{len(known_identities):,} images of {n_identities:,} identities ({Path(source_name).name})"
    metrics = folder / METRICS_FILE
    if args.resume_from_checkpoint is not None and metrics.exists():
        return name, read_scores(metrics), read_intervals(metrics)

    started = time.perf_counter()
    known = KnownLabels(source.identities)
    trainer = PLRTrainer(
        model,
        source_args(recipe, args, folder),
        source.images,
        processing_class=processor,
        clusterer=known,
        evaluator=RetrievalEvaluator(target, is_trained_on=False) if can_score(target) else None,
    )
    trainer.source = name
    trainer.check_samples()
    known.labels = source.identities[trainer.train_dataset.rows]  # of the images that can be read
    if trainer.is_world_process_zero():
        metrics.unlink(missing_ok=True)  # its presence means that this stage is finished
    trainer.score("before")
    trainer.train()
    trainer.score("source")
    trainer.save_model(_internal_call=True)
    if trainer.is_world_process_zero():
        write_metrics(metrics, trainer.summary(), time.perf_counter() - started)
        print(f"Trained on {name}: {folder}, a start for --model_name_or_path. Now the target, without labels.")
    wait_for_all(trainer.accelerator, "writing the results")
    return name, trainer.scores, trainer.intervals


def source_args(recipe: RecipeArguments, args: ReidPLRArguments, folder: Path) -> ReidPLRArguments:
    """Return the arguments of the stage on the source: supervised, no checkpoints, no push to the Hub."""
    ours = copy.copy(args)  # making new ones would reset the state that all Accelerators share
    ours.output_dir = str(folder)
    ours.num_train_epochs, ours.max_steps = recipe.source_epochs, -1  # --max_steps are those on the target
    ours.learning_rate = recipe.source_learning_rate
    ours.refinement, ours.num_labelings = "none", None
    ours.num_clusters, ours.clusterer_kwargs = None, None
    ours.labels = None  # those of the target
    ours.cluster_space, ours.whitening_shrinkage = "centered", None  # identities are no clusters
    ours.pair_weight = 0.0
    # Known labels do not move, so prototypes need not follow every batch. Short runs on Omniglot: mAP 0.048 with a
    # momentum of 0.8, 0.024 with 0.2; 0.277 with single images in a row, 0.234 with groups of four.
    ours.prototype_momentum = 0.9
    ours.samples_per_cluster = 1
    ours.save_strategy = SaveStrategy.NO
    ours.eval_strategy = IntervalStrategy.NO
    ours.load_best_model_at_end, ours.metric_for_best_model = False, None
    ours.push_to_hub = False
    return ours


if __name__ == "__main__":
    run_recipe(main)
