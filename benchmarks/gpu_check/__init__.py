"""Acceptance of a machine with a GPU: twenty checks in half an hour, each with a figure and a bound.

    python -m benchmarks.gpu_check --json gpu.json --budget 1500     # what `make gpu-check` runs
    python -m benchmarks.gpu_check --json gpu.json --append          # what that has skipped
    python -m benchmarks.gpu_check --list
    python -m benchmarks.gpu_check --device cpu --quick              # a dry run, for the checks themselves
    pytest -m gpu                                                    # the same checks as tests

Everything that is needed is drawn or comes with scikit-learn: no network, no data set, no weights. `checks.py` has the
table of all checks; they stand in the files by what they are about. `findings.py` says what a check is and records what
it finds; `supervisor.py` runs them in a process of their own and starts another one where that ends before its time.
"""
