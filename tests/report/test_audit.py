"""`hf-plr audit`: the estimate, the ranking, and files that do not fit."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers.run_lines import make_audit, make_history, write_run
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from hf_plr.cli import main
from hf_plr.evaluation.proportions import difference_interval
from hf_plr.report.audit import Marks, estimate_error_rate, rank_clusters
from hf_plr.report.names import write_cluster_names
from hf_plr.report.run_history import RunHistory


def marks_of(labels, index, wrong, random=True):
    index = np.asarray(index)
    return Marks(index, labels[index], np.asarray(wrong, bool), np.broadcast_to(random, index.shape))


@pytest.fixture
def folder(tmp_path):
    """A run's labels: row 10 to 21 of a data set; clusters 0 (six), 4 (four) and two samples in none."""
    labels = [0, 0, 0, 0, 0, 0, 4, 4, 4, 4, -1, -1]
    frame = pd.DataFrame({"index": np.arange(10, 22), "label": labels, "previous_label": -1, "confidence": 1.0})
    (tmp_path / "out").mkdir()
    frame.to_parquet(tmp_path / "out" / "pseudo_labels.parquet")
    return tmp_path / "out"


@pytest.fixture
def audit(folder, tmp_path, capsys):
    """Runs the command on marks and returns its status and what it said."""

    def call(text, *options):
        path = tmp_path / "marks.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        status = main(["audit", str(folder), "--marks", str(path), *map(str, options)])
        said = capsys.readouterr()
        return status, said.out if status == 0 else said.err

    return call


# ---- the estimate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 50, 200])
@pytest.mark.parametrize("rate", [0.003, 0.02, 0.1, 0.37, 0.5, 0.93])
def test_the_interval_holds_a_known_rate_in_95_of_100_audits_or_more(n, rate):
    labels = np.zeros(1_000_000, int)
    covered = 0.0
    for wrong in range(n + 1):  # exact: every outcome with its probability
        found = estimate_error_rate(marks_of(labels, np.arange(n), np.arange(n) < wrong), labels)
        assert found.low <= found.rate <= found.high
        covered += binom.pmf(wrong, n, rate) * (found.low <= rate <= found.high)
    assert covered >= 0.95
    assert covered < 0.998 or n * rate < 3  # not by being too wide, where the outcomes are many


def test_drawn_audits_of_a_run_with_a_known_number_of_wrong_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 30, 5_000)
    is_wrong = (rng.random(5_000) < 0.02 + 0.01 * labels) & (labels >= 0)
    truth = is_wrong.sum() / (labels >= 0).sum()
    held = []
    for _ in range(400):
        index = rng.choice(5_000, 120, replace=False)  # of all samples, those in no cluster too
        found = estimate_error_rate(marks_of(labels, index, is_wrong[index]), labels)
        assert found.population == (labels >= 0).sum()
        held.append(found.low <= truth <= found.high)
    assert 0.94 <= np.mean(held) <= 0.995


def test_only_the_random_draw_is_counted():
    labels = np.array([0, 0, 0, 1, 1, -1])
    found = estimate_error_rate(marks_of(labels, [0, 1, 3, 5], [1, 0, 1, 1], [True, True, False, True]), labels)
    assert (found.marked, found.wrong, found.population) == (2, 1, 5)
    assert estimate_error_rate(marks_of(labels, [0, 1], [1, 0], False), labels) is None
    assert estimate_error_rate(marks_of(labels, [5], [1]), labels) is None


# ---- the ranking -------------------------------------------------------------------------------------------------


def test_expected_wrong_by_hand():
    labels = np.repeat([0, 1, 2], [10, 4, 6])
    marks = marks_of(labels, [0, 1, 10, 14, 15], [1, 0, 1, 0, 0], [True, True, True, True, False])
    ranked = rank_clusters(marks, labels)
    rate = 2.5 / 5
    expected = {0: 1 + 8 * (1 + 2 * rate) / 4, 1: 1 + 3 * (1 + 2 * rate) / 3, 2: 4 * 2 * rate / 4}
    assert dict(zip(ranked.label, ranked.expected_wrong, strict=True)) == pytest.approx(expected)
    assert ranked.label.tolist() == [0, 1, 2]
    assert (ranked.members.tolist(), ranked.marked.tolist(), ranked.wrong.tolist()) == (
        [10, 4, 6],
        [2, 1, 2],
        [1, 1, 0],
    )


