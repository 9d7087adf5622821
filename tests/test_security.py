"""What the package's own source never does, and where a token never goes."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator

import pytest
import torch
import transformers
from helpers.paths import REPOSITORY

from hf_plr import PLRTrainingArguments
from hf_plr.models.vision import load_backbone
from hf_plr.report.outputs import METRICS_FILE, format_summary, write_metrics

SOURCES = sorted(path for folder in ("hf_plr", "recipes") for path in (REPOSITORY / folder).rglob("*.py"))
MODULES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle")
OUR_OWN = {"hf_plr/evaluation/__init__.py": ["evaluate.load"]}  # of a module of this package, by its path there
UNSAFE_YAML = ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")
YAML_LOADERS = ("Loader", "CLoader", "FullLoader", "CFullLoader", "UnsafeLoader", "CUnsafeLoader")
NAMES = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "evaluate.load"),
    *("pandas.read_pickle", "pandas.eval"),
    *(f"yaml.{name}" for name in (*UNSAFE_YAML, *YAML_LOADERS)),
}
KEYWORDS = {"allow_pickle": False, "shell": False, "weights_only": True}  # nothing but these values
REMOTE_CODE = "trust_remote_code"  # not set, whatever to


def findings(source: str) -> list[str]:
    """Everything in Python source that could run what a file or a shell says, with its line."""
    tree = ast.parse(source)
    imported = _imported(tree)
    return sorted(f"line {line}: {what}" for node in ast.walk(tree) for line, what in _in_node(node, imported))


def _imported(tree: ast.AST) -> dict[str, str]:
    """What the names that imports bind stand for, such as {"np": "numpy", "read": "yaml.load"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
            names |= {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _in_node(node: ast.AST, imported: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        whole = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        yield from ((node.lineno, name) for name in whole if name.split(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom):
            several = [f"{node.module}.{a.name}" for a in node.names]
            yield from ((node.lineno, name) for name in several if name in NAMES or name.endswith(".*"))
    elif isinstance(node, (ast.Attribute, ast.Name)):
        name = _full_name(node, imported)
        if name in NAMES or name.endswith((".read_pickle", f".{REMOTE_CODE}")) or name == REMOTE_CODE:
            yield node.lineno, name
    elif isinstance(node, ast.Constant) and node.value == REMOTE_CODE:
        yield node.lineno, REMOTE_CODE
    elif isinstance(node, ast.Call):
        yield from _in_call(node, imported)


def _in_call(node: ast.Call, imported: dict[str, str]) -> Iterator[tuple[int, str]]:
    called = _full_name(node.func, imported)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    for name, value in given.items():
        if name == REMOTE_CODE or (name in KEYWORDS and not _is(value, KEYWORDS[name])):
            yield node.lineno, str(name)
    if called == "numpy.load" and "allow_pickle" not in given:
        yield node.lineno, "numpy.load without allow_pickle=False"
    texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    if called == "getattr" and len(node.args) > 1 and texts:
        name = f"{_full_name(node.args[0], imported)}.{texts[0]}"
        if name in NAMES or name == "numpy.load":
            yield node.lineno, name
    if called == "importlib.import_module" and texts and str(texts[0]).split(".")[0] in MODULES:
        yield node.lineno, str(texts[0])


def _full_name(node: ast.AST, imported: dict[str, str]) -> str:
    """A dotted name as the module it comes from has it; empty for everything else."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, imported)}.{node.attr}"
    return ""


def _is(node: ast.AST, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_here_runs_what_a_file_says(path):
    found = findings(path.read_text(encoding="utf-8"))
    assert [one.split(": ")[1] for one in found] == OUR_OWN.get(str(path.relative_to(REPOSITORY)), [])


def test_all_sources_are_looked_at():
    assert len(SOURCES) > 60
    assert {"state.py", "label_files.py", "pixel_cache.py", "vit_plr.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("import importlib\nimportlib.import_module('dill')", "dill"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("import torch as t\nread = t.load", "torch.load"),
        ("from torch import load as read", "torch.load"),
        ("import torch\ngetattr(torch, 'load')('x')", "torch.load"),
        ("from torch import *", "torch.*"),
        ("import torch\ntorch.save(x)\ntorch.jit.load('x')", "torch.jit.load"),
        ("import numpy as np\nnp.load('x')", "numpy.load without"),
        ("import numpy as np\nnp.load('x', 'r', True)", "numpy.load without"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("import numpy as np\nnp.load('x', allow_pickle=wanted)", "allow_pickle"),
        ("from numpy.lib import format\nformat.read_array(f, allow_pickle=1)", "allow_pickle"),
        ("import pandas as pd\npd.read_pickle('x')", "pandas.read_pickle"),
        ("import yaml\nyaml.load(f, yaml.SafeLoader)", "yaml.load"),
        ("import yaml\nyaml.unsafe_load(f)", "yaml.unsafe_load"),
        ("import yaml\nread(f, yaml.FullLoader)", "yaml.FullLoader"),
        ("from yaml import load as safe_load\nsafe_load(f)", "yaml.load"),
        ("def f(text):\n    return eval(text)", "eval"),
        ("run = exec", "exec"),
        ("import builtins\nbuiltins.eval('1')", "builtins.eval"),
        ("import os\nos.system('ls')", "os.system"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell"),
        ("import subprocess as s\ns.Popen(command, shell=wanted)", "shell"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "trust_remote_code"),
        ("AutoModel.from_pretrained(name, trust_remote_code=False)", "trust_remote_code"),
        ("options = {'trust_remote_code': True}", "trust_remote_code"),
        ("args.trust_remote_code = True", "trust_remote_code"),
        ("load(x, weights_only=False)", "weights_only"),
        ("import evaluate\nevaluate.load('accuracy')", "evaluate.load"),
    ],
)
def test_the_search_finds(source, found):
    assert any(found in finding for finding in findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()\npattern = re.compile('x')",
        "import torch\ntorch.compile(model)\ntorch.save(x)",
        "import numpy as np\nnp.load('x', mmap_mode='r', allow_pickle=False)",
        "import yaml\nyaml.safe_load(f)",
        "import subprocess\nsubprocess.run(['ls'], shell=False, check=True)",
        "json.load(f)\ntrainer.load_state_dict(state)",
        '"""What trust_remote_code is, in words."""',
    ],
)
def test_the_search_finds_nothing_in(source):
    assert findings(source) == []


# ---- tokens ----------------------------------------------------------------------------------------------------------

SECRET = "hf_secretOfThisTest0123456789"


def files_with(folder, text):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes())


def test_a_token_is_in_no_file_and_no_log(make_trainer, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    transformers.logging.set_verbosity_debug()
    transformers.logging.enable_propagation()
    try:
        with caplog.at_level(logging.DEBUG):
            trainer = make_trainer(num_train_epochs=1, hub_token=SECRET, logging_first_step=True)
            trainer.train()
            trainer.score("after")
            trainer.save_model()
            trainer.save_labels(trainer.args.output_dir)
            trainer.create_model_card(dataset="digits")
            write_metrics(tmp_path / "out" / METRICS_FILE, trainer.summary(), 1.0)
            print(format_summary(trainer.summary(), 1.0, ("next", "what")), trainer.args, repr(trainer.args.to_dict()))
            with pytest.raises(ValueError, match="no/such-model") as refused:
                load_backbone("no/such-model")
    finally:
        transformers.logging.disable_propagation()
    written = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {"training_args.bin", "trainer_state.json", "README.md", METRICS_FILE, "plr_state.safetensors"} <= written
    assert files_with(tmp_path, SECRET) == []
    printed = capsys.readouterr()
    assert "<HUB_TOKEN>" in printed.out
    assert SECRET not in caplog.text + printed.out + printed.err + str(refused.value) + repr(refused.value.__cause__)
    assert trainer.args.hub_token == SECRET  # it is still there for a push
    stored = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert stored.hub_token is None
    assert stored.learning_rate == trainer.args.learning_rate


def test_the_search_for_a_token_finds_it(tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), hub_token=SECRET, use_cpu=True)
    torch.save(arguments, tmp_path / "stock.bin")
    torch.save(PLRTrainingArguments(str(tmp_path), hub_token=SECRET, use_cpu=True), tmp_path / "ours.bin")
    assert files_with(tmp_path, SECRET) == ["stock.bin"]
