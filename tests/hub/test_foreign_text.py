"""Names that come with data are text: they never become a path that is written, nor markup in the model card."""

from __future__ import annotations

import ast
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Image
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_plr.data.decoded_cache import DecodedCache
from hf_plr.data.manifest import Manifest, ManifestFile
from hf_plr.hub.model_card import escape_markdown
from hf_plr.modality.base import quote_python
from hf_plr.units.encoder import write_units

NAMES = ["../../x", "/etc/x", "..", ".", "a/b\\c", "x" * 5000, "x]\n---\nfoo: bar", "con\x1b[2J"]
MARKUP = [
    "x]\n---\nfoo: bar\n---\n# Other",
    "<script>alert(1)</script>",
    "<!-- ",
    "a | b | c",
    "[here](https://example.org)",
    "![x](https://example.org/x.png)",
    "`code` **bold** __bold__ ~~gone~~ $$x$$",
    "```\n# Title\n```",
    '"); import os; ("',
    '\'"""\n',
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; \\",
    "back\\",
    "\u202egnp.exe",
    "tab\tand\0null",
    "x" * 3000,
    "- {a: b}: #c",
    "@org/../../x",
]


# ---- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "a\0b"])
def test_decoded_samples_and_manifests_stay_in_their_folder(tmp_path, name):
    folder = tmp_path / "cache"
    DecodedCache.in_file(folder, "images", name, range(0, 24, 12)).write(0, np.zeros(12, np.uint8))
    file = ManifestFile(folder, name, 2)
    file.write(Manifest(np.array([1])))
    assert file.read() is not None
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    patterns = r"images-[0-9a-f]{24}\.(bytes|marks)", r"manifest-[0-9a-f]{24}\.safetensors"
    assert all(re.fullmatch("|".join(patterns), path.name) for path in folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_writes_into_its_own_folders_whatever_names_the_data_have(
    make_trainer, some_digits, tmp_path, monkeypatch, name
):
    name = name.replace("/etc", str(tmp_path))
    working = tmp_path / "a" / "b" / "here"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)
    images = some_digits.select(range(60)).cast_column("image", Image(decode=False))
    rows = [{"bytes": row["image"]["bytes"], "path": name} for row in images]
    dataset = Dataset.from_dict({name: rows, "y": images["label"]}).cast_column(name, Image())
    dataset = dataset.cast_column("y", ClassLabel(names=[f"{name}{i}" for i in range(10)]))
    out = tmp_path / "a" / "b" / "out"
    folders = {"output_dir": str(out), "image_cache_dir": str(out / "images"), "feature_dir": str(out / "features")}
    trainer = make_trainer({"train_dataset": dataset, "eval_dataset": dataset}, num_train_epochs=1, **folders)
    trainer.train()
    trainer.score("after")
    trainer.save_model()
    trainer.save_labels(str(out))
    trainer.create_model_card(dataset=name)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(out)]
    assert outside == []
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_args.bin"),
        *(
            "metrics.json",
            "plr_state.safetensors",
            "pseudo_labels.parquet",
            "prototypes.safetensors",
            "known_clusters.safetensors",
            "tree.json",
            "run_history.json",
            "clusters.png",
        ),
        *("report.html", "report.json"),
        *("images", "features", "checkpoint-2"),
    }
    files = pd.read_parquet(out / "pseudo_labels.parquet")["file"]  # text in a column is all that is left of a path
    assert len(files) == 60


def test_files_of_units_are_text(tmp_path):
    names = [*NAMES, "a\0b"]
    units = [np.zeros(2, dtype=np.int64)] * len(names)
    write_units(tmp_path / "units.parquet", np.arange(len(names)), units, names)
    assert pq.read_table(tmp_path / "units.parquet")["file"].to_pylist() == names
    assert [path.name for path in tmp_path.iterdir()] == ["units.parquet"]


# ---- the model card --------------------------------------------------------------------------------------------------


