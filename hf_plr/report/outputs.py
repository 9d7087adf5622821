"""Files of a run beside the backbone, and its summary in the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.data.content_digest import format_digests
from hf_plr.evaluation.intervals import Interval
from hf_plr.pseudo_labels.label_files import DIGEST_COLUMN, level_column
from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE as PSEUDO_LABELS_FILE
from hf_plr.refinement.hierarchy import Level
from hf_plr.report.file_names import METRICS_FILE as METRICS_FILE
from hf_plr.report.file_names import TRAINED_EPOCHS
from hf_plr.report.html.report_file import PAGE_FILE, write_text
from hf_plr.report.summary import RunSummary
from hf_plr.utils.progress import describe_time
from hf_plr.utils.versions import find_version

WRITTEN_ROWS = 1 << 20  # that are in memory at once
INTERVALS = "95% intervals: bootstrap over the samples that were tested; the trained weights stay the same."
VERSIONED = ("hf-plr", "transformers", "torch", "datasets", "accelerate", "scikit-learn", "numpy")


def write_pseudo_labels(
    path: str | os.PathLike[str],
    rows: np.ndarray,
    columns: dict[str, np.ndarray],
    files: list[str] | None = None,
    segments: np.ndarray | None = None,
    digests: np.ndarray | None = None,
    levels: Mapping[int, Level] | None = None,
) -> None:
    """Write one row per sample.

    The columns are index (row of the data set), file, label, previous_label (-1 = noise), confidence, digest, and a
    level_N for each level. The file is written atomically.

    Args:
        path: path of the new file.
        rows: index per sample, (N,).
        columns: label, previous_label and confidence per sample, each (N,), such as memory-mapped ones.
        files: file per sample, (N,); None leaves the column out.
        segments: start and end in seconds per sample, (N, 2), for the columns start and end; None leaves them out.
        digests: digest of each sample's content, uint64 (N,), written as 16 hexadecimal digits; None leaves them out.
        levels: levels of the tree of the clusters, by their number of clusters N.
    """
    keys = (rows,) if segments is None else (segments[:, 0], rows)  # the last one counts most
    order = np.lexsort(keys)  # sounds are stored by length
    writer, temporary = None, f"{os.fspath(path)}.tmp"
    try:
        for start in range(0, max(len(order), 1), WRITTEN_ROWS):
            part = order[start : start + WRITTEN_ROWS]
            frame = pd.DataFrame(
                {
                    "index": rows[part],
                    **({} if files is None else {"file": [files[position] for position in part.tolist()]}),
                    **({} if segments is None else {"start": segments[part, 0], "end": segments[part, 1]}),
                    "label": columns["label"][part],
                    "previous_label": columns["previous_label"][part],
                    "confidence": columns["confidence"][part].astype(np.float32),
                    **({} if digests is None else {DIGEST_COLUMN: format_digests(digests[part])}),
                    **{
                        level_column(n): level.apply(columns["label"][part])
                        for n, level in sorted((levels or {}).items())
                    },
                }
            )
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = pq.ParquetWriter(temporary, table.schema) if writer is None else writer
            writer.write_table(table)
        assert writer is not None
        writer.close()
        os.replace(temporary, path)
    finally:
        if writer is not None:
            writer.close()  # also where it was closed already
        Path(temporary).unlink(missing_ok=True)


def write_metrics(path: str | os.PathLike[str], summary: RunSummary, seconds: float) -> None:
    """Write scores, the metrics of every epoch, settings and versions as JSON."""
    metrics = {
        "scores": summary.scores,
        "intervals": summary.intervals,
        "samples": summary.n_samples,
        "unreadable_rows": summary.unreadable_rows,
        "steps": summary.steps,
        TRAINED_EPOCHS: summary.epochs,
        "seconds": round(seconds, 1),
        "processes": summary.processes,
        "epochs": summary.stages,
        "epoch_scores": summary.epoch_scores,
        "settings": {name: str(value) for name, value in summary.changed_settings()},
        "versions": {name: number for name in VERSIONED if (number := find_version(name))},
    }
    write_text(Path(path), json.dumps(metrics, indent=2) + "\n")


def read_scores(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read the scores by phase from a file of `write_metrics`.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    with _name_file_in_errors(path):
        scores = json.loads(Path(path).read_bytes())["scores"]
        return {
            phase: {name: float(value) for name, value in phase_scores.items()}
            for phase, phase_scores in scores.items()
        }


def read_intervals(path: str | os.PathLike[str]) -> dict[str, dict[str, Interval]]:
    """Read the intervals of scores by phase from a file of `write_metrics`; empty in files of older releases.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    with _name_file_in_errors(path):
        intervals = json.loads(Path(path).read_bytes()).get("intervals", {})
        return {
            phase: {name: (float(low), float(high)) for name, (low, high) in phase_scores.items()}
            for phase, phase_scores in intervals.items()
        }


