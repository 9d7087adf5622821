"""Every family of backbones, end to end: the table in docs/explanation/backbones.md is written from what is found here.

HF_PLR_WRITE_DOCS=1 writes the table anew; without it the test compares.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.families import FAMILIES, Tried, make_data, probe, try_family
from helpers.launching import launch
from helpers.paths import HELPERS, REPOSITORY

pytestmark = pytest.mark.slow
PAGE = REPOSITORY / "docs" / "explanation" / "backbones.md"
HEAD = ("family", "trained as", "poolings and sizes, the default first", "gradient checkpointing")


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> dict[str, Tried]:
    """What came of each, in one process."""
    out = tmp_path_factory.mktemp("families")
    return {name: try_family(name, out / str(number), make_data(name)) for number, name in enumerate(FAMILIES)}


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory) -> dict[str, str]:
    """What failed with two processes and gradient checkpointing."""
    output = tmp_path_factory.mktemp("two") / "found.json"
    run = launch(output, processes=2, script=HELPERS / "families_in_processes.py")
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def elsewhere(tried, tmp_path_factory) -> dict[str, np.ndarray]:
    """Features by plain AutoModel, in another process without hf_plr."""
    folder = tmp_path_factory.mktemp("elsewhere")
    trained = {name: each for name, each in tried.items() if each.feature is not None}
    asked = {name: (each.output, each.code) for name, each in trained.items()}
    (folder / "asked.json").write_text(json.dumps(asked))
    np.savez(folder / "samples.npz", **{name: probe(name).numpy() for name in trained})
    command = [sys.executable, "-I", str(HELPERS / "foreign_features.py"), str(folder / "asked.json")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(np.load(folder / "features.npz"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_resumes_and_is_saved(name, tried):
    assert tried[name].failed == ""
    assert tried[name].refused or tried[name].poolings


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_automodel_gives_the_same_feature_elsewhere(name, tried, elsewhere):
    if tried[name].refused:
        pytest.skip(tried[name].refused)
    np.testing.assert_allclose(elsewhere[name], tried[name].feature, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_train_it_with_gradient_checkpointing(name, tried, in_two_processes):
    if tried[name].refused:
        assert tried[name].refused in in_two_processes[name]
    else:
        assert in_two_processes[name] == ""


def test_the_table_in_the_docs_is_what_was_found(tried):
    rows = [HEAD, tuple("---" for _ in HEAD)]
    for name, each in tried.items():
        poolings = ", ".join(f"{pooling} {size}" for pooling, size in each.poolings.items())
        refused = re.sub(r"\s+", " ", each.refused).partition(": ")
        found = (each.trained, poolings, "yes" if each.checkpointing else "it has none")
        rows.append((name, *(found if not each.refused else ("refused", "".join(refused), ""))))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- families -->\n")
    _, _, after = rest.partition("\n<!-- end -->")
    written = f"{before}<!-- families -->\n{table}\n<!-- end -->{after}"
    if os.environ.get("HF_PLR_WRITE_DOCS"):
        PAGE.write_text(written, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == written, "HF_PLR_WRITE_DOCS=1 writes the table anew"
