"""How the run of a backbone computed its features."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from hf_plr.utils.hub_files import download_if_there

logger = logging.getLogger(__name__)

FEATURE_SETTINGS: dict[str, type] = {"pooling": str, "layer": int, "max_seconds": float}
SEGMENT_SETTINGS: dict[str, type] = {"segment_seconds": float, "segment_overlap": float}


def read_run_settings(model: str) -> dict[str, Any]:
    """Read how a backbone's run computed its features: from `metrics.json`, or from the state in a checkpoint.

    Empty for a backbone without either, also beside a `metrics.json` that is not of a run, and with a warning where the
    Hub cannot be reached to tell: a plain backbone that `transformers` has cached shall go on offline.

    Raises:
        ValueError: if a file is damaged, naming it.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    from hf_plr.report.file_names import METRICS_FILE
    from hf_plr.trainer.checkpoints.run_state import STATE_FILE, load_state

    folder = os.path.dirname(os.path.normpath(model)) if is_adapter_of_run(model) else model
    path = os.path.join(folder, METRICS_FILE)
    if not os.path.isdir(model):
        try:
            downloaded = download_if_there(model, METRICS_FILE)
        except (HFValidationError, RepositoryNotFoundError):
            return {}  # loading the backbone says what is wrong
        except ValueError as error:
            logger.warning("%s: features are not those of a run that has its own pooling, layer or segments.", error)
            return {}
        if downloaded is None:
            return {}
        path = downloaded
    try:
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            settings = content.get("settings") if isinstance(content, dict) else None
            if not isinstance(settings, dict):
                return {}
        elif os.path.isfile(path := os.path.join(folder, STATE_FILE)):
            settings = {name: value for name, value in load_state(folder)[1].items() if value is not None}
        else:
            return {}
        kinds = FEATURE_SETTINGS | SEGMENT_SETTINGS
        return {name: kind(settings[name]) for name, kind in kinds.items() if name in settings}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}), which tells the run's pooling, layer and segments: restore it, or "
            "remove it to do without them"
        ) from error


def is_adapter_of_run(model: str) -> bool:
    """True for the folder of adapters in the output folder of a run."""
    from hf_plr.models.adapter_files import ADAPTER_FOLDER, is_adapter_folder

    return os.path.basename(os.path.normpath(model)) == ADAPTER_FOLDER and is_adapter_folder(model)
