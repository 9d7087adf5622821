"""Refine labels in Spark or DuckDB: SQL counts the cells, this process refines these, SQL joins the labels back.

Labels never leave the engine. What comes here are the occupied cells, some hundred thousand for ten million samples.

  python examples/cooccurrence_sql/run.py --previous refined/1 --current clusters/2 --output refined/2

The folders hold parquet files with the columns index and label, as `hf-plr cluster` and `hf-plr refine` write them, and
`hf-plr train image --labels refined/2` takes the output. Needs `pip install pyspark` and Java, or with --engine duckdb
`pip install duckdb`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from hf_plr.refinement import PRESETS, CooccurrenceTable, PseudoLabelRefiner

HERE = Path(__file__).parent


class Engine(Protocol):
    """What is asked of an engine of SQL."""

    def open(self, name: str, folder: str) -> None:
        """Open the parquet files of a folder as a table."""

    def put(self, name: str, frame: pd.DataFrame) -> None:
        """Make a table of a frame."""

    def query(self, sql: str) -> pd.DataFrame:
        """Return the rows of a query."""

    def write(self, sql: str, folder: str) -> None:
        """Write the rows of a query as parquet files into a new folder."""


class Spark:
    """Apache Spark; on a cluster `session` is the one that spark-submit makes."""

    def __init__(self, session: Any):
        self.session = session

    def open(self, name: str, folder: str) -> None:
        self.session.read.parquet(folder).createOrReplaceTempView(name)

    def put(self, name: str, frame: pd.DataFrame) -> None:
        self.session.createDataFrame(frame).createOrReplaceTempView(name)

    def query(self, sql: str) -> pd.DataFrame:
        rows = self.session.sql(sql)
        return pd.DataFrame([tuple(row) for row in rows.collect()], columns=rows.columns)

    def write(self, sql: str, folder: str) -> None:
        self.session.sql(sql.replace("SELECT", "SELECT /*+ BROADCAST(refined_cells) */", 1)).write.parquet(folder)


class DuckDB:
    """DuckDB in this process."""

    def __init__(self, connection: Any):
        self.connection = connection

    def open(self, name: str, folder: str) -> None:
        self.connection.read_parquet(f"{folder}/*.parquet").create_view(name)

    def put(self, name: str, frame: pd.DataFrame) -> None:
        self.connection.register(name, frame)

    def query(self, sql: str) -> pd.DataFrame:
        return self.connection.sql(sql).df()

    def write(self, sql: str, folder: str) -> None:
        Path(folder).mkdir(parents=True)
        self.connection.sql(sql).write_parquet(f"{folder}/labels.parquet")


@contextmanager
def start(engine: str) -> Iterator[Engine]:
    """Start an engine on this machine, "spark" or "duckdb"."""
    if engine == "duckdb":
        import duckdb

        with closing(duckdb.connect()) as connection:
            yield DuckDB(connection)
        return
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        yield Spark(session)
    finally:
        session.stop()


def count_cells(engine: Engine) -> CooccurrenceTable:
    """Count the cells of the tables previous_labels and current_labels."""
    cells = engine.query((HERE / "count_cells.sql").read_text())
    labels = cells[["previous_label", "current_label"]].to_numpy()
    return CooccurrenceTable.from_cells(labels, cells["samples"].to_numpy(), cells["first_member"].to_numpy())


def refine(engine: Engine, refiner: PseudoLabelRefiner, folder: str) -> None:
    """Refine the labels of these tables, and write the result."""
    refined = refiner.refine_cells(count_cells(engine))
    table = refined.table
    with_noise = [[*ids.tolist(), -1] for ids in table.ids]  # a code of -1 is the last
    frame = pd.DataFrame(
        {
            "previous_label": [with_noise[0][code] for code in table.previous],
            "current_label": [with_noise[1][code] for code in table.current],
            "label": refined.labels,
            "confidence": refined.confidence,
        }
    )
    engine.put("refined_cells", frame)
    engine.write((HERE / "join_labels.sql").read_text(), folder)


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, refine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--previous", required=True, metavar="FOLDER", help="labels of the epoch before")
    parser.add_argument("--current", required=True, metavar="FOLDER", help="labels of this epoch")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the refined labels go")
    parser.add_argument("--engine", choices=("spark", "duckdb"), default="spark", help="default: %(default)s")
    presets = [name for name, preset in PRESETS.items() if preset.get("generations", 2) == 2]
    parser.add_argument("--preset", choices=presets, default="slr", help="default: %(default)s")
    args = parser.parse_args(argv)
    with start(args.engine) as engine:
        engine.open("previous_labels", args.previous)
        engine.open("current_labels", args.current)
        refine(engine, PseudoLabelRefiner.from_preset(args.preset), args.output)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