@given(st.integers(0, 9_999), st.integers(1, 80))
def test_ranking_keeps_to_its_bounds_and_names_mean_nothing(seed, n):
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(-1, 9, 100), 0)
    index = rng.choice(100, n, replace=False)
    wrong, random = rng.random(n) < 0.3, rng.random(n) < 0.5
    ranked = rank_clusters(marks_of(labels, index, wrong, random), labels)
    assert ranked.members.sum() == (labels >= 0).sum()
    assert (ranked.wrong <= ranked.marked).all()
    assert (ranked.wrong <= ranked.expected_wrong).all()
    assert (ranked.expected_wrong <= ranked.members - (ranked.marked - ranked.wrong)).all()
    assert (np.diff(ranked.expected_wrong) <= 0).all()
    names = rng.permutation(500)[:9] * 3
    renamed = np.where(labels >= 0, names[labels], -1)
    again = rank_clusters(marks_of(renamed, index, wrong, random), renamed)
    assert again.expected_wrong == pytest.approx(ranked.expected_wrong)
    found = dict(zip(again.label, again.expected_wrong, strict=True))
    assert [found[names[label]] for label in ranked.label] == pytest.approx(ranked.expected_wrong)


# ---- the command -------------------------------------------------------------------------------------------------


def test_marks_of_the_page(audit, tmp_path):
    text = "index,label,sheet,mark\n10,0,random,right\n11,0,random,wrong\n11,0,least_confident,wrong\n"
    text += "16,4,random,right\n17,4,changed,wrong\n20,-1,random,wrong\n"
    status, said = audit(text, "--output", tmp_path / "clusters.csv")
    assert status == 0
    assert "5 samples are marked, 3 of them wrong." in said
    assert "Error rate: 33.3%, 95% interval 0.8% to 90.6% (1 of 3 random samples are wrong)." in said
    assert "Of the 10 samples in clusters about 3 are wrong, between 0 and 9." in said
    assert "2 samples are in no cluster" in said
    written = pd.read_csv(tmp_path / "clusters.csv")
    assert written["cluster"].tolist() == [0, 4]
    assert written[["members", "marked", "wrong"]].values.tolist() == [[6, 2, 1], [4, 2, 1]]
    assert f"{0:>8}{6:>9}{2:>8}{1:>7}{written['expected_wrong'][0]:>16.1f}" in said
    status, said = audit(text, "--output", tmp_path / "clusters.csv")
    assert (status, "give --overwrite" in said) == (2, True)
    assert audit(text, "--output", tmp_path / "clusters.csv", "--overwrite")[0] == 0
    assert "clusters are written as .csv" in audit(text, "--output", tmp_path / "clusters.txt")[1]


def test_samples_of_the_draw_without_a_mark_are_told(audit):
    text = "index,label,sheet,mark\n10,0,random,right\n11,0,random,\n11,0,changed,\n16,4,random,\n20,-1,random,\n"
    status, said = audit(text)
    assert status == 0
    assert "Error rate: 0.0%" in said
    assert "2 of the 3 random samples have no mark. Mark them too" in said
    status, said = audit(text + "11,0,least_confident,wrong\n16,4,least_confident,right\n17,4,changed,\n")
    assert (status, "1 of 3 random samples" in said, "no mark" in said) == (0, True, False)
    assert (
        "5 of the 6 random samples have no mark"
        in audit(
            "index,mark\n" + "".join(f"{index},{'right' if index == 10 else ''}\n" for index in range(10, 16)),
            "--random",
        )[1]
    )


