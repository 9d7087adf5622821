"""A token is written nowhere."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers

from hf_plr import PLRTrainingArguments
from hf_plr.models.vision import load_backbone
from hf_plr.report.file_names import METRICS_FILE
from hf_plr.report.metrics_file import write_metrics
from hf_plr.report.terminal_summary import format_summary

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
