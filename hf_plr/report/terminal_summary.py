"""What a run tells in the terminal at its end: scores, files, next steps."""

from __future__ import annotations

import shlex
from pathlib import Path

from hf_plr.report.file_names import PAGE_FILE
from hf_plr.report.summary import RunSummary
from hf_plr.utils.progress import describe_time
from hf_plr.utils.words import count_noun

INTERVALS = "95% intervals: bootstrap over the samples that were tested; the trained weights stay the same."


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
        n, plural = len(summary.unreadable_rows), modality.row_plural
        unreadable = count_noun(n, plural.removesuffix("s"), plural)
        lines += [f"{unreadable} could not be read and {'was' if n == 1 else 'were'} left out."]
    adapters = [("adapter/", "the adapters alone, for peft")] if summary.adapters else []
    folder = shlex.quote(str(out))
    classifier = f"hf-plr embed --model {folder} --dataset DATA --output features.parquet   features, for a classifier"
    if modality.classifier is not None:
        finetune = f"hf-plr finetune {modality.recipe} --model_name_or_path {folder}"
        classifier = f"{finetune} --dataset_name LABELLED --output_dir classifier   a classifier"
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
