"""Sums, k-means and its seeding."""

from __future__ import annotations

import time

import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus

from benchmarks.gpu_check.data import draw_features
from benchmarks.gpu_check.findings import Bench, Findings
from benchmarks.gpu_check.launching import share
from benchmarks.gpu_check.machine import fp32_arithmetic, is_hopper, product_rate
from benchmarks.kmeans import ours, product_seconds
from hf_plr import KMeans
from hf_plr.clustering.exact_sums import ClusterSums

CPU = torch.device("cpu")


def check_exact_sums(bench: Bench, findings: Findings) -> None:
    """Sums by cluster in three orders, on the CPU and on the device: the same bits."""
    n, dimension, n_clusters = bench.size((200_000, 384, 1697), (20_000, 64, 100))
    features = draw_features(n, dimension, n_clusters, CPU)
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, n_clusters, n))
    orders = [torch.arange(n), torch.arange(n).flip(0), torch.from_numpy(np.random.default_rng(1).permutation(n))]
    sums = []
    for device in dict.fromkeys((CPU, bench.device)):
        for order in orders:
            found = ClusterSums(n_clusters, dimension, n, 1.0, device)
            found.add(features[order].to(device), labels[order].to(device))
            sums.append((found.sums.cpu(), found.counts.cpu()))
    different = sum(not all(torch.equal(*pair) for pair in zip(each, sums[0], strict=True)) for each in sums[1:])
    findings.report("ways", len(sums))
    findings.expect("ways_that_differ", different, at_most=0)
    members = labels >= 0
    plain = torch.zeros(n_clusters, dimension, dtype=torch.float64)
    plain.index_add_(0, labels[members], features[members].double())
    findings.expect("error_against_float64", float((sums[0][0] - plain).abs().max()), at_most=1e-6)


def check_kmeans_labels(bench: Bench, findings: Findings) -> None:
    """Labels of ten passes: those of the CPU, of one shard and of three, and with TF32 allowed."""
    n, dimension, n_clusters = bench.size((100_000, 384, 474), (10_000, 64, 60))
    features = draw_features(n, dimension, n_clusters, CPU)
    start = features[torch.from_numpy(np.random.default_rng(0).permutation(n)[:n_clusters])].clone()
    on_device = features.to(bench.device)

    def fit(rows: torch.Tensor) -> np.ndarray:
        return KMeans(n_clusters, init=start, max_iter=10, tol=0.0).fit(rows).labels_

    labels = fit(on_device)
    if bench.is_gpu:
        findings.expect("share_unlike_the_cpu", share(labels, fit(features)), at_most=1e-4)
    one, three = (fit_in_shards(on_device, start, n_shards) for n_shards in (1, 3))
    findings.expect("share_unlike_in_three_shards", share(one, three), at_most=0)
    findings.expect("share_unlike_by_hand", share(labels, one), at_most=1e-3)
    with fp32_arithmetic("tf32"):
        findings.expect("share_unlike_with_tf32_allowed", share(labels, fit(on_device)), at_most=0)
        centers = KMeans(n_clusters, init=start, max_iter=10, tol=0.0).fit(on_device).cluster_centers_
        rounded = (on_device @ centers.to(bench.device).T).argmax(dim=1).cpu().numpy()
    findings.report("share_that_tf32_would_change", share(labels, rounded))


def fit_in_shards(features: torch.Tensor, start: torch.Tensor, n_shards: int) -> np.ndarray:
    """Labels after ten passes over shards whose sums are added up, as several processes do it."""
    shards = features.tensor_split(n_shards)
    centers = torch.nn.functional.normalize(start.to(features.device), dim=1)
    labels: list[np.ndarray] = []
    for step in range(11):
        labels = [KMeans(len(start), init=centers, max_iter=0).fit(shard).labels_ for shard in shards]
        if step == 10:
            break
        total = ClusterSums(len(start), features.shape[1], len(features), 1.0, features.device)
        for shard, own in zip(shards, labels, strict=True):
            total.add(torch.nn.functional.normalize(shard, dim=1), torch.from_numpy(own).to(features.device))
        is_empty = total.counts[:, None] == 0
        means = torch.nn.functional.normalize(total.means(), dim=1).float()
        centers = torch.where(is_empty, centers, means)
    return np.concatenate(labels)


def check_kmeans_rate(bench: Bench, findings: Findings) -> None:
    """Passes of k-means against its products alone, for ImageNet's number of samples."""
    n = bench.size(1_281_167, 100_000 if bench.is_gpu else 8_000)
    sizes = bench.size([(384, 1697), (384, 6788), (1024, 6788)], [(384, 1697)] if bench.is_gpu else [(64, 100)])
    passes = 5
    for dimension, n_clusters in sizes:
        features = draw_features(n, dimension, n_clusters, bench.device)
        start = features[:n_clusters].clone()
        operations = 2.0 * n * dimension * n_clusters
        products = min(product_seconds(features, start) for _ in range(2))
        seconds = []
        for turn in range(3):
            bench.synchronize()
            began = time.perf_counter()
            ours(features, start, passes, spherical=True)
            if turn > 0:
                seconds.append((time.perf_counter() - began) / passes)
        name = f"{dimension}x{n_clusters}"
        rate = operations / min(seconds) / 1e12
        findings.expect(f"{name}_over_products", products / min(seconds), at_least=0.8, unless=bench.no_rates)
        why_not = bench.no_rates or (None if is_hopper(bench) else "the bound is an H100's")
        findings.expect(f"{name}_tflops", rate, at_least=40.0, unless=why_not)
        del features
    findings.report("fp32_tflops_of_the_machine", product_rate(bench, "fp32"))


def check_seeding(bench: Bench, findings: Findings) -> None:
    """k-means++ of three labelings of ImageNet: seconds, and its potential against scikit-learn's."""
    n, dimension, numbers = bench.size((1_281_167, 1024, (1697, 3394, 6788)), (20_000, 64, (40, 80, 160)))
    if bench.is_quick and bench.is_gpu:
        n, dimension, numbers = 200_000, 384, (671, 1342, 2684)
    features = draw_features(n, dimension, numbers[0], bench.device)
    total = 0.0
    for n_clusters in numbers:
        bench.synchronize()
        began = time.perf_counter()
        KMeans(n_clusters, init="k-means++", max_iter=0).fit(features)
        total += time.perf_counter() - began
        findings.report(f"seconds_{n_clusters}", time.perf_counter() - began)
    findings.expect("seconds", total, at_most=10.0, unless=None if bench.is_gpu else bench.no_rates)
    n_rows, n_columns, n_few = bench.size((20_000, 128, 300), (2_500, 32, 40))
    few = draw_features(n_rows, n_columns, n_few, bench.device, seed=1)
    host = few.cpu().numpy()
    potentials: dict[str, list[float]] = {"ours": [], "scikit_learn": []}
    for seed in range(4):
        seeds, _ = kmeans_plusplus(host, n_few, random_state=seed)
        for name, kmeans in (
            ("ours", KMeans(n_few, init="k-means++", max_iter=0, seed=seed)),
            ("scikit_learn", KMeans(n_few, init=seeds, max_iter=0)),
        ):
            potentials[name].append(kmeans.fit(few).inertia_)
    ratio = np.mean(potentials["ours"]) / np.mean(potentials["scikit_learn"])
    findings.expect("potential_over_scikit_learn", float(ratio), at_most=1.05)
