"""Model card of a trained backbone, with its plot, and the templates of cards."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import hf_plr
from hf_plr.hub.markdown import as_one_line, escape_markdown
from hf_plr.hub.people_card import describe_folder
from hf_plr.hub.training_log import tabulate_log
from hf_plr.report.file_names import PLOT_FILE
from hf_plr.report.summary import RunSummary
from hf_plr.utils.files import replacing
from hf_plr.utils.shipped_files import find_shipped
from hf_plr.utils.versions import find_versions


def find_template(name: str) -> Path:
    """Find a card template, in the installed package or in a checkout."""
    return find_shipped("model_cards") / name


AGREEMENT, NOISE_SHARE = "plr/agreement_ari", "plr/noise_share"


def plot_clusters(path: str | os.PathLike[str], sizes: np.ndarray, stages: list[dict[str, float]], noun: str) -> None:
    """Plot the sizes of the last clusters, and the agreement of labels from stage to stage.

    Args:
        path: a .png file, written atomically.
        sizes: members per cluster, shape (K,).
        stages: logged metrics of every stage.
        noun: name of the members, in the plural.
    """
    from matplotlib.figure import Figure  # imported here: it takes as long as a short command

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(np.arange(len(sizes)), np.sort(sizes)[::-1], width=1.0)
    left.set(xlabel="cluster, largest first", ylabel=noun, title="Sizes of the last clusters")
    for name, label in ((AGREEMENT, "agreement with the stage before (ARI)"), (NOISE_SHARE, "fraction in no cluster")):
        points = [(entry["epoch"], entry[name]) for entry in stages if name in entry]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=label)
    right.set(xlabel="epoch", ylim=(-0.02, 1.02), title="How the labels settled")
    if right.lines:
        right.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


TAGS = ("pseudo-label-refinement", "self-supervised", "clustering", "hf-plr")


def write_model_card(
    summary: RunSummary,
    model_name: str | None = None,
    tags: Sequence[str] | str = (),
    dataset: str | None = None,
    license: str | None = None,
    finetuned_from: str | None = None,
    language: Sequence[str] | str | None = None,
) -> None:
    """Write `README.md` into the run's output directory.

    Args:
        summary: the run.
        model_name: name of the model; by default the Hub id or the name of the output directory.
        tags: further tags.
        dataset: training data, a Hub id or a name.
        license: licence of the weights, as the Hub writes it.
        finetuned_from: Hub id of the starting weights; by default the source of the model, unless it is a folder.
        language: language of the samples, such as "de", or several.
    """
    args, out = summary.args, Path(str(summary.args.output_dir))
    name = model_name or args.hub_model_id or os.path.basename(os.path.abspath(out))  # out may be "."
    start = finetuned_from or summary.start
    base_model = start if start and _is_hub_id(start) else None
    card_data = ModelCardData(
        language=[language] if isinstance(language, str) else None if language is None else list(language),
        library_name="transformers",
        pipeline_tag=summary.modality.pipeline_tag,
        tags=sorted({*TAGS, *([tags] if isinstance(tags, str) else tags)}),
        base_model=base_model,
        datasets=[dataset] if dataset and "/" in dataset and _is_hub_id(dataset) else None,
        license=license,
        model_name=name,
        eval_results=_list_results(summary, dataset),
    )
    out.mkdir(parents=True, exist_ok=True)
    if len(summary.cluster_sizes):
        plot_clusters(out / PLOT_FILE, summary.cluster_sizes, summary.stages, summary.cluster_members)
    lineage, people = describe_folder(out, summary.modality.plural)
    header, *log_rows = tabulate_log(summary.log) or [()]
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
        weights_epoch=None if summary.weights_epoch is None else f"{summary.weights_epoch:g}",
        best_metric=escape_markdown(str(args.metric_for_best_model)),
        processes=summary.processes,
        given_labels=escape_markdown(getattr(args, "labels", None) or ""),
        is_refined=args.refinement != "none",
        last_labels=escape_markdown(summary.last_labels),
        lineage=lineage,
        people=people,
        clusters=summary.cluster_facts(),
        plot=PLOT_FILE if len(summary.cluster_sizes) else None,
        label_files=summary.label_files,
        phases=[escape_markdown(phase) for phase in summary.scores],
        scores=summary.score_rows(with_intervals=True),
        scored_on_test=summary.scored_on_test,
        has_intervals=any(summary.intervals.values()),
        source=escape_markdown(summary.source),
        adapters=escape_markdown(summary.adapters),
        snippet=summary.modality.usage_snippet(name),
        usage_notes=summary.modality.usage_notes,
        classifier=summary.modality.classifier,
        log_header=header,
        log_rows=log_rows,
        n_stages=len(summary.stages),
        versions=list(find_versions().items()),
        settings=[(name, escape_markdown(value)) for name, value in summary.changed_settings()],
    )
    card.save(out / "README.md")


def as_card_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments of `Trainer.create_model_card` into those of `write_model_card`.

    Args:
        given: arguments of either; a single one of `dataset_tags` is taken for `dataset`.

    Raises:
        TypeError: naming those that a card of ours does not take.
    """
    card = {name: value for name, value in given.items() if value is not None}
    tags = card.get("dataset_tags", ())
    tags = [tags] if isinstance(tags, str) else list(tags)
    if len(tags) == 1:
        del card["dataset_tags"]
        card.setdefault("dataset", tags[0])
    if "dataset" in card and not isinstance(card["dataset"], (str, os.PathLike)):
        raise TypeError(f"dataset={card['dataset']!r}: the model card names a single data set, as a text")
    known = list(inspect.signature(write_model_card).parameters)[1:]
    refused = [name for name in card if name not in known]
    if refused:
        raise TypeError(f"the model card does not take {', '.join(refused)}: it takes {', '.join(known)}")
    return card


def _list_results(summary: RunSummary, dataset: str | None) -> list[EvalResult] | None:
    """List the last scores for the Hub's model-index, with the data that they come from; None without scores.

    A data set that is not on the Hub has the type "local".
    """
    if not summary.scores:
        return None
    phase, scores = list(summary.scores.items())[-1]
    on_hub = dataset is not None and _is_hub_id(dataset)
    return [
        EvalResult(
            task_type=summary.modality.pipeline_tag,
            dataset_type=dataset if on_hub and dataset else "local",
            dataset_name=as_one_line(Path(dataset).name if dataset else "unnamed"),
            dataset_split="test" if summary.scored_on_test else "train",
            metric_type=key,
            metric_name=f"{title} ({as_one_line(phase)} training, {summary.scored_on})",
            metric_value=round(scores[key], 4),
        )
        for key, title in summary.score_titles.items()
        if key in scores
    ]


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.exists(name)