def test_a_file_written_by_hand_is_a_random_draw_only_if_that_is_said(audit):
    text = b"\xef\xbb\xbfmark, index\r\nwrong, 10\r\nright, 16\r\n\r\n"  # as a spreadsheet may write it
    status, said = audit(text)
    assert status == 0
    assert "No error rate" in said
    assert "--random says so" in said
    assert "Clusters to check first" in said
    status, said = audit(text, "--random")
    assert "Error rate: 50.0%, 95% interval 1.3% to 98.7% (1 of 2 random samples are wrong)." in said
    assert "were those that are right marked too" in audit("index,mark\n10,wrong\n", "--random")[1]


def test_marks_of_samples_that_the_run_left_out_are_counted(audit, caplog):
    status, said = audit(
        "index,label,sheet,mark\n10,0,random,right\n9,0,random,wrong\n16,4,random,wrong\n8,0,random,\n"
    )
    assert status == 0
    assert "2 samples are marked, 1 of them wrong" in said
    assert "2 of 4 rows are of samples not in " in caplog.text
    assert "and left out, first line 3: sample 9." in caplog.text


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_marks_as_spreadsheets_and_pandas_write_them(audit, caplog, separator):
    rows = ["index,note,label,mark,sheet", "10.0,,0.0,Right,Random", "16,see \x1b,4,WRONG,random"]
    status, said = audit("\n".join(rows).replace(",", separator))
    assert (status, "2 samples are marked, 1 of them wrong" in said) == (0, True)
    assert "marks.csv: not read, beside index,label,mark,sheet: 'note'." in caplog.text


def test_it_runs_as_a_program_without_torch(folder, tmp_path):
    (tmp_path / "m.csv").write_text("index,mark\n10,wrong\n")
    code = "import sys; from hf_plr.cli import main; s = main(); print('torch' in sys.modules); sys.exit(s)"
    command = [sys.executable, "-c", code, "audit", str(folder), "--marks", str(tmp_path / "m.csv")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'index'; the header must be index,label,sheet,mark"),
        ("index,mark\n", "holds no marks"),
        ("index,mark\n10,\n11, \n", "holds no marks: its column 'mark' is empty in every row"),
        ("index,sheet,mark\n99,random,\n", "line 2: sample 99 is not in"),
        ("index,label\n1,1\n", "line 1: no column 'mark'"),
        ("index;mark\n1;wrong\n", "line 2: sample 1 is not in"),
        ("index;mark,x\n1;wrong\n", "line 1: no column 'index'"),
        ("index,mark,\x1b[2Jnote\n1,wrong,x\n", "line 2: sample 1 is not in"),
        ("index,mark,mark\n1,wrong,wrong\n", "line 1: a column is there twice"),
        ("index,mark\n10,right\n11,bad\n", "line 3: mark 'bad' is unknown: use one of wrong, right"),
        ("index,mark\n10,\u202ewrong\n", r"line 2: mark '\u202ewrong' is unknown"),
        ("index,mark,sheet\n10,wrong,drawn\n", "line 2: sheet 'drawn' is unknown: use one of random, most_confident"),
        ("index,mark\n1e1,wrong\n", "line 2: index '1e1' is not an integer"),
        ("index,mark\n\u0661,wrong\n", r"line 2: index '\u0661' is not an integer"),
        ("index,mark\n" + "9" * 5_000 + ",wrong\n", "line 2: index '" + "9" * 37 + "...' is not an integer"),
        ("index,label,mark\n10,,wrong\n", "line 2: label '' is not an integer"),
        ("index,mark\n10,wrong,right\n", "line 2: 3 fields under a header of 2"),
        ("index,mark\n\n7,right\n9,wrong\n", "line 3: sample 7 is not in"),
        ("index,mark\n99999,wrong\n", "line 2: sample 99999 is not in"),
        ("index,mark\n10,right\n16,wrong\n10,wrong\n", "line 4: sample 10 is marked wrong here and right in line 2"),
        ('index,mark\n10,"wrong\n', "cannot be read as csv"),
        (b"index,mark\n10,\xff\n", "cannot be read as csv: it is not in UTF-8: save it as UTF-8"),
        ("index,mark\n10,right\n".encode("utf-16"), "cannot be read as csv: it is not in UTF-8: save it as UTF-8"),
        ("index,mark\n10,wr\0ng\n", "line 2: mark 'wr\\x00ng' is unknown"),
        (
            "index,label,mark\n10,0,wrong\n16,0,wrong\n17,3,right\n",
            "2 of 3 marks name another label, the first in line 3, where sample 16 has 0 and not 4",
        ),
    ],
)
def test_marks_that_do_not_fit_are_named(audit, tmp_path, text, message):
    status, said = audit(text)
    assert status == 2
    assert said.startswith("hf-plr audit: error: ")
    assert message in said
    assert said.replace(str(tmp_path), "").isascii()  # the path may have any characters


