"""`hf-plr name`: names from tables, the list, and the files that are written again."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.paths import REPOSITORY
from helpers.run_lines import make_history, write_run

import hf_plr
from hf_plr.cli import main
from hf_plr.refinement.cluster_tree import make_tree
from hf_plr.report.names import read_cluster_names, write_cluster_names
from hf_plr.report.tree_file import write_tree


@pytest.fixture
def out(tmp_path):
    return write_run(tmp_path / "out", make_history(3, 6))


@pytest.fixture
def name(out, tmp_path, capsys):
    """Runs the command with a table and returns its status and what it said."""

    def call(option, text=None):
        options = [option]
        if text is not None:
            (tmp_path / "table.csv").write_text(text)
            options.append(str(tmp_path / "table.csv"))
        status = main(["name", str(out), *options])
        said = capsys.readouterr()
        return status, said.out if status == 0 else said.err

    return call


def shown_names(folder: Path) -> dict[str, str]:
    """The names in a folder's page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', (folder / "report.html").read_text())
    assert found is not None
    return json.loads(found[1])["names"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def clusters_of(folder: Path) -> list[int]:
    labels = pd.read_parquet(folder / "pseudo_labels.parquet")["label"]
    return sorted(set(labels[labels >= 0]))


def test_names_go_into_the_file_the_page_and_the_card_and_nothing_else_changes(out, name):
    first, second, *_ = clusters_of(out)
    before = contents(out)
    status, said = name("--names", f"cluster,name\n{first},crack | *bold*\n{second},<b>dent\n")
    assert status == 0
    assert "2 names in" in said
    assert f"Wrote {out / 'cluster_names.json'}, {out / 'report.html'}, {out / 'README.md'}" in said
    assert read_cluster_names(out) == {first: "crack | *bold*", second: "<b>dent"}
    assert shown_names(out) == {str(first): "crack | *bold*", str(second): "<b>dent"}
    card = (out / "README.md").read_text()
    assert "People have named 2 of the" in card
    assert f"| crack \\| \\*bold\\* | {first} |" in card
    assert f"| &lt;b&gt;dent | {second} |" in card
    assert card.startswith("# A card\n")
    assert card.endswith("\nThe rest.\n")
    after = contents(out)
    assert {path for path in after if after[path] != before.get(path)} == {
        "cluster_names.json",
        "report.html",
        "README.md",
    }


def test_a_second_rename_needs_the_option_again(out, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["name", str(out), "--rename", "7=a", "8=b"])
    said = capsys.readouterr().err
    assert said == "hf-plr name: error: unrecognized arguments: 8=b; give --rename again before 8=b\n"


def test_other_names_stay_an_empty_one_is_taken_away_and_a_repetition_changes_nothing(out, name):
    first, second, third, *_ = clusters_of(out)
    write_cluster_names(out, {first: "crack", second: "dent", 999: "of an earlier run"})
    status, said = name("--names", f"cluster,name\n{first},fissure\n{second},\n{third},dent\n")
    assert status == 0
    assert f"Renamed: crack ({first}) is now fissure." in said
    assert f"Names taken away: dent ({second})." in said
    assert read_cluster_names(out) == {first: "fissure", third: "dent", 999: "of an earlier run"}
    before = contents(out)
    status, said = name("--names", f"cluster,name\n{first},fissure\n{second},\n{third},dent\n")
    assert (status, "Renamed" in said, "taken away" in said) == (0, False, False)
    assert contents(out) == before
    status, said = name("--names", f"cluster,name\n{first},\n{third},\n999,\n")
    assert status == 0
    assert "cluster_names.json" not in said.split("Wrote")[1]
    assert not (out / "cluster_names.json").exists()
    assert shown_names(out) == {}
    assert "People have named" not in (out / "README.md").read_text()


def test_clusters_of_earlier_runs_may_be_named_and_unknown_ones_may_not(out, name):
    died = make_history(3, 6).runs[1].events.died[0]
    assert died not in clusters_of(out)
    assert name("--names", f"cluster,name\n{died},gone\n")[0] == 0
    before = contents(out)
    status, said = name("--names", "cluster,name\n777,a\n778,b\n")
    assert status == 2
    assert f"cluster 777 and 1 more are not in {out}: hf-plr name {out} --list lists all" in said
    assert "cluster 777 is not in" in name("--names", "cluster,name\n777,a\n")[1]
    assert contents(out) == before


def test_labels_of_a_few_samples_name_clusters_by_majority(out, name):
    labels = pd.read_parquet(out / "pseudo_labels.parquet").set_index("index")["label"]
    largest, second, third, *_ = labels[labels >= 0].value_counts().index.tolist()
    members = {cluster: labels.index[labels == cluster].tolist() for cluster in (largest, second, third, -1)}
    rows = [(members[largest][i], "crack") for i in range(4)] + [(members[largest][4], "dent")]
    rows += [(members[second][0], "dent"), (members[second][1], "crack")]
    rows += [(members[third][0], "dent"), (members[-1][0], "crack")]
    write_cluster_names(out, {second: "old", third: "scratch"})
    status, said = name("--labels", "index,label\n" + "".join(f"{row},{label}\n" for row, label in rows))
    assert status == 0
    assert "9 labelled samples, 8 of them in 3 clusters: 2 named, 1 contested." in said
    assert re.search(rf"^ *{largest} +{len(members[largest]):,} +4 of 5  crack$", said, re.MULTILINE)
    assert re.search(rf"^ *{third} +{len(members[third]):,} +1 of 1  dent$", said, re.MULTILINE)
    contested = said.split("Contested, left as they are")[1]
    assert re.search(rf"^ *{second} +{len(members[second]):,}  crack 1, dent 1$", contested, re.MULTILINE)
    others = set(clusters_of(out)) - {largest, second, third}
    unlabelled = said.split("Without a labelled sample: ")[1].split(".")[0]
    assert unlabelled.startswith(f"{len(others)} clusters of {labels.isin(others).sum():,} samples: ")
    assert {int(number) for number in unlabelled.split(": ")[1].split(", ")} == others
    assert f"Renamed: scratch ({third}) is now dent." in said
    assert read_cluster_names(out) == {largest: "crack", second: "old", third: "dent"}


def test_names_are_corrected_without_a_table(out, capsys):
    def rename(*texts):
        status = main(["name", str(out), *(f"--rename={text}" for text in texts)])
        said = capsys.readouterr()
        return status, said.out if status == 0 else said.err

    first, second, third, fourth, *_ = clusters_of(out)
    write_cluster_names(out, {first: "crak", second: "crak", third: "dent"})
    status, said = rename("crak=crack", f"{third}=", f"{fourth} = a = b")
    assert status == 0
    assert read_cluster_names(out) == {first: "crack", second: "crack", fourth: "a = b"}
    assert f"Renamed: crak ({first}) is now crack." in said
    assert f"Named: {fourth} is now a = b." in said
    assert f"Names taken away: dent ({third})." in said
    assert shown_names(out)[str(first)] == "crack"
    assert "Nothing changes" in rename(f"{first}=crack")[1]
    before = contents(out)
    for text, fault in [
        ("crak=x", "no cluster is called 'crak': give a name from --list, or a number"),
        ("crack", "is not OLD=NEW, such as 7=dent, or crak=crack"),
        ("=crack", "is not OLD=NEW"),
        ("777=x", f"--rename: cluster 777 is not in {out}"),
        (f"{first}={'x' * 61}", "has 61 characters"),
    ]:
        status, said = rename(text)
        assert (status, said.count("\n")) == (2, 1)
        assert fault in said
    assert "gets another name in a --rename before" in rename(f"{first}=x", "crack=y")[1]
    assert contents(out) == before


@pytest.mark.parametrize("as_listed", [False, True])
def test_clusters_of_levels_have_names_of_their_own(out, capsys, tmp_path, as_listed):
    def call(*options):
        status = main(["name", str(out), *options])
        said = capsys.readouterr()
        return status, said.out if status == 0 else said.err

    ids = clusters_of(out)
    assert f"{out} holds no tree.json" in call("--level", "3", "--list")[1]
    labels = pd.read_parquet(out / "pseudo_labels.parquet")["label"]
    sizes = np.array([(labels == cluster).sum() for cluster in ids])
    tree = make_tree(np.array(ids), sizes, np.abs(np.subtract.outer(np.arange(len(ids)), np.arange(len(ids)))))
    write_tree(out, tree, {n: tree.cut(n) for n in (2, 3)})
    assert f"--level 4: {out} has no such level, it has 2, 3" in call("--level", "4", "--list")[1]
    write_cluster_names(out, {ids[0]: "crack"})
    level = hf_plr.read_levels(out)[3]
    (named,) = level.names({ids[0]: "crack"})
    whole = level.names({ids[0]: "crack"})[named]
    assert whole == f"crack and {len(level.members[named]) - 1} without a name"
    other, third = (number for number in level.members if number != named)
    assert re.search(rf"^ *{named} +[\d,]+  {whole}$", call("--level", "3", "--list")[1], re.MULTILINE)
    status, said = call(
        "--level", "3", "--rename", f"{whole if as_listed else 'crack'}=cracks", "--rename", f"{other}=dents"
    )
    assert status == 0
    assert f"Named: {other} is now dents." in said
    assert read_cluster_names(out) == {ids[0]: "crack"}  # those of the run's clusters stay
    assert hf_plr.read_levels(out)[3].own_names == {named: "cracks", other: "dents"}
    assert hf_plr.read_levels(out)[2].own_names == {}
    listed = call("--level", "3", "--list")[1]
    assert "2 of 3 clusters named." in listed
    assert re.search(rf"^ *{other} +{level.size(other):,}  dents$", listed, re.MULTILINE)
    assert main(["cut", str(out), "--clusters", "3", "--output", str(tmp_path / "cut.parquet")]) == 0
    table = pd.read_parquet(tmp_path / "cut.parquet")
    assert set(table["name"][table["label"] == other]) == {"dents"}
    assert call(f"--rename={ids[0]}=")[0] == 0  # names of the run's clusters leave those of levels as they are
    assert hf_plr.read_levels(out)[3].own_names == {named: "cracks", other: "dents"}
    (tmp_path / "few.csv").write_text(f"index,label\n{int(np.flatnonzero(level.apply(labels) == third)[0])},third\n")
    assert call("--level", "3", "--labels", str(tmp_path / "few.csv"))[0] == 0
    assert hf_plr.read_levels(out)[3].own_names[third] == "third"
    assert "cluster 777 is not in" in call("--level", "3", "--rename", "777=x")[1]
    assert call("--level", "3", f"--rename={named}=", f"--rename={other}=", f"--rename={third}=")[0] == 0
    assert not (out / "cluster_names.json").exists()


def test_the_list_changes_nothing(out, name):
    first, *others = clusters_of(out)
    write_cluster_names(out, {first: "crack", 999: "of an earlier run"})
    before = contents(out)
    status, said = name("--list")
    assert status == 0
    assert re.search(rf"^ *{first} +[\d,]+  crack$", said, re.MULTILINE)
    assert re.search(r"^ *999 +gone  of an earlier run$", said, re.MULTILINE)
    assert f"1 of {1 + len(others)} clusters named." in said
    sizes = [int(line.split()[1].replace(",", "")) for line in said.splitlines()[1 : 2 + len(others)]]
    assert sizes == sorted(sizes, reverse=True)
    assert contents(out) == before


def test_folders_without_page_card_and_history_are_named_too(out, name):
    for file in ("report.json", "report.html", "README.md", "run_history.json"):
        (out / file).unlink()
    (first, *_) = clusters_of(out)
    status, said = name("--names", f"cluster,name\n{first},crack\n")
    assert status == 0
    assert said.strip().endswith(f"Wrote {out / 'cluster_names.json'}")
    assert {path.name for path in out.iterdir()} == {"cluster_names.json", "metrics.json", "pseudo_labels.parquet"}
    (out / "README.md").write_text("A card of an older release.\n")
    assert "README.md" not in name("--names", f"cluster,name\n{first},dent\n")[1]
    assert (out / "README.md").read_text() == "A card of an older release.\n"


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("cluster_names.json", "cannot be read as names of clusters"),
        ("run_history.json", "cannot be read as a history of runs"),
    ],
)
def test_damaged_files_are_named_in_one_line(out, name, file, fault):
    (first, *_) = clusters_of(out)
    (out / file).write_text("{")
    status, said = name("--names", f"cluster,name\n{first},crack\n")
    assert status == 2
    assert said.count("\n") == 1
    assert f"{out / file} {fault}" in said


