"""Names of clusters: their file, tables of names, and the majority of a few labels."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.hub.markdown import escape_markdown
from hf_plr.report.marks import read_labels
from hf_plr.report.names import carry_names, format_cluster, read_cluster_names, read_level_names, write_cluster_names
from hf_plr.report.naming import FewLabels, count_votes, parse_renames, read_few_labels, read_names_table
from hf_plr.report.run_history import RunEvents

NAMES = {3: "crack", 11: "Riß, längs", 7: '"<b>"'}


# ---- the file --------------------------------------------------------------------------------------------------------


def test_names_are_read_as_they_were_written(tmp_path):
    assert read_cluster_names(tmp_path) == {}
    write_cluster_names(tmp_path, NAMES)
    assert read_cluster_names(tmp_path) == NAMES
    assert list(read_cluster_names(tmp_path)) == [3, 7, 11]
    content = json.loads((tmp_path / "cluster_names.json").read_text(encoding="utf-8"))
    assert content == {"format": "hf-plr-names-1", "names": {str(label): name for label, name in NAMES.items()}}
    write_cluster_names(tmp_path, {np.int64(2): "dent"})
    assert read_cluster_names(tmp_path) == {2: "dent"}
    write_cluster_names(tmp_path, {2: "dent"}, {8: {3: "metal"}, 4: {}})
    assert read_level_names(tmp_path) == {8: {3: "metal"}}
    write_cluster_names(tmp_path, {})  # those of levels stay
    assert (read_cluster_names(tmp_path), read_level_names(tmp_path)) == ({}, {8: {3: "metal"}})
    write_cluster_names(tmp_path, {}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),  # Persian with a zero width non-joiner
        ("\u0915\u094d\u200d\u0937", None),  # Devanagari with a zero width joiner
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", None),  # a family
        ("\u6771\u3000\u4eac", "\u6771 \u4eac"),  # with an ideographic space
        ("12\u00a0mm", "12 mm"),
        ("12\u202fmm", "12 mm"),
    ],
)
def test_names_of_all_scripts_are_names(tmp_path, name, kept):
    write_cluster_names(tmp_path, {1: name})
    assert read_cluster_names(tmp_path) == {1: kept or name}
    (tmp_path / "names.csv").write_text(f"cluster,name\n1,{name}\n", encoding="utf-8")
    assert read_names_table(tmp_path / "names.csv") == {1: kept or name}
    assert parse_renames([f"{name}=dent"], {1: kept or name}) == {1: "dent"}
    assert escape_markdown(name) == (kept or name)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "\u3000", "two\nlines", "tab\tbed", " spaced", "x" * 61, "\u202ereversed", None, 3),
        *(
            "\u200dx",
            "x\u200c",
            "a \u200d b",
            "\u200c",
            "a\u200d\u200cb",
            "a\u200bb",
            "a\u2066b",
            "a\u2028b",
            "\ufeffa",
        ),
    ],
)
def test_what_is_not_a_name_is_refused_and_changes_nothing(tmp_path, name):
    write_cluster_names(tmp_path, NAMES)
    with pytest.raises(ValueError, match="name"):
        write_cluster_names(tmp_path, {1: "dent", 2: name})
    assert read_cluster_names(tmp_path) == NAMES


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "Expecting"),
        ("[]", "its format"),
        ('{"format": "other", "names": {}}', "its format"),
        ('{"format": "hf-plr-names-1"}', "it holds no names"),
        ('{"format": "hf-plr-names-1", "names": {"x": "a"}}', "'x' is not the number"),
        ('{"format": "hf-plr-names-1", "names": {"-1": "a"}}', "'-1' is not the number"),
        ('{"format": "hf-plr-names-1", "names": {"1": 5}}', "not int"),
        ('{"format": "hf-plr-names-1", "names": {"1": "a\\nb"}}', "one line"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(tmp_path, content, fault):
    (tmp_path / "cluster_names.json").write_text(content)
    with pytest.raises(ValueError, match=rf"cluster_names.json cannot be read as names of clusters: .*{fault}"):
        read_cluster_names(tmp_path)


def test_a_cluster_is_shown_with_its_name_and_number():
    assert format_cluster(3, NAMES) == "crack (3)"
    assert format_cluster(4, NAMES) == "4"


def test_names_go_with_clusters_to_their_new_numbers():
    events = RunEvents(kept=((1,), (2, 7), (3, 8)), died=(5,))
    assert events.renumbered == {2: 7, 3: 8}
    names = {1: "crack", 2: "dent", 5: "rust", 8: "free"}
    assert carry_names(names, events.renumbered) == {**names, 7: "dent"}
    assert carry_names({3: "burr", 8: "free"}, events.renumbered) == {3: "burr", 8: "free"}  # it has a name of its own


# ---- a table of names ------------------------------------------------------------------------------------------------


def test_a_table_of_names(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text('\ufeffname, cluster\ncrack, 3\n"Riß, längs",11\n,7\ncrack,3\n\n', encoding="utf-8")
    assert read_names_table(path) == {3: "crack", 11: "Riß, längs", 7: None}


def test_a_table_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "names.csv"
    path.write_text(
        '\ufeffcluster;name\r\n3;crack\r\n11;"Riß, längs; tief"\r\n;\r\n ; ;\r\n', encoding="utf-8", newline=""
    )
    assert read_names_table(path) == {3: "crack", 11: "Riß, längs; tief"}
    path.write_text("cluster\tname\tnote\n3.0\tcrack\t\n11\tRiß\tx\n", encoding="utf-8")
    assert read_names_table(path) == {3: "crack", 11: "Riß"}
    path.write_text("cluster,name\n3,crack\n,\n,\n")
    assert read_names_table(path) == {3: "crack"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cluster,name\n3,a\n3,b\n", "line 3: cluster 3 has another name"),
        ("cluster,name\nx,a\n", "line 2: cluster 'x' is not an integer"),
        ("cluster,name\n-1,a\n", "line 2: -1 is not a cluster"),
        ("cluster,name\n1," + "x" * 61 + "\n", "line 2: the name 'x.*' has 61 characters"),
        ("cluster,name\n1\n", "line 2: 1 fields under a header of 2"),
        ("cluster,title\n1,a\n", "line 1: no column 'name'; the header must be cluster,name$"),
        ("cluster\n1\n", "line 1: no column 'name'"),
        ("cluster,name\n", "holds no names"),
    ],
)
def test_faults_of_a_table_of_names_are_told_with_their_line(tmp_path, text, fault):
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ValueError, match=fault):
        read_names_table(tmp_path / "names.csv")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_names_table(tmp_path / "absent.csv")


# ---- labels of a few samples -----------------------------------------------------------------------------------------


@pytest.fixture
def labels(tmp_path):
    """Rows 10 to 17 of a data set: clusters 0 (four), 4 (three), and one sample in none."""
    frame = {"index": np.arange(10, 18), "file": [f"{i}.png" for i in range(8)], "label": [0, 0, 0, 0, 4, 4, 4, -1]}
    pd.DataFrame(frame).to_parquet(tmp_path / "pseudo_labels.parquet")
    return read_labels(tmp_path)


def read_text(tmp_path, text, labels):
    (tmp_path / "few.csv").write_text(text)
    return read_few_labels(tmp_path / "few.csv", labels)


def test_samples_are_named_by_row_or_by_file(tmp_path, labels):
    by_row = read_text(tmp_path, "index,label\n10,a\n11,a\n12,b\n14,\n17,b\n10,a\n", labels)
    by_file = read_text(tmp_path, "label,file\na,0.png\na,1.png\nb,2.png\nb,7.png\n", labels)
    for few in (by_row, by_file):
        assert few.sample.tolist() == [0, 1, 2, 7]
        assert few.label == ["a", "a", "b", "b"]
    (vote,) = count_votes(by_row, np.asarray(labels.labels))
    assert (vote.cluster, vote.members, vote.labelled, vote.name) == (0, 4, 3, "a")


def test_half_is_no_majority(tmp_path, labels):
    few = read_text(tmp_path, "index,label\n10,a\n11,b\n14,c\n", labels)
    contested, single = count_votes(few, np.asarray(labels.labels))
    assert (contested.cluster, contested.name, contested.counts) == (0, None, (("a", 1), ("b", 1)))
    assert (single.cluster, single.name) == (4, "c")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("index,label\n10,a\n10,b\n", "line 3: this sample is 'b' here and 'a' in line 2"),
        ("index,label\n99,a\n", "line 2: sample 99 is not in"),
        ("file,label\nnone.png,a\n", "line 2: sample 'none.png' is not in"),
        ("index,file,label\n10,0.png,a\n", "line 1: one of the columns 'index' and 'file'"),
        ("label\na\n", "line 1: one of the columns 'index' and 'file'"),
        ("index,label\n10,\n", "holds no labels"),
        ("index,label\n", "holds no labels"),
        ("index,label\n1.5,a\n", "line 2: index '1.5' is not an integer"),
        ("index,label\n10," + "x" * 61 + "\n", "line 2: the name"),
    ],
)
def test_faults_of_labels_are_told_with_their_line(tmp_path, labels, text, fault):
    with pytest.raises(ValueError, match=fault):
        read_text(tmp_path, text, labels)


@pytest.mark.parametrize("prefix", ["", "data/", "/home/me/data/", "data\\", ".\\"])
def test_files_may_be_written_from_further_above_and_others_are_left_out(tmp_path, prefix, caplog):
    files = [f"{folder}/{i}.png" for folder in "ab" for i in range(4)]
    pd.DataFrame({"index": np.arange(8), "file": files, "label": 0}).to_parquet(tmp_path / "pseudo_labels.parquet")
    separator = "\\" if "\\" in prefix else "/"
    rows = [f"{prefix}{name.replace('/', separator)},x" for name in ("a/1.png", "b/1.png", "b/broken.png")]
    few = read_text(tmp_path, "\n".join(["file,label", *rows]), read_labels(tmp_path))
    assert few.sample.tolist() == [1, 5]
    assert "few.csv: 1 of 3 rows is of a sample not in" in caplog.text
    assert "and left out, first line 4: sample " in caplog.text


def test_a_file_of_several_rows_and_labels_without_files_are_refused(tmp_path, labels):
    frame = pd.read_parquet(tmp_path / "pseudo_labels.parquet")
    frame.assign(file="same.png").to_parquet(tmp_path / "pseudo_labels.parquet")
    with pytest.raises(ValueError, match=r"several rows of a file 'same.png': name the samples by 'index'"):
        read_text(tmp_path, "file,label\nsame.png,a\n", read_labels(tmp_path))
    frame.drop(columns="file").to_parquet(tmp_path / "pseudo_labels.parquet")
    with pytest.raises(ValueError, match="has no column 'file'"):
        read_text(tmp_path, "file,label\n0.png,a\n", read_labels(tmp_path))


def test_a_label_of_a_recording_is_of_all_its_segments_unless_it_names_one(tmp_path):
    frame = {"index": [5, 5, 5, 6], "file": ["a.wav"] * 3 + ["b.wav"], "start": [0.0, 2.0, 4.0, 0.0]}
    frame |= {"end": [2.0, 4.0, 6.0, 2.0], "label": [1, 1, 2, 2]}
    pd.DataFrame(frame).to_parquet(tmp_path / "pseudo_labels.parquet")
    labels = read_labels(tmp_path)
    for key in ("index,label\n5,frog\n6,rain\n", "file,label\na.wav,frog\nb.wav,rain\n"):
        few = read_text(tmp_path, key, labels)
        assert (few.sample.tolist(), few.label) == ([0, 1, 2, 3], ["frog", "frog", "frog", "rain"])
    few = read_text(tmp_path, "index,start,label\n5,2,frog\n5,4.0004,rain\n6,,rain\n", labels)
    assert (few.sample.tolist(), few.label) == ([1, 2, 3], ["frog", "rain", "rain"])
    with pytest.raises(ValueError, match="sample 5 with a segment at 3 s is not in"):
        read_text(tmp_path, "index,start,label\n5,3,frog\n", labels)


@given(st.integers(0, 9_999), st.integers(1, 60))
def test_votes_are_counts_and_the_order_of_labels_means_nothing(seed, n):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 6, 200)
    sample = np.sort(rng.choice(200, n, replace=False))
    given_labels = rng.choice(["a", "b", "c"], n).tolist()
    votes = count_votes(FewLabels(sample, given_labels), labels)
    order = rng.permutation(n)
    assert votes == count_votes(FewLabels(sample[order], [given_labels[i] for i in order]), labels)
    assert sum(vote.labelled for vote in votes) == (labels[sample] >= 0).sum()
    assert [vote.members for vote in votes] == sorted((vote.members for vote in votes), reverse=True)
    for vote in votes:
        counts = Counter(label for i, label in zip(sample, given_labels, strict=True) if labels[i] == vote.cluster)
        assert dict(vote.counts) == counts
        majority = [label for label, count in counts.items() if count > vote.labelled / 2]
        assert [vote.name] == (majority or [None])
