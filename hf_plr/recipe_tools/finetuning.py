"""Shared parts of the recipes that fine-tune a classifier: arguments, a few labels per class, training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from transformers import EvalPrediction, PreTrainedModel, Trainer, default_data_collator, set_seed

from hf_plr.models.frozen import hold_frozen
from hf_plr.models.spectrogram_inputs import SpectrogramInputs, makes_spectrograms
from hf_plr.recipe_tools.finetune_arguments import LAST, ClassifierArguments, FinetuneArguments, remove_earlier
from hf_plr.recipe_tools.labelled_data import LabelledData
from hf_plr.utils.files import give_usual_mode

logger = logging.getLogger(__name__)

HEADS = ("classifier", "fc", "head", "projector")  # parts of classifiers that have no base model of their own
DEFAULT_MAX_SECONDS = 10


def train_classifier(
    make_model: Callable[[dict[str, Any]], PreTrainedModel],
    add_inputs: Callable[[Dataset, np.ndarray], Dataset],
    data: LabelledData,
    processor: Any,
    recipe: FinetuneArguments,
    args: ClassifierArguments,
) -> dict[str, float]:
    """Train by the stock Trainer, save the classifier, and return its scores on the test split.

    Args:
        make_model: makes the classifier from num_labels, id2label and label2id.
        add_inputs: converts samples and their classes to inputs of the model.
        data: the samples.
        processor: saved with the classifier.
        recipe, args: the arguments.
    """
    set_seed(args.seed)
    id2label = dict(enumerate(data.names))
    model = make_model(
        {
            "num_labels": len(data.names),
            "id2label": id2label,
            "label2id": {name: number for number, name in id2label.items()},
        }
    )
    if recipe.freeze_backbone:
        freeze_backbone(model)
    train_dataset = add_inputs(data.train, data.train_labels)
    trainer = Trainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=add_inputs(data.test, data.test_labels),
        data_collator=default_data_collator,
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    if trainer.is_world_process_zero():
        remove_earlier(args)
    checkpoint = args.resume_from_checkpoint
    with contextlib.nullcontext() if recipe.freeze_backbone else _without_long_masks(model, train_dataset[:1]):
        trainer.train(resume_from_checkpoint=True if checkpoint == LAST else checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        give_usual_mode(str(args.output_dir))
        print(
            f"\nTrained on {len(data.train):,} labels of {len(data.names)} classes. Test split of {len(data.test):,}: "
            f"accuracy {metrics['eval_accuracy']:.3f}, macro F1 {metrics['eval_f1']:.3f}. "
            f"Classifier in {args.output_dir}."
        )
    return {"accuracy": metrics["eval_accuracy"], "f1": metrics["eval_f1"]}


def freeze_backbone(classifier: PreTrainedModel) -> None:
    """Freeze all of a classifier but its head."""
    backbone: list[nn.Module] = [classifier.base_model]
    if classifier.base_model is classifier:  # CLIP, SigLIP, Whisper, HGNetV2 and others: parts side by side
        backbone = [part for name, part in classifier.named_children() if name not in HEADS]
    for part in backbone:
        part.requires_grad_(False)
        hold_frozen(part)


@contextlib.contextmanager
def _without_long_masks(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Iterator[None]:
    """Switch the time masking of sounds off for a while, with a warning, where a span is longer than the inputs."""
    config: Any = model.config
    probability, length = getattr(config, "mask_time_prob", 0.0), getattr(config, "mask_time_length", 0)
    if not probability or not getattr(config, "apply_spec_augment", True):
        yield
        return
    n_frames = _count_frames(model, inputs[model.main_input_name])
    if length > n_frames:
        logger.warning(
            "Time masking is off: the spans of %d frames (mask_time_length) do not fit into the %d of a clip of "
            "--max_seconds",
            *(length, n_frames),
        )
        config.mask_time_prob = 0.0
    try:
        yield
    finally:
        config.mask_time_prob = probability  # as it is saved


def _count_frames(model: PreTrainedModel, values: torch.Tensor) -> int:
    """Count the frames that a model masks in inputs (B, T), (B, T, bins) or, of Whisper, (B, bins, T)."""
    if values.ndim == 3:
        return values.shape[2 if model.config.model_type == "whisper" else 1]
    base: Any = model.base_model
    settings = {"add_adapter": False} if getattr(model.config, "add_adapter", False) else {}  # adapters come later
    return int(base._get_feat_extract_output_lengths(values.shape[1], **settings))


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute accuracy and macro F1."""
    answers = np.argmax(prediction.predictions, axis=-1)
    return {
        "accuracy": float(accuracy_score(prediction.label_ids, answers)),
        "f1": float(f1_score(prediction.label_ids, answers, average="macro")),
    }


