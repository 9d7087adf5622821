"""Stock classifiers of images on a backbone, also on the tower of a CLIP or SigLIP, which has none of its own."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_plr.models.auto_classes import find_owner
from hf_plr.models.loading import load_classifier_config


def load_image_classifier(name: str | os.PathLike[str], **settings: Any) -> PreTrainedModel:
    """Load a backbone into a stock classifier in float32, whose head has random weights unless the checkpoint has it.

    `AutoModelForImageClassification` takes most backbones as they are, but no tower for images alone, as training
    leaves it of a CLIP or SigLIP. Such a tower is put into the classifier of the whole model, which
    `AutoModelForImageClassification` loads once it is saved.

    A head for another number of classes is left out.

    Args:
        name: a Hub id or a folder.
        settings: of the configuration, such as num_labels, id2label and label2id.

    Raises:
        ValueError: if it is missing or damaged, or transformers has no classifier for it.
    """
    config = load_classifier_config(os.fspath(name), "AutoModelForImageClassification")
    owner = find_owner(config, "AutoModelForImageClassification")
    if owner is None:
        classifier: Any = AutoModelForImageClassification.from_pretrained(
            name, dtype=torch.float32, ignore_mismatched_sizes=True, **settings
        )
        return classifier
    whole = owner(vision_config=config.to_dict(), **settings)
    classifier = AutoModelForImageClassification.from_config(whole, dtype=torch.float32)
    tower = type(classifier.vision_model).from_pretrained(name, dtype=torch.float32)
    classifier.vision_model.load_state_dict(tower.state_dict())
    return classifier
