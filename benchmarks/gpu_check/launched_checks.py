"""Recipes as a user launches them: bfloat16, resuming, compiled models, a run with all defaults."""

from __future__ import annotations

import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sklearn.metrics import adjusted_rand_score

from benchmarks.gpu_check.data import count_vit_operations, make_pictures, save_parquet, save_vit
from benchmarks.gpu_check.findings import Bench, Findings
from benchmarks.gpu_check.launching import (
    concurrent_launches,
    differing_share,
    largest_difference,
    launch_recipe,
    read_labels,
    read_metrics,
    same_bytes,
    share,
)
from benchmarks.gpu_check.machine import product_rate
from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE

WEIGHTS_FILE = "model.safetensors"
RECOMPILATION = "Recompiling function"  # in what torch logs
TIMED_STEPS = 20  # the last ones, by when everything is compiled
# Of 203 digits two processes extract one batch, which is the first one's. SGD, so that rounding stays rounding.
REFERENCE = ["--max_samples", 203, "--num_clusters", 12, "--num_train_epochs", 2, "--optim", "sgd"]
REFERENCE += ["--learning_rate", 0.01, "--feature_dtype", "float32"]
BATCH = "--per_device_train_batch_size"
UNSAVED = ["--save_strategy", "no", "--report", "no"]


def reference_run(bench: Bench) -> Path:
    """What one process leaves of two epochs on some digits in float32; run once."""

    def run() -> Path:
        out = bench.new_folder("reference") / "out"
        launch_recipe(bench, "vit_plr", out, *REFERENCE, BATCH, 32, "--bf16", "false", *UNSAVED)
        return out

    return Path(bench.once("reference", run))


def check_bf16(bench: Bench, findings: Findings) -> None:
    """Training on digits in bfloat16: the accuracy of 5 neighbours, and the labels of the first stage."""
    short = bench.new_folder("bf16") / "short"
    launch_recipe(bench, "vit_plr", short, *REFERENCE, BATCH, 32, "--bf16", "true", *UNSAVED)
    first_labels = [read_labels(out)["previous_label"] for out in (short, reference_run(bench))]
    findings.report("share_of_the_first_labels_that_differ", share(*(labels.to_numpy() for labels in first_labels)))
    findings.report("ari_of_the_first_labels", float(adjusted_rand_score(*first_labels)))
    if bench.is_quick:
        accuracies = [knn_accuracy(out) for out in (short, reference_run(bench))]
        findings.report("knn_accuracy", accuracies[0])
        findings.expect("knn_accuracy_less_than_fp32", accuracies[1] - accuracies[0], at_most=0.05)
        return
    for precision in ("bf16", "fp32"):
        out = short.with_name(precision)
        settings = ["--num_train_epochs", 15, "--bf16", str(precision == "bf16").lower(), *UNSAVED]
        launch_recipe(bench, "vit_plr", out, *settings)
        least = 0.95 if precision == "bf16" else None
        findings.expect(f"knn_accuracy_{precision}", knn_accuracy(out), at_least=least)


def knn_accuracy(out: Path) -> float:
    """Accuracy of 5 neighbours after training."""
    return float(read_metrics(out)["scores"]["after"]["knn_accuracy"])


# ---- resuming ------------------------------------------------------------------------------------------------------


def check_resume(bench: Bench, findings: Findings) -> None:
    """A run killed in mid-epoch and resumed, with and without `exact_resume`: the bits of one that was not."""
    ways = list(itertools.product((True, False), ("bf16", "fp32"))) if bench.is_gpu else [(True, "fp32")]
    ways = bench.size(ways, ways[:1])
    with ThreadPoolExecutor(concurrent_launches(bench)) as pool:
        results = list(pool.map(lambda way: resume(bench, *way), ways))
    for (is_exact, precision), result in zip(ways, results, strict=True):
        name = f"{precision}_{'exact' if is_exact else 'as_it_is'}"
        findings.report(f"{name}_largest_difference", result["largest_difference"])
        findings.report(f"{name}_share_of_labels_that_differ", result["labels"])
        if is_exact:
            findings.expect(f"{name}_same_bits", float(result["same_bits"]), at_least=1)
        else:
            findings.report(f"{name}_same_bits", float(result["same_bits"]))


def resume(bench: Bench, is_exact: bool, precision: str) -> dict[str, Any]:
    """Run a training whole, and killed and resumed; returns how their results differ."""
    folder = bench.new_folder("resume")
    settings = [*REFERENCE, BATCH, 32, "--bf16", str(precision == "bf16").lower()]
    kill_at, every = 10, 4
    if bench.is_gpu:  # all digits, 15 steps an epoch
        settings = ["--num_train_epochs", 4, "--bf16", str(precision == "bf16").lower()]
        kill_at, every = 37, 10
    settings += ["--exact_resume", str(is_exact).lower()]
    saved = ["--save_strategy", "steps", "--save_steps", every, "--report", "no"]
    killed = folder / "killed"
    launch_recipe(bench, "vit_plr", killed, *settings, *saved, watch={"kill_at": kill_at}, fails=True)
    launch_recipe(bench, "vit_plr", killed, *settings, *saved, "--resume_from_checkpoint")
    if bench.is_gpu:
        whole = folder / "whole"
        launch_recipe(bench, "vit_plr", whole, *settings, *saved)
    else:
        whole = reference_run(bench)
    return {
        "same_bits": same_bytes(whole, killed, PSEUDO_LABELS_FILE, WEIGHTS_FILE),
        "largest_difference": largest_difference(whole, killed),
        "labels": differing_share(whole, killed),
    }


