"""Reports of output folders: from the data that a run wrote, or of an older run from its metrics and labels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE
from hf_plr.report.file_names import METRICS_FILE, PAGE_FILE
from hf_plr.report.html.curves import metric_curves
from hf_plr.report.html.folder_facts import collect_folder_facts
from hf_plr.report.html.render import render
from hf_plr.report.html.report_file import DATA_FILE, FORMAT, read_report
from hf_plr.report.html.run_facts import as_line, current_time, finite_scores
from hf_plr.report.html.sheets import Snapshot, size_table
from hf_plr.report.html.tree_facts import find_tree
from hf_plr.utils.files import write_text

NO_DATA = (
    f"This run left no {DATA_FILE}: there is no map, no sheet of samples and no flow between epochs, only its metrics "
    "and the sizes of its last clusters."
)


def report_of(folder: Path) -> dict[str, Any]:
    """Read the data of a run's report, with the scores of its `metrics.json`.

    The folder, names, history and tree, which may have changed since, are those of now.

    Args:
        folder: output folder of a run.

    Raises:
        ValueError: if the folder has no run in it, or a file is damaged; the message names it.
    """
    has_data, has_metrics = ((folder / name).is_file() for name in (DATA_FILE, METRICS_FILE))
    if not has_data and not has_metrics:
        raise ValueError(f"{folder} holds no run: neither {DATA_FILE} nor {METRICS_FILE}")
    metrics = _read_metrics(folder / METRICS_FILE) if has_metrics else {}
    if has_data:
        data = read_report(folder / DATA_FILE)
        data["scores"] = finite_scores(metrics["scores"]) if has_metrics else data["scores"]
        data["labels_id"] = data.get("labels_id") or data["title"]  # browsers keep marks by it
        data |= {"title": _title_of(folder), "run": data["run"] | {"output_dir": as_line(folder)}}
    else:
        data = _from_metrics(folder, metrics)
    return data | collect_folder_facts(folder) | {"tree": find_tree(folder, data)}


def render_again(folder: Path) -> Path | None:
    """Write the page of a run again, as after a change of names; None if the run has no `report.json` and so no page.

    Raises:
        ValueError: if a file is damaged, naming it.
        OSError: if the page cannot be written.
    """
    if not (folder / DATA_FILE).is_file():
        return None
    write_text(folder / PAGE_FILE, render(report_of(folder)))
    return folder / PAGE_FILE


def _title_of(folder: Path) -> str:
    return as_line(os.path.basename(os.path.abspath(folder)))


def _from_metrics(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    sizes = _read_sizes(folder / PSEUDO_LABELS_FILE)
    return {
        "format": FORMAT,
        "title": _title_of(folder),
        "run": {
            "noun": "sample",
            "plural": "samples",
            "members": "samples",
            "stage": "epoch",
            "finished": True,
            "samples": int(metrics.get("samples", 0)),
            "epochs": metrics.get("trained_epochs"),
            "steps": metrics.get("steps"),
            "written": current_time(),
            "output_dir": as_line(folder),
        },
        "facts": [],
        "scores": finite_scores(metrics["scores"]),
        "score_titles": {},
        "curves": metric_curves(metrics["epochs"]),
        "settings": [[as_line(name), as_line(value)] for name, value in metrics.get("settings", {}).items()],
        "versions": {as_line(name): as_line(value) for name, value in metrics.get("versions", {}).items()},
        "stages": [],
        "sizes": sizes,
        "sheets": {"random": [], "clusters": [], "typical": {}, "contact": {}, "of": sizes["of"]},
        "map": None,
        "samples": {},
        "media": {},
        "media_types": {},
        "media_wanted": 0,
        "note": NO_DATA,
    }


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_bytes())
        for name, kind in {"scores": dict, "epochs": list, "settings": dict, "versions": dict}.items():
            if not isinstance(metrics[name], kind):
                raise ValueError(f"{name!r} is not a {kind.__name__}")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as the metrics of a run: {error}") from error
    return {**metrics, "epochs": [entry for entry in metrics["epochs"] if isinstance(entry, dict)]}


def _read_sizes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"clusters": [], "of": 0, "noise": 0}
    try:
        frame = pd.read_parquet(path, columns=["label", "confidence"])
    except Exception as error:  # pyarrow raises errors of many kinds
        raise ValueError(f"{path} cannot be read as the labels of a run: {error}") from error
    return size_table(Snapshot(0, frame["label"].to_numpy(), confidence=frame["confidence"].to_numpy()))