def find_length_bounds(extractor: Any) -> tuple[int, int | None]:
    """Find the samples of the shortest clip that a feature extractor takes, and of the longest that it does not cut.

    The second is None where there is no such length.
    """
    name = extractor.model_input_names[0]
    if not makes_spectrograms(extractor, name):
        return 1, None
    inputs = SpectrogramInputs(extractor, name)
    return inputs.receptive_field, inputs.longest


def check_max_seconds(max_seconds: float | None, sampling_rate: int, longest: int | None) -> None:
    """Refuse a length that is longer than what a model sees; arguments as for `choose_length`.

    Raises:
        ValueError: naming both.
    """
    if max_seconds is not None and longest is not None and round(max_seconds * sampling_rate) > longest:
        raise ValueError(
            f"--max_seconds {max_seconds} is longer than the {_show_seconds(longest, sampling_rate)} s that the model "
            "sees: give at most these, or leave it out"
        )


def choose_length(
    lengths: Sequence[int], sampling_rate: int, max_seconds: float | None, longest: int | None = None
) -> int:
    """Choose the length that recordings are cut or padded to, in samples; tells in a warning how many it cuts.

    Args:
        lengths: of the recordings, in samples.
        sampling_rate: samples per second (Hz).
        max_seconds: the length, if it was given; None takes that of the longest, at most 10 seconds.
        longest: samples of the longest clip that the model sees as a whole; None if any length will do.
    """
    if max_seconds is not None:
        return round(max_seconds * sampling_rate)
    limit = DEFAULT_MAX_SECONDS * sampling_rate
    sees = "" if longest is None else f"{_show_seconds(longest, sampling_rate)} s"
    if longest is not None and longest <= limit:
        limit = longest
        note = (
            f"are longer than the {sees} that the model sees, and only their beginnings count: cut them into shorter "
            "clips, or take a model that sees more"
        )
    else:
        note = f"are cut to their first {DEFAULT_MAX_SECONDS} seconds: --max_seconds takes more of them"
        note += f", up to {sees}" if sees else ""
    n_longer = sum(length > limit for length in lengths)
    if n_longer:
        logger.warning("%d of %d recordings %s", n_longer, len(lengths), note)
    return min(max(lengths), limit)


def _show_seconds(n_samples: int, sampling_rate: int) -> str:
    """Write samples as seconds, rounded down so that they are not too many again."""
    return f"{n_samples * 1000 // sampling_rate / 1000:g}"


def extract_sounds(
    extractor: Any, waveforms: list[np.ndarray], sampling_rate: int, max_samples: int
) -> dict[str, torch.Tensor]:
    """Make a model's inputs of waveforms, cut or padded to one length, by any feature extractor.

    Inputs that are waveforms come with their attention mask, whatever the extractor does by itself.

    Args:
        extractor: of waveforms or of spectrograms.
        waveforms: float32 of shape (T,) each.
        sampling_rate: samples per second (Hz).
        max_samples: the length.
    """
    if not makes_spectrograms(extractor, extractor.model_input_names[0]):
        return extractor(
            waveforms,
            sampling_rate=sampling_rate,
            padding="max_length",
            max_length=max_samples,
            truncation=True,
            return_attention_mask=True,  # else the mean over frames would take in the padding
            return_tensors="pt",
        )
    # Lengths are in frames there, so a clip of the full length stretches the others.
    clips = [waveform[:max_samples] for waveform in waveforms] + [np.ones(max_samples, np.float32)]
    inputs = extractor(clips, sampling_rate=sampling_rate, return_tensors="pt")
    return {name: values[:-1] for name, values in inputs.items()}


def show_first_answer(answers: list[dict[str, Any]], truth: str, call: str) -> None:
    """Print a pipeline's answers for the first test sample."""
    listed = ", ".join(f"{answer['label']} {answer['score']:.2f}" for answer in answers)
    print(f"{call}: {listed} (it is {truth})")


def label_tensor(labels: list[int]) -> torch.Tensor:
    """Convert classes to the type that models need."""
    return torch.tensor(labels, dtype=torch.int64)
