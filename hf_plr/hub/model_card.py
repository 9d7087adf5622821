"""The model card of a trained backbone, its plot, and where the templates of cards are."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from matplotlib.figure import Figure

import hf_plr
from hf_plr.report.summary import RunSummary
from hf_plr.utils.shipped_files import find_shipped


def find_template(name: str) -> Path:
    """Path of a card template, in the installed package or in a checkout."""
    return find_shipped("model_cards") / name


PLOT_FILE = "clusters.png"
AGREEMENT, NOISE_SHARE = "plr/agreement_ari", "plr/noise_share"


def plot_clusters(path: str | os.PathLike[str], sizes: np.ndarray, stages: list[dict[str, float]], noun: str) -> None:
    """Draw how large the last clusters are, and how the labels settled from stage to stage.

    Args:
        path: a .png file, which is complete or not there at all.
        sizes: members of each cluster, shape (K,).
        stages: the logged figures of every stage.
        noun: what a member is called, in the plural.
    """
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(np.arange(len(sizes)), np.sort(sizes)[::-1], width=1.0)
    left.set(xlabel="cluster, largest first", ylabel=noun, title="Sizes of the last clusters")
    for name, label in ((AGREEMENT, "agreement with the stage before (ARI)"), (NOISE_SHARE, "share in no cluster")):
        points = [(entry["epoch"], entry[name]) for entry in stages if name in entry]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=label)
    right.set(xlabel="epoch", ylim=(-0.02, 1.02), title="How the labels settled")
    if right.lines:
        right.legend()
    temporary = Path(f"{os.fspath(path)}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)


EVIDENCE = "evidence.md"
LONGEST_TEXT = 200
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # a "_" inside a word is only that
TAGS = ("pseudo-label-refinement", "self-supervised", "clustering", "hf-plr")


def write_model_card(
    summary: RunSummary,
    model_name: str | None = None,
    tags: Sequence[str] | str = (),
    dataset: str | None = None,
    license: str | None = None,
    finetuned_from: str | None = None,
) -> None:
    """Write `README.md` into the run's output directory.

    Args:
        summary: the run.
        model_name: name of the model; by default the Hub id or the name of the output directory.
        tags: further tags.
        dataset: what was trained on, a Hub id or a name.
        license: licence of the weights, as the Hub writes it.
        finetuned_from: Hub id of the starting weights; by default where the model was loaded from, if not a folder.
    """
    args, out = summary.args, Path(str(summary.args.output_dir))
    name = model_name or args.hub_model_id or out.name
    start = finetuned_from or summary.start
    base_model = start if start and _is_hub_id(start) else None
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=summary.modality.pipeline_tag,
        tags=sorted({*TAGS, *([tags] if isinstance(tags, str) else tags)}),
        base_model=base_model,
        datasets=[dataset] if dataset and "/" in dataset and _is_hub_id(dataset) else None,
        license=license,
        model_name=name,
        eval_results=_results(summary, dataset),
    )
    out.mkdir(parents=True, exist_ok=True)
    if len(summary.cluster_sizes):
        plot_clusters(out / PLOT_FILE, summary.cluster_sizes, summary.stages, summary.cluster_members)
    card = ModelCard.from_template(
        card_data,
        template_path=str(find_template(summary.modality.card_template)),
        model_name=escape_markdown(name),
        architecture=escape_markdown(summary.architecture),
        hf_plr_version=hf_plr.__version__,
        start=escape_markdown(base_model) if base_model else ("a local checkpoint" if start else "random weights"),
        n_samples=f"{summary.n_samples:,}",
        dataset=escape_markdown(Path(dataset).name if dataset and os.path.exists(dataset) else dataset or ""),
        epochs=f"{summary.epochs:g}",
        steps=f"{summary.steps:,}",
        last_labels=summary.last_labels,
        clusters=summary.cluster_facts(),
        plot=PLOT_FILE if len(summary.cluster_sizes) else None,
        label_files=summary.label_files,
        moments=[escape_markdown(moment) for moment in summary.scores],
        scores=summary.score_rows(with_intervals=True),
        has_intervals=any(summary.intervals.values()),
        source=escape_markdown(summary.source),
        snippet=summary.modality.usage_snippet(name),
        evidence=find_template(EVIDENCE).read_text(encoding="utf-8").strip(),
        settings=[(name, escape_markdown(value)) for name, value in summary.changed_settings()],
    )
    card.save(out / "README.md")


def _results(summary: RunSummary, dataset: str | None) -> list[EvalResult] | None:
    """The last scores as the Hub's model-index has them, with the data that they come from; None without any.

    Of a data set that is not on the Hub the type is "local".
    """
    if not summary.scores:
        return None
    moment, found = list(summary.scores.items())[-1]
    on_hub = dataset is not None and _is_hub_id(dataset)
    return [
        EvalResult(
            task_type=summary.modality.pipeline_tag,
            dataset_type=dataset if on_hub and dataset else "local",
            dataset_name=escape_markdown(Path(dataset).name if dataset else "unnamed"),
            dataset_split="test" if summary.scored_on_test else "train",
            metric_type=key,
            metric_name=f"{title} ({escape_markdown(moment)} training, {summary.scored_on})",
            metric_value=round(found[key], 4),
        )
        for key, title in summary.score_titles().items()
        if key in found
    ]


def escape_markdown(value: object) -> str:
    """What shows a value in Markdown and does nothing else: one line of bounded length, without markup and HTML.

    Names of data sets, columns and models are others' text. An address in it may still become a link to itself.
    """
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(value).split()))
    line = line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return html.escape(MARKUP.sub(r"\\\g<0>", line), quote=False)


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.exists(name)