def test_files_and_options_that_do_not_fit(audit, folder, tmp_path, capsys):
    assert (
        "which says what is random: leave --random out" in audit("index,sheet,mark\n10,random,wrong\n", "--random")[1]
    )
    arguments = ["--marks", str(tmp_path / "none.csv")]
    assert main(["audit", str(folder), *arguments]) == 2
    assert "none.csv does not exist" in capsys.readouterr().err
    assert main(["audit", str(tmp_path), *arguments]) == 2
    assert "holds no pseudo_labels.parquet: an audit needs" in capsys.readouterr().err
    pd.DataFrame({"label": [0, 1]}).to_parquet(folder / "pseudo_labels.parquet")
    assert "has no column 'index' with a different integer" in audit("index,mark\n0,wrong\n")[1]
    (folder / "pseudo_labels.parquet").write_bytes(b"nonsense")
    assert "cannot be read as parquet" in audit("index,mark\n0,wrong\n")[1]


@given(st.text("index,markwrongright0123456789\n\r\"'\0\x1b\u202e ;-", max_size=60) | st.binary(max_size=60))
def test_any_file_is_read_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    pd.DataFrame({"index": [0, 1], "label": [0, 0]}).to_parquet(folder / "pseudo_labels.parquet")
    raw = text if isinstance(text, bytes) else ("index,mark\n" + text).encode()
    (folder / "m.csv").write_bytes(raw)
    assert main(["audit", str(folder), "--marks", str(folder / "m.csv")]) in (0, 2)


# ---- over runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def continued(tmp_path):
    """A run that continues another one, which was audited; the clusters, the largest first."""
    history = make_history(2, 6)
    first, own = history.runs
    labels = sorted(own.clusters, key=lambda label: -own.clusters[label])
    audit = make_audit(30, {labels[0]: (40, 20), labels[1]: (40, 0)}, 500)
    history = dataclasses.replace(history, runs=(dataclasses.replace(first, audit=audit), own))
    return write_run(tmp_path / "continued", history), labels


def audit_of(out, tmp_path, capsys, wrong, *options):
    """Audits the first 60 members of the three largest clusters, with some of them wrong; returns what was said."""
    frame = pd.read_parquet(out / "pseudo_labels.parquet")
    rows = frame[frame["label"] >= 0].groupby("label").head(60)
    mark = np.where(np.arange(len(rows)) < wrong, "wrong", "right")
    path = tmp_path / "marks.csv"
    pd.DataFrame({"index": rows["index"], "mark": mark}).to_csv(path, index=False)
    assert main(["audit", str(out), "--marks", str(path), "--random", *map(str, options)]) == 0
    return capsys.readouterr()


