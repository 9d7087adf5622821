"""The modules of the evaluate library, loaded as from an installed package on a machine without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.paths import REPOSITORY

import hf_plr.evaluation
from hf_plr.evaluation import MODULES
from hf_plr.evaluation.clusters import CLUSTER_SCORES, score_clusters
from hf_plr.evaluation.neighbors import find_labeled_neighbors
from hf_plr.evaluation.neighbors_metric import WeightedKnnMetric
from hf_plr.evaluation.retrieval import score_retrieval

SCRIPT = """
import json, socket, sys
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import evaluate, hf_plr.evaluation as ours
given = json.loads(sys.stdin.read())
clusters = {name: given[name] for name in ("predictions", "references")}
found = {"at once": evaluate.combine([ours.path(name) for name in ours.MODULES[:7]]).compute(**clusters)}
combined = evaluate.combine([ours.load(name) for name in ours.MODULES[:7]])
for half in (slice(0, 11), slice(11, None)):
    combined.add_batch(**{name: values[half] for name, values in clusters.items()})
found["batches"] = combined.compute()
found["names"] = combined.evaluation_module_names
found["features"] = evaluate.combine([ours.path(name) for name in ours.MODULES[7:]]).compute(**given["features"])
found["module"] = ours.__file__
print(json.dumps(found))
"""


def test_modules_load_combine_and_take_batches_offline(tmp_path):
    shutil.copytree(REPOSITORY / "hf_plr", tmp_path / "site" / "hf_plr", ignore=shutil.ignore_patterns("__pycache__"))
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(-1, 4, 40), rng.integers(-1, 5, 40)
    features, classes, cameras = rng.normal(size=(40, 5)).round(3), rng.integers(0, 4, 40), rng.integers(0, 3, 40)
    asks = np.arange(40) % 3 == 0
    columns = {"predictions": features, "references": classes, "is_query": asks, "cameras": cameras}
    given = {
        "predictions": clusters.tolist(),
        "references": labels.tolist(),
        "features": {name: values.tolist() for name, values in columns.items()},
    }
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment = {**os.environ, **offline, "PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(given), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["module"].startswith(str(tmp_path / "site"))
    scores = score_clusters(clusters, labels)
    expected = {f"cluster_{name}": scores[name] for name in CLUSTER_SCORES if name != "coverage"}
    assert found["at once"] == pytest.approx(expected)
    assert found["batches"] == pytest.approx(expected)
    assert found["names"] == list(MODULES[:7]) == list(expected)
    features = features.astype(np.float32)
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    predicted = find_labeled_neighbors(unit[~asks], classes[~asks], unit[asks]).vote_by_similarity()
    assert found["features"].pop("weighted_knn_accuracy") == (predicted == classes[asks]).mean()
    expected = score_retrieval(
        features[asks], features[~asks], classes[asks], classes[~asks], cameras[asks], cameras[~asks]
    )
    assert found["features"] == pytest.approx(expected)


def test_there_is_a_file_for_every_module():
    folder = REPOSITORY / "hf_plr" / "evaluation" / "modules"
    assert {path.stem for path in folder.glob("*.py")} == {*MODULES, "__init__"}
    with pytest.raises(ValueError, match="name='purity' is unknown: use one of cluster_accuracy, "):
        hf_plr.evaluation.path("purity")


def test_unknown_classes_are_left_out_of_the_neighbours(tmp_path):
    metric = WeightedKnnMetric(cache_dir=str(tmp_path))
    features = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 1.0], [0.0, 1.0]]
    asks = [False, True, False, True, False]
    assert metric.compute(predictions=features, references=[0, 0, 1, -1, -1], is_query=asks) == {
        "weighted_knn_accuracy": 1.0
    }
    with pytest.raises(ValueError, match="2 queries and 0 samples of the gallery have a known class"):
        metric.compute(predictions=features, references=[-1, 0, -1, 1, -1], is_query=asks)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (np.nan, "features of 10 samples are NaN or infinite"),
        (1e30, "features of 10 samples are too large for float32"),
    ],
)
def test_features_without_directions_have_no_neighbours(factor, message, tmp_path):
    features = np.random.default_rng(0).normal(size=(10, 3)) * factor
    metric = WeightedKnnMetric(cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=f"{message}, the first is sample 0"):
        metric.compute(predictions=features, references=[0, 1] * 5, is_query=[True] * 2 + [False] * 8)


def test_fractions_are_no_clusters():
    metric = hf_plr.evaluation.load("cluster_accuracy")
    message = "{} must be integers, but {} is among them"
    with pytest.raises(ValueError, match=message.format("predictions", 0.2)):
        metric.compute(predictions=[0.2, 0.9, 1.1, 1.9], references=[0, 0, 1, 1])
    with pytest.raises(ValueError, match=message.format("references", "nan")):
        metric.add_batch(predictions=[0, 1], references=[0.0, np.nan])
    with pytest.raises(ValueError, match=message.format("predictions", 1.5)):
        metric.add(prediction=1.5, reference=1)
    metric.add(prediction=1, reference=0)
    assert metric.compute(predictions=torch.tensor([0.0, 1.0]), references=np.array([1, 0])) == {
        "cluster_accuracy": 1.0
    }
    combined = hf_plr.evaluation.load("cluster_ari")
    assert combined.compute(predictions=[0.0, 0.0, 1.0], references=[2, 2, 3]) == {"cluster_ari": 1.0}