def test_a_damaged_report_takes_no_names_away(out, tmp_path, capsys):
    (first, *_) = clusters_of(out)
    (out / "report.json").write_text("{")
    assert main(["name", str(out), "--rename", f"{first}=crack"]) == 0
    said = capsys.readouterr()
    assert f"Named: {first} is now crack." in said.out
    assert f"Wrote {out / 'cluster_names.json'}, {out / 'README.md'}" in said.out
    assert "hf-plr name: the names are kept, but not shown everywhere: " in said.err
    assert f"{out / 'report.json'} cannot be read as the data of a report" in said.err
    assert read_cluster_names(out) == {first: "crack"}
    assert "crack" in (out / "README.md").read_text()


def test_pages_that_a_full_disk_keeps_from_being_written_are_named(out, capsys, monkeypatch):
    (first, *_) = clusters_of(out)

    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_plr.report.html.earlier_runs.render_again", fail)
    monkeypatch.setattr("hf_plr.hub.people_card.write_people_into_card", fail)
    assert main(["name", str(out), "--rename", f"{first}=crack"]) == 0
    said = capsys.readouterr().err
    for page in ("report.html", "README.md"):
        assert f"not shown everywhere: {out / page} cannot be written: [Errno 28] No space left on device" in said
    assert read_cluster_names(out) == {first: "crack"}


