"""The table of all checks, in their order: cheap and decisive ones first."""

from __future__ import annotations

from benchmarks.gpu_check.clustering_checks import (
    check_exact_sums,
    check_kmeans_labels,
    check_kmeans_rate,
    check_seeding,
)
from benchmarks.gpu_check.feature_checks import check_decoding, check_extraction, check_feature_dtype
from benchmarks.gpu_check.findings import Check
from benchmarks.gpu_check.function_checks import check_functions
from benchmarks.gpu_check.launched_checks import check_bf16, check_compile, check_end_to_end, check_resume
from benchmarks.gpu_check.machine import check_machine
from benchmarks.gpu_check.process_checks import check_collectives, check_fsdp, check_two_processes
from benchmarks.gpu_check.training_checks import (
    check_determinism,
    check_memory,
    check_synchronisations,
    check_trainer,
)

# Name, function, and what it takes in seconds on one H100 with 16 cores: estimated, and with small sizes.
CHECKS = (
    Check("machine", check_machine, 20, 10),
    Check("functions", check_functions, 60, 30),
    Check("exact_sums", check_exact_sums, 15, 5),
    Check("kmeans_labels", check_kmeans_labels, 40, 10),
    Check("kmeans_rate", check_kmeans_rate, 60, 15),
    Check("seeding", check_seeding, 60, 20),
    Check("extraction", check_extraction, 150, 40),
    Check("decoding", check_decoding, 90, 30),
    Check("trainer", check_trainer, 200, 60),
    Check("synchronisations", check_synchronisations, 40, 30),
    Check("bf16", check_bf16, 120, 60),
    Check("feature_dtype", check_feature_dtype, 60, 30),
    Check("resume", check_resume, 150, 90),
    Check("determinism", check_determinism, 30, 20),
    Check("compile", check_compile, 180, 120),
    Check("memory", check_memory, 60, 30),
    Check("two_processes", check_two_processes, 120, 70),
    Check("collectives", check_collectives, 40, 30),
    Check("fsdp", check_fsdp, 90, 40),
    Check("end_to_end", check_end_to_end, 150, 90),
)