# ---- compiled models -----------------------------------------------------------------------------------------------


def check_compile(bench: Bench, findings: Findings) -> None:
    """`--torch_compile true` for a ViT and a HuBERT: recompilations, speed against eager, labels of the first stage."""
    logged = {"TORCH_LOGS": "recompiles"}
    if not bench.is_gpu:
        out = bench.new_folder("compile") / "out"
        compiled = ["--torch_compile", "true", "--torch_compile_backend", "eager", "--bf16", "false"]
        notes = out.with_name("notes.json")
        settings = [*REFERENCE, BATCH, 32, *compiled, *UNSAVED]
        watch = {"notes": str(notes)}
        output = launch_recipe(bench, "vit_plr", out, *settings, watch=watch, variables=logged).output
        findings.expect("vit_graphs", json.loads(notes.read_text())["graphs"], at_least=1)
        findings.expect("vit_recompilations", output.count(RECOMPILATION), at_most=8)
        differing = differing_share(out, reference_run(bench), "previous_label")
        findings.expect("vit_share_of_the_first_labels_that_differ", differing, at_most=0)
        findings.note("a dry run compiles a small ViT without generating code, and no HuBERT")
        return
    for recipe, settings in {"vit_plr": vit_settings(bench), "hubert_plr": ["--num_train_epochs", 1]}.items():
        name = recipe.removesuffix("_plr")
        column = "previous_label" if name == "vit" else "label"  # of two epochs, of one
        folder = bench.new_folder("compile")
        rates = {}
        for way in ("eager", "compiled"):
            notes = folder / f"{way}.json"
            compiled = ["--torch_compile", "true"] if way == "compiled" else []
            arguments = [*settings, *compiled, *UNSAVED]
            watch = {"notes": str(notes)}
            ended = launch_recipe(bench, recipe, folder / way, *arguments, watch=watch, variables=logged, timeout=400)
            rates[way] = steady_rate(notes)
            if compiled:
                findings.expect(f"{name}_graphs", json.loads(notes.read_text())["graphs"], at_least=1)
                findings.expect(f"{name}_recompilations", ended.output.count(RECOMPILATION), at_most=8)
        differing = differing_share(folder / "compiled", folder / "eager", column)
        findings.expect(f"{name}_share_of_the_first_labels_that_differ", differing, at_most=0)
        least = 1.0 if name == "vit" else None
        ratio = rates["compiled"] / rates["eager"]
        findings.expect(f"{name}_compiled_over_eager", ratio, at_least=least, unless=bench.no_rates)


def vit_settings(bench: Bench) -> list[object]:
    """Arguments for two epochs of ViT-S on drawn pictures."""

    def save() -> list[object]:
        folder = bench.new_folder("pictures")
        data = save_parquet(make_pictures(bench.size(4096, 1024), 512, 224, 224, "BMP"), folder / "data")
        model = save_vit(folder / "model", "small", 224, 16)
        return ["--dataset_name", data, "--model_name_or_path", model, "--num_train_epochs", 2]

    return list(bench.once("vit_settings", save))


def steady_rate(notes: Path) -> float:
    """Steps a second of the last ones of a watched run."""
    steps = json.loads(notes.read_text())["steps"]
    n = min(TIMED_STEPS, len(steps) // 2)
    return float(n / (steps[-1] - steps[-1 - n]))


# ---- end to end ----------------------------------------------------------------------------------------------------


def check_end_to_end(bench: Bench, findings: Findings) -> None:
    """JPEGs, ViT-S, two epochs, all defaults: seconds by phase, and the share of the card's products."""
    folder = bench.new_folder("end")
    n_images, n_distinct, *size = bench.size((20_000, 2000, 500, 375), (4096, 512, 500, 375))
    name, image_size, patch_size = "small", 224, 16
    if not bench.is_gpu:
        n_images, n_distinct, *size = 160, 80, 96, 72
        name, image_size, patch_size = "tiny", 32, 8
    data = save_parquet(make_pictures(n_images, n_distinct, *size), folder / "data")
    model = save_vit(folder / "model", name, image_size, patch_size)
    notes = folder / "notes.json"
    arguments = ["--dataset_name", data, "--model_name_or_path", model, "--num_train_epochs", 2]
    ended = launch_recipe(
        bench,
        "vit_plr",
        folder / "out",
        *arguments,
        watch={"notes": str(notes)},
        variables={"HF_DATASETS_CACHE": str(folder / "cache")},
        timeout=500,
    )
    seconds = json.loads(notes.read_text())
    stages = read_metrics(folder / "out")["epochs"]
    seconds["seed"] = max(0.0, stages[0]["plr/seconds_cluster"] - stages[-1]["plr/seconds_cluster"])
    for phase in ("read", "score", "seed", "stage", "train"):
        findings.report(f"{phase}_seconds", seconds[phase])
    findings.report("seconds", ended.seconds)
    lost = sum(seconds[phase] for phase in ("read", "score", "seed"))
    findings.expect("share_of_reading_seeding_scoring", lost / ended.seconds, at_most=0.1, unless=bench.no_rates)
    passes = 2 * (3 + 1) + 2  # steps and stages of two epochs, and two scorings
    operations = passes * n_images * count_vit_operations(name, image_size, patch_size)
    findings.report("share_of_products", operations / 1e12 / ended.seconds / product_rate(bench, "bf16"))
    findings.expect("images_with_a_label", int((read_labels(folder / "out")["label"] >= 0).sum()), at_least=n_images)
    shutil.rmtree(folder / "cache", ignore_errors=True)