def test_accents_may_be_composed_otherwise_than_on_the_disk(out, tmp_path):
    table = pd.read_parquet(out / "pseudo_labels.parquet")
    table["file"] = [unicodedata.normalize("NFD", f"Äste/{i}.png") for i in range(len(table))]
    table.to_parquet(out / "pseudo_labels.parquet")
    cluster = int(table["label"].mode()[0])
    members = table.index[table["label"] == cluster][:5]
    rows = "".join(f"Äste/{i}.png,crack\n" for i in members)
    (tmp_path / "few.csv").write_text(f"file,label\n{unicodedata.normalize('NFC', rows)}", encoding="utf-8")
    assert main(["name", str(out), "--labels", str(tmp_path / "few.csv")]) == 0
    assert read_cluster_names(out) == {cluster: "crack"}


def test_a_bare_file_name_is_told_from_the_paths_that_end_in_it(out, tmp_path, capsys):
    table = pd.read_parquet(out / "pseudo_labels.parquet")
    table["file"] = [f"{'ab'[i % 2]}/{i // 2}.png" for i in range(len(table))]
    table.to_parquet(out / "pseudo_labels.parquet")
    (tmp_path / "few.csv").write_text("file,label\n3.png,crack\n")
    assert main(["name", str(out), "--labels", str(tmp_path / "few.csv")]) == 2
    assert "line 2: sample '3.png' (in folders: 2, such as 'a/3.png') is not in" in capsys.readouterr().err


