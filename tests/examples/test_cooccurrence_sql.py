"""The SQL of the co-occurrence table, in DuckDB and in Spark, against the table of the library."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.examples import load_example

from hf_plr.cli import main
from hf_plr.refinement import cooccurrence

N = 3000


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    previous = rng.integers(-1, 30, N) * 7
    previous = np.where(previous < 0, -1, previous)
    return previous, np.where(rng.random(N) < 0.3, rng.integers(-1, 35, N), previous)


@pytest.fixture
def folders(labels, tmp_path):
    for name, each in zip(("previous", "current"), labels, strict=True):
        frame = pd.DataFrame({"index": np.arange(N), "label": each})
        (tmp_path / name).mkdir()
        for part in range(3):
            frame[part * 1000 : (part + 1) * 1000].to_parquet(tmp_path / name / f"{part}.parquet", index=False)
    return str(tmp_path / "previous"), str(tmp_path / "current")


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def test_sql_counts_and_refines_as_the_library_does(labels, folders, tmp_path, engine):
    pytest.importorskip({"spark": "pyspark"}.get(engine, engine))
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed")
    example = load_example("cooccurrence_sql")
    with example.start(engine) as opened:
        opened.open("previous_labels", folders[0])
        opened.open("current_labels", folders[1])
        table = example.count_cells(opened)
    expected = cooccurrence(*labels)
    for name in ("codes", "counts", "first_member"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))
    for found, ids in zip(table.ids, expected.ids, strict=True):
        np.testing.assert_array_equal(found, ids)

    by_sql, by_us = str(tmp_path / "sql"), str(tmp_path / "us")
    files = ["--previous", folders[0], "--current", folders[1]]
    example.main([*files, "--engine", engine, "--output", by_sql])
    assert main(["refine", *files, "--output", by_us]) == 0
    columns = ["index", "label", "current_label", "confidence"]
    frames = [pd.read_parquet(folder)[columns].sort_values("index", ignore_index=True) for folder in (by_sql, by_us)]
    pd.testing.assert_frame_equal(*frames, check_dtype=False, rtol=1e-6)