@contextlib.contextmanager
def _name_file_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as the metrics of a run: {error}") from error


def format_summary(summary: RunSummary, seconds: float, next_command: tuple[str, str]) -> str:
    """Format the summary of a run for the terminal: scores, results, next steps.

    Args:
        summary: the run.
        seconds: duration of the run.
        next_command: a command to try next, and its description.
    """
    out = summary.args.output_dir
    modality = summary.modality
    lines = ["", f"Trained on {summary.n_samples:,} {modality.plural} without labels in {describe_time(seconds)}."]
    if summary.source:
        lines += [f"Before that, the backbone was trained on {summary.source}."]
    if summary.adapters:
        lines += [f"{summary.adapters}."]
    rows = summary.score_rows()
    if rows:
        bounds = summary.last_intervals()
        heading = f"{'':<28}" + "".join(f"{phase:>8}" for phase in summary.scores)
        heading += f"  95% of {list(summary.scores)[-1]}" if bounds else ""
        lines += ["", heading, "-" * len(heading)]
        for name, *values in rows:
            row = f"{name:<28}" + "".join(f"{value:>8}" for value in values)
            lines += [f"{row}  {bounds[name][0]:.3f} to {bounds[name][1]:.3f}" if name in bounds else row]
        lines += [f"True labels were used for these scores only ({summary.scored_on})."]
        lines += [INTERVALS] if bounds else []
    else:
        lines += ["No label column was chosen, so the features were not scored."]
    if summary.last_labels:
        lines += ["", f"Last labels: {summary.last_labels}."]
    if summary.continued:
        lines += [summary.continued]
    if summary.unreadable_rows:
        lines += [f"{len(summary.unreadable_rows)} {modality.row_plural} could not be read and were left out."]
    adapters = [("adapter/", "the adapters alone, for peft")] if summary.adapters else []
    classifier = f"{modality.classifier}.from_pretrained({out!r}, num_labels=...) to fine-tune a classifier"
    if modality.classifier is None:
        features = f"hf-plr embed --model {shlex.quote(str(out))} --dataset DATA --output features.parquet"
        classifier = f"{features}   features, for a classifier"
    report = [] if summary.args.report == "no" else [(PAGE_FILE, "clusters, samples and curves, to look at")]
    files = [*adapters, *summary.label_files, *report]
    if any(Path(str(out)).glob("checkpoint-*")):
        files += [("checkpoint-*", "what the run resumes from; they may be deleted")]
    lines += [
        "",
        f"Results in {out}:",
        f"  model.safetensors, config.json, preprocessor_config.json   the backbone and its {modality.processor_name}",
        *(f"  {name:<57}  {description}" for name, description in files),
        "  metrics.json, README.md                                    all metrics, and a model card",
        "",
        "Next:",
        f"  from transformers import AutoModel; model = AutoModel.from_pretrained({out!r})",
        f"  {classifier}",
        *(f"  {command}   {purpose}" for command, purpose in (*summary.next_commands, next_command)),
        "",
    ]
    return "\n".join(lines)