def test_what_is_no_run_of_samples_is_refused(tmp_path, capsys):
    (tmp_path / "names.csv").write_text("cluster,name\n1,a\n")
    assert main(["name", str(tmp_path), "--names", str(tmp_path / "names.csv")]) == 2
    assert "holds no pseudo_labels.parquet: naming clusters needs the output folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["name", str(tmp_path)])
    assert "one of the arguments --names --labels --rename --list is required" in capsys.readouterr().err


def test_an_interrupted_command_leaves_whole_files_and_is_repeated(out, name, monkeypatch):
    (first, *_) = clusters_of(out)
    text = f"cluster,name\n{first},crack\n"
    page = (out / "report.html").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("hf_plr.report.html.earlier_runs.render", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        status, said = name("--names", text)
    assert (status, "report.html" in said) == (0, False)
    assert (out / "report.html").read_bytes() == page
    assert not list(out.glob("*.tmp"))
    assert name("--names", text)[0] == 0
    assert shown_names(out) == {str(first): "crack"}


def test_names_need_no_torch(out, tmp_path):
    (first, *_) = clusters_of(out)
    (tmp_path / "names.csv").write_text(f"cluster,name\n{first},crack\n")
    code = "import sys; from hf_plr.cli import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "name", str(out), "--names", str(tmp_path / "names.csv")]
    subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True)
    assert read_cluster_names(out) == {first: "crack"}


def test_the_command_is_a_module_too(out):
    command = [sys.executable, "-m", "hf_plr.cli", "name", str(out), "--list"]
    run = subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert "clusters named." in run.stdout
    failed = subprocess.run([*command[:-1], "--rename=none=x"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr.startswith("hf-plr name: error: ")) == (2, True)


def test_many_clusters_are_listed_in_short(tmp_path, capsys):
    out = tmp_path / "many"
    out.mkdir()
    labels = np.repeat(np.arange(60), 3)
    pd.DataFrame({"index": np.arange(180), "label": labels}).to_parquet(out / "pseudo_labels.parquet")
    (tmp_path / "few.csv").write_text("index,label\n0,a\n1,b\n2,c\n")
    assert main(["name", str(out), "--labels", str(tmp_path / "few.csv")]) == 0
    said = capsys.readouterr().out
    assert "Without a labelled sample: 59 clusters of 177 samples: 1, 2, 3," in said
    assert "20 and 39 more." in said
    assert not (out / "cluster_names.json").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_names_that_the_terminal_has_no_characters_for_are_shown_as_escapes(out, encoding):
    command = [sys.executable, "-m", "hf_plr.cli", "name", str(out)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    name = "\N{CYRILLIC SMALL LETTER A}"  # in none of them but UTF-8
    cluster = clusters_of(out)[0]
    run = functools.partial(subprocess.run, cwd=REPOSITORY, env=environment, capture_output=True)
    named = run([*command, "--rename", f"{cluster}={name}"])
    assert (named.returncode, named.stderr) == (0, b"")
    shown = name.encode() if encoding == "utf-8" else rb"\u0430"
    assert b"is now " + shown in named.stdout
    assert shown_names(out) == {str(cluster): name}
    assert b"  " + shown in run([*command, "--list"]).stdout


def test_pages_are_written_before_anything_is_said(out, monkeypatch):
    class ClosedPipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    cluster = clusters_of(out)[0]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", ClosedPipe())
        assert main(["name", str(out), "--rename", f"{cluster}=crack"]) == 128 + signal.SIGPIPE
    assert shown_names(out) == {str(cluster): "crack"}