def shape_of(text):
    """What Markdown makes of a text, without the words."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return [(token.type, [child.type for child in token.children or []]) for token in tokens]


@pytest.mark.parametrize("text", MARKUP)
def test_the_card_shows_names_and_does_nothing_else(make_trainer, tmp_path, text):
    trainer = make_trainer(label_column="label")

    def card(word, **arguments):
        trainer.scores = {word: {"knn_accuracy": 0.5}, "after": {"knn_accuracy": 0.75}}
        trainer.args.clusterer_kwargs = {"verbose": word}
        trainer.create_model_card(model_name=word, dataset=word, finetuned_from=word, **arguments)
        return ModelCard.load(tmp_path / "out" / "README.md")

    expected, found = card("plain"), card(text, tags=[text], license=text)
    assert found.data.tags == sorted([*expected.data.tags, text])
    assert found.data.license == text
    usual = {"library_name": "transformers", "pipeline_tag": "image-feature-extraction"}
    (index,) = found.data.to_dict()["model-index"]
    assert index["name"] == text
    assert {result["dataset"]["type"] for result in index["results"]} == {"local"}
    assert {result["metrics"][0]["value"] for result in index["results"]} == {0.75}
    without_index = {key: value for key, value in found.data.to_dict().items() if key != "model-index"}
    assert without_index == usual | {"tags": found.data.tags, "license": text}
    # "plain" may be the name of a model on the Hub, what is no such name is "a local checkpoint".
    assert expected.data.base_model == "plain"
    assert shape_of(found.text) == shape_of(expected.text)
    snippet = re.search(r"```python\n(.*?)\n```", found.text, re.DOTALL)[1]
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"]
    assert [call.args[0].value for call in loads] == [text, text]


def test_the_path_of_given_labels_is_text_in_the_card(make_trainer, tmp_path):
    path = tmp_path / "*my* <i>|labels.npy"
    np.save(path, np.arange(203) % 3)
    trainer = make_trainer(labels=str(path), num_train_epochs=1)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("* Last labels:")]
    assert "given by " in line
    assert r"\*my\* &lt;i&gt;\|labels.npy, the same in all epochs" in line


def test_names_in_the_metadata_are_plain_text_of_one_line(make_trainer, tmp_path):
    trainer = make_trainer(label_column="label")
    trainer.scores = {"R&D\n*before*": {"knn_accuracy": 0.75}}
    trainer.create_model_card(dataset="R&D\n*photos* <1>")
    (result,) = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert result.dataset_name == "R&D *photos* <1>"
    assert "(R&D *before* training, " in result.metric_name


def test_the_card_of_sounds_too(make_sound_trainer, tmp_path):
    trainer = make_sound_trainer()
    texts = []
    for word in ("plain", MARKUP[0]):
        trainer.create_model_card(model_name=word, dataset=word, tags=[word])
        card = ModelCard.load(tmp_path / "out" / "README.md")
        assert word in card.data.tags
        texts.append(card.text)
    assert shape_of(texts[0]) == shape_of(texts[1])


@given(st.text(max_size=60) | st.text("<>&[]()`*_|~$!#-\\ \nab", max_size=30))
@example("_x_")
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_one_run_of_text(text):
    markdown_it = pytest.importorskip("markdown_it")
    shown = escape_markdown(text)
    assert "\n" not in shown
    assert not re.search(r"[<>]", shown)
    markdown = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    inline = markdown.parse(f"word {shown} word")[1]
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    words = " ".join("".join(child.content for child in inline.children).split())
    expected = " ".join(text.split())
    assert words == " ".join(f"word {''.join(c if c.isprintable() else chr(0xFFFD) for c in expected)} word".split())


@given(st.text(max_size=40))
def test_any_text_is_one_python_literal(text):
    literal = quote_python(text)
    assert "\n" not in literal
    assert ast.literal_eval(literal) == text