def test_the_error_rate_is_kept_and_compared_with_the_run_before(continued, tmp_path, capsys):
    out, labels = continued
    write_cluster_names(out, {labels[0]: "crack"})
    said = audit_of(out, tmp_path, capsys, 0, "--output", tmp_path / "clusters.csv").out
    audit = RunHistory.read(out).runs[-1].audit
    assert (audit.wrong, audit.marked) == (0, sum(marked for marked, _ in audit.clusters.values()))
    assert audit.clusters.keys() == set(labels)
    change = re.search(
        r"Error rate against line-3-january: 25.0% then, 0.0% now, -25.0 points, 95% interval (\S+) to (\S+): fewer "
        "labels are wrong now",
        said,
    )
    low, high = (float(bound) for bound in difference_interval(0, audit.marked, 30, 120))
    assert (float(change[1]), float(change[2])) == (round(100 * low, 1), round(100 * high, 1))
    assert re.search(rf"^crack \({labels[0]}\) +20 of 40 +0 of 60 +-50.0  ", said, re.MULTILINE)
    assert re.search(rf"^{labels[1]} +0 of 40 +0 of 60 +\+0.0  ", said, re.MULTILINE)
    assert re.search(rf"^ *{labels[0]} +[\d,]+ +60 +0 +[\d.]+  crack$", said, re.MULTILINE)
    assert f"Wrote {out / 'run_history.json'}, {out / 'report.html'}, {out / 'README.md'}" in said
    assert "An audit found 0.0% of the labels wrong" in (out / "README.md").read_text()
    assert '"change":{"difference":-0.25' in (out / "report.html").read_text()
    written = pd.read_csv(tmp_path / "clusters.csv", keep_default_na=False).set_index("cluster")
    assert written["name"].to_dict() == {label: "crack" if label == labels[0] else "" for label in labels}


@pytest.mark.parametrize(("wrong", "verdict"), [(75, "no change can be told"), (200, "more labels are wrong now")])
def test_verdicts_follow_the_interval(continued, tmp_path, capsys, wrong, verdict):
    assert verdict in audit_of(continued[0], tmp_path, capsys, wrong).out


def test_without_a_random_draw_or_a_history_nothing_is_kept(continued, folder, tmp_path, capsys):
    out, _ = continued
    before = (out / "run_history.json").read_bytes()
    path = tmp_path / "marks.csv"
    path.write_text("index,mark\n0,right\n")
    assert main(["audit", str(out), "--marks", str(path)]) == 0
    assert "No error rate" in capsys.readouterr().out
    assert (out / "run_history.json").read_bytes() == before
    path.write_text("index,mark\n10,right\n")
    assert main(["audit", str(folder), "--marks", str(path), "--random"]) == 0
    assert f"Not kept for later runs: {folder} has no run_history.json" in capsys.readouterr().out
    assert [file.name for file in folder.iterdir()] == ["pseudo_labels.parquet"]


def test_an_audit_that_cannot_be_kept_is_printed(continued, tmp_path, capsys, monkeypatch):
    out, _ = continued
    monkeypatch.setattr(RunHistory, "write", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    said = audit_of(out, tmp_path, capsys, 3)
    assert "Error rate: " in said.out
    assert "hf-plr audit: the error rate is not kept: read-only" in said.err


def test_damaged_files_of_a_run_cost_no_more_than_themselves(continued, tmp_path, capsys):
    out, _ = continued
    data, history = (out / "report.json").read_bytes(), (out / "run_history.json").read_bytes()
    (out / "report.json").write_text("{")
    said = audit_of(out, tmp_path, capsys, 3)
    assert f"Wrote {out / 'run_history.json'}, {out / 'README.md'}" in said.out
    assert f"hf-plr audit: the error rate is kept, but not shown everywhere: {out / 'report.json'} cannot" in said.err
    assert (out / "run_history.json").read_bytes() != history
    (out / "report.json").write_bytes(data)
    (out / "run_history.json").write_text("{")
    said = audit_of(out, tmp_path, capsys, 3, "--output", tmp_path / "clusters.csv")
    assert f"hf-plr audit: the error rate is not kept: {out / 'run_history.json'} cannot be read" in said.err
    assert len(pd.read_csv(tmp_path / "clusters.csv")) > 1


def test_without_an_earlier_audit_it_is_said_that_there_is_none(continued, tmp_path, capsys):
    out, _ = continued
    history = RunHistory.read(out)
    runs = [dataclasses.replace(run, audit=None) for run in history.runs]
    dataclasses.replace(history, runs=tuple(runs)).write(out)
    assert "No error rate to compare with: no earlier run had been audited" in audit_of(out, tmp_path, capsys, 5).out
    dataclasses.replace(history, runs=(runs[1],)).write(out)
    assert "No error rate to compare with" not in audit_of(out, tmp_path, capsys, 5).out
