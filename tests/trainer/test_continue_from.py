"""`continue_from`: a run on grown or changed data takes over labels, numbers, names and weights of the run before."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from helpers import tiny
from helpers.run_lines import make_audit
from helpers.runs import StopAt, assert_same_run
from transformers import TrainingArguments

from hf_plr import KMeans, PLRTrainer, PLRTrainingArguments, PseudoLabelRefiner, read_levels
from hf_plr.recipe_tools.output_folder import OutputArguments
from hf_plr.recipe_tools.running import score_and_train
from hf_plr.report.names import read_cluster_names, write_cluster_names
from hf_plr.report.run_history import RunHistory
from hf_plr.trainer import base_trainer, predecessor
from hf_plr.trainer.checkpoints.finding import last_complete_checkpoint
from hf_plr.trainer.continuation import open_continuation
from hf_plr.training_args.defaults import FROM_SCRATCH, PRETRAINED

SETTINGS = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "num_clusters": 12, "report": "no"}


def finish(trainer):
    """Train, and write what recipes write; returns the labels by row."""
    trainer.train()
    trainer.save_model()
    trainer.save_labels(trainer.args.output_dir)
    return read_labels(trainer.args.output_dir)


def read_labels(folder):
    return pd.read_parquet(f"{folder}/pseudo_labels.parquet").set_index("index")["label"]


def continue_run(out, data, before, trainer=None, model=None, **arguments):
    """A trainer that continues the run in `before`; without a model it starts from its weights."""
    settings = {**SETTINGS, "disable_tqdm": True, "use_cpu": True, "continue_from": str(before), **arguments}
    return PLRTrainer(model, PLRTrainingArguments(str(out), **settings), data, **(trainer or {}))


@pytest.fixture(scope="module")
def grown_digits(all_digits):
    """403 digits; a first run had 203 of them, without the first three and with three others."""
    return all_digits.select(range(3, 406))


@pytest.fixture(scope="module")
def first(tmp_path_factory, all_digits):
    """A finished first run on 203 digits; it is only read."""
    out = tmp_path_factory.mktemp("first") / "first"
    finish(tiny.image_trainer(out, all_digits.select(range(203)), **SETTINGS, refinement="auto"))
    write_cluster_names(out, {0: "nought", 999: "gone long ago"})
    return out


@pytest.mark.parametrize("refinement", ["auto", "consensus", "slr", "soft", "joint", "rlcc", "none"])
def test_the_first_stage_continues_the_last_labels(first, grown_digits, tmp_path, refinement):
    last = read_labels(first)
    trainer = continue_run(tmp_path / "out", grown_digits, first, refinement=refinement)
    seen = {}
    begin = trainer.begin_epoch

    def note(epoch):
        if epoch == 0:
            seen["labels"], seen["previous"] = trainer.pseudo_labels.labels, trainer.pseudo_labels.previous_labels
        begin(epoch)

    trainer.begin_epoch = note
    finish(trainer)
    np.testing.assert_array_equal(seen["previous"][:200], last[3:])
    is_new = np.arange(403) >= 200
    assert set(seen["previous"][is_new]) <= {-1, *last}
    assert trainer.continuation.n_fitting == (seen["previous"][is_new] >= 0).sum() > 150
    assert (seen["labels"][:200] == last[3:]).mean() > 0.5  # by chance a twelfth
    highest = RunHistory.read(first).next_number
    assert all(label in {-1, *last} or label >= highest for label in seen["labels"])
    stage = next(entry for entry in trainer.state.log_history if "plr/clusters" in entry)
    assert {"plr/agreement_ari", "plr/churn", "plr/kept"} <= stage.keys()


def test_history_names_and_digests_are_written(first, grown_digits, tmp_path, capsys):
    own = RunHistory.read(first)
    last = read_labels(first)
    assert len(own.runs) == 1
    assert (own.runs[0].data, own.runs[0].events, own.from_scratch) == (None, None, True)
    assert own.runs[0].clusters == last[last >= 0].value_counts().sort_index().to_dict()
    assert own.next_number > last.max()
    out = tmp_path / "second"
    trainer = continue_run(out, grown_digits, first)
    now = finish(trainer)
    assert f"continues {first}: 200 of 203 samples known, 203 new, 3 removed" in capsys.readouterr().out
    history = RunHistory.read(out)
    assert history.runs[0] == own.runs[0]
    run = history.runs[1]
    assert (run.data.known, run.data.new, run.data.removed) == (200, 203, 3)
    assert (run.name, run.samples, run.noise) == ("second", 403, (now == -1).sum())
    assert run.id != history.runs[0].id
    assert history.next_number >= own.next_number
    assert history.from_scratch
    counts = run.events.counts()
    assert counts["kept"] > 0
    assert set(run.events.died) <= set(last)
    assert read_cluster_names(out) == {0: "nought", 999: "gone long ago"}  # also of clusters that are no more
    assert f"Of its {last[last >= 0].nunique()} clusters {counts['kept']} were kept" in trainer.summary().continued
    table = pd.read_parquet(out / "pseudo_labels.parquet")
    levels = [f"level_{n}" for n in read_levels(out)]
    assert table.columns.tolist() == ["index", "label", "previous_label", "confidence", "digest", *levels]
    assert table["digest"].str.fullmatch("[0-9a-f]{16}").all()
    before = pd.read_parquet(first / "pseudo_labels.parquet")
    np.testing.assert_array_equal(table["digest"][:200], before["digest"][3:])


def test_levels_live_on_in_runs_that_continue(first, grown_digits, all_digits, tmp_path):
    before = read_levels(first)
    assert len(before) > 1
    last = pd.read_parquet(first / "pseudo_labels.parquet").iloc[3:]  # those that the second run has, too
    out = tmp_path / "second"
    trainer = continue_run(out, grown_digits, first, num_clusters=20)
    finish(trainer)
    levels, next_number = read_levels(out), RunHistory.read(first).next_number
    assert list(levels) == list(before)  # the same levels, whatever gaps the new tree has
    table = pd.read_parquet(out / "pseudo_labels.parquet")
    for n, level in levels.items():
        column = f"level_{n}"
        np.testing.assert_array_equal(table[column], level.apply(table["label"]))
        shared = pd.crosstab(last[column].to_numpy(), table[column][:200].to_numpy())
        kept = [number for number in level.members if number in shared.index]
        assert kept
        for number in level.members:
            if number in kept:  # the mutual best overlap
                assert shared.loc[number, number] == shared[number].max() == shared.loc[number].max()
            else:
                assert number >= next_number
        best = [(a, shared.loc[a].idxmax()) for a in shared.index]
        assert all(a == b for a, b in best if shared[b].idxmax() == a and (shared[b] == shared[b].max()).sum() == 1)
    largest = max(number for level in levels.values() for number in level.members)
    assert RunHistory.read(out).next_number > largest
    trainer.save_labels(tmp_path / "again")
    assert (tmp_path / "again" / "tree.json").read_bytes() == (out / "tree.json").read_bytes()
    (n, level), *_ = levels.items()
    names = {next(iter(level.members)): "the largest"}
    write_cluster_names(out, {}, {n: names})
    finish(continue_run(tmp_path / "third", grown_digits, out, levels=[n, 11], num_clusters=20))
    third = read_levels(tmp_path / "third")
    assert list(third) == [n, 11]
    assert third[n].own_names == names  # names go along with numbers
    assert third[11].own_names == {}


def test_a_third_run_gives_no_number_of_the_first_again(first, all_digits, grown_digits, tmp_path):
    finish(continue_run(tmp_path / "second", grown_digits, first, num_clusters=6))
    trainer = continue_run(tmp_path / "third", all_digits.select(range(500)), tmp_path / "second", num_clusters=20)
    second = RunHistory.read(tmp_path / "second")
    audit = make_audit(6, {}, 400)  # while the third run is under way
    dataclasses.replace(second, runs=(second.runs[0], dataclasses.replace(second.runs[1], audit=audit))).write(
        tmp_path / "second"
    )
    third = finish(trainer)
    history = RunHistory.read(tmp_path / "third")
    assert [run.audit for run in history.runs] == [None, audit, None]
    assert [run.name for run in history.runs] == ["first", "second", "third"]
    gone = set(history.runs[0].clusters) - set(history.runs[1].clusters)
    assert gone  # six clusters are fewer than twelve
    assert not gone & set(third)
    had = set(history.runs[0].clusters) | set(history.runs[1].clusters)
    assert all(label >= RunHistory.read(tmp_path / "second").next_number for label in set(third) - had - {-1})


# ---- the start -------------------------------------------------------------------------------------------------------


def test_weights_and_defaults_are_those_of_the_run_before(first, grown_digits, tmp_path):
    settings = {"num_train_epochs": None, "per_device_train_batch_size": None}
    trainer = continue_run(tmp_path / "out", grown_digits, first, **settings)
    assert {name: getattr(trainer.args, name) for name in PRETRAINED["image"]} == {
        name: FROM_SCRATCH[name] for name in PRETRAINED["image"]
    }
    assert trainer.from_scratch
    for name, value in (
        PLRTrainer(str(first), PLRTrainingArguments(str(tmp_path / "x")), grown_digits).backbone.state_dict().items()
    ):
        assert (trainer.backbone.state_dict()[name] == value).all()
    history = RunHistory.read(first)
    pretrained = tmp_path / "pretrained"
    shutil.copytree(first, pretrained)
    RunHistory(history.next_number, history.runs, from_scratch=False).write(pretrained)
    trainer = continue_run(tmp_path / "out", grown_digits, pretrained, **settings)
    assert {name: getattr(trainer.args, name) for name in PRETRAINED["image"]} == PRETRAINED["image"]
    given = continue_run(tmp_path / "out", grown_digits, first, learning_rate=2e-4, num_train_epochs=3)
    assert (given.args.learning_rate, given.args.num_train_epochs) == (2e-4, 3)


def test_another_model_continues_the_labels(first, grown_digits, tmp_path):
    """Of another size, with random weights; the known samples alone say where their clusters are."""
    from hf_plr.models.vision import small_vit, small_vit_processor

    model = small_vit(32, 8, hidden_size=48, num_hidden_layers=2)
    parts = {"processing_class": small_vit_processor(32)}
    trainer = continue_run(tmp_path / "out", grown_digits, first, parts, model, num_train_epochs=1)
    assert trainer.from_scratch
    assert trainer.extractor.width == 48
    now, last = finish(trainer), read_labels(first)
    assert (now[:200].to_numpy() == last[3:].to_numpy()).mean() > 0.4


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saves_model", [False, True])
def test_labels_that_were_saved_elsewhere_are_missed(grown_digits, tmp_path, saves_model):
    out = tmp_path / "o"
    trainer = tiny.image_trainer(out, grown_digits.select(range(100)), num_train_epochs=1)
    trainer.train()
    trainer.save_labels(str(tmp_path / "labels"))
    if saves_model:
        trainer.save_model()
    with pytest.raises(ValueError, match=r"trained to its end, but its labels were not saved there: .* save_labels\('"):
        predecessor.Predecessor.read(str(out))
    trainer.save_model()
    trainer.save_labels(str(out))
    continue_run(tmp_path / "next", grown_digits, out)


def test_folders_that_cannot_be_continued_are_refused(first, grown_digits, tmp_path):
    def refused(folder, **arguments):
        with pytest.raises(ValueError) as raised:  # noqa: PT011  # what it says is looked at
            continue_run(tmp_path / "out", grown_digits, folder, **arguments)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "is not a folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no pseudo_labels.parquet" in refused(tmp_path / "empty")
    stopped = {"callbacks": [StopAt(4)]}
    tiny.image_trainer(tmp_path / "unfinished", grown_digits.select(range(100)), stopped, num_train_epochs=2).train()
    assert "holds an unfinished run" in refused(tmp_path / "unfinished")
    assert "is output_dir, too" in refused(tmp_path / "out")
    assert "has no effect on given labels" in refused(first, labels=str(first / "pseudo_labels.parquet"))
    for name, content, fault in (
        ("run_history.json", "{}", "cannot be read as a history of runs"),
        ("cluster_names.json", "[]", "cannot be read as names of clusters"),
        ("pseudo_labels.parquet", "PAR1", "cannot be read as the labels of a run"),
    ):
        damaged = tmp_path / f"damaged-{name}"
        shutil.copytree(first, damaged)
        (damaged / name).write_text(content)
        assert f"{damaged / name} {fault}" in refused(damaged)
    (shutil.copytree(first, tmp_path / "no_weights") / "config.json").unlink()
    assert "holds no weights: name a model to start from" in refused(tmp_path / "no_weights")


def test_a_run_that_begins_anew_needs_the_folder_before(first, tmp_path):
    @dataclass
    class OfRecipe(OutputArguments, PLRTrainingArguments):
        pass

    folder = tmp_path / "out" / "checkpoint-3"
    folder.mkdir(parents=True)
    with pytest.raises(TypeError, match="args must be PLRTrainingArguments, not TrainingArguments"):
        PLRTrainer("model", TrainingArguments(tmp_path / "other"))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predecessor, "_find_own_checkpoint", lambda *where: found.append(where))
        for overwrite, searched in ((False, 1), (True, 0)):
            args = OfRecipe(str(tmp_path / "out"), overwrite=overwrite, continue_from=str(tmp_path / "gone"))
            found.clear()
            with pytest.raises(ValueError, match="is not a folder"):
                open_continuation(args)
            assert len(found) == searched


def test_data_without_a_known_sample_are_refused_before_training(first, all_digits, tmp_path):
    trainer = continue_run(tmp_path / "out", all_digits.select(range(300, 400)), first)
    with pytest.raises(ValueError, match=r"none of these 100 samples: continue_from needs the data of that run"):
        trainer.train()


def test_a_folder_of_an_older_release_has_no_digests_and_no_history(first, grown_digits, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(first, older)
    (older / "run_history.json").unlink()
    (older / "metrics.json").write_text("{}")  # which recipes write last
    table = pd.read_parquet(older / "pseudo_labels.parquet").drop(columns="digest")
    table.to_parquet(older / "pseudo_labels.parquet")
    trainer = continue_run(tmp_path / "out", grown_digits, older)
    with pytest.raises(ValueError, match="by an older release, without digests of contents"):
        trainer.train()
    table["file"] = [f"{row}.png" for row in table["index"]]
    table.to_parquet(older / "pseudo_labels.parquet")
    folder = tmp_path / "images"
    folder.mkdir()
    for row, sample in enumerate(grown_digits.select(range(250)), start=3):
        sample["image"].save(folder / f"{row}.png")
    from hf_plr.data.loading import load_train_and_test

    images, _ = load_train_and_test(str(folder), None, "train", "image")
    finish(continue_run(tmp_path / "out", images, older, num_train_epochs=1))
    history = RunHistory.read(tmp_path / "out")
    assert history.runs[1].data.known == 200
    assert [run.name for run in history.runs] == ["older", "out"]
    assert history.runs[0].clusters == table["label"].value_counts().to_dict()


def test_a_run_before_that_does_not_fit_is_refused_before_anything_is_decoded_or_removed(
    first, all_digits, some_sounds, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise AssertionError("samples were decoded")

    monkeypatch.setattr(base_trainer.BaseTrainer, "check_samples", fail)
    others = all_digits.select(range(1_000, 1_600))
    new = tmp_path / "new"
    with pytest.raises(ValueError, match=r"none of these 600 samples: continue_from needs the data of that run"):
        continue_run(new, others, first).train()
    assert not new.exists()
    out = tmp_path / "out"
    shutil.copytree(first, out)
    (out / "checkpoint-3").mkdir()
    before = sorted(out.rglob("*"))
    trainer = continue_run(out, others, first)
    arguments = OutputArguments(output_dir=str(out), overwrite=True)
    with pytest.raises(ValueError, match=r"none of these 600 samples"):
        score_and_train(trainer, arguments, np.arange(600))
    assert sorted(out.rglob("*")) == before
    # where a single one of them is known, it goes on
    few = all_digits.select([*range(1_000, 1_600), 7])
    with pytest.raises(AssertionError, match="samples were decoded"):
        continue_run(out, few, first).train()
    older = shutil.copytree(first, tmp_path / "older")  # without digests
    table = pd.read_parquet(older / "pseudo_labels.parquet").drop(columns="digest")
    table.to_parquet(older / "pseudo_labels.parquet")
    with pytest.raises(ValueError, match="was written by an older release, without digests of contents"):
        continue_run(out, others, older).train()
    (older / "tree.json").write_text("{")
    with pytest.raises(ValueError, match=r"tree\.json cannot be read as a tree of clusters"):
        continue_run(new, others, older)


# ---- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop_at", "settings"), [(5, {}), (13, {"refinement": "slr", "ema_decay": 0.9})])
def test_a_continued_run_resumes_bit_for_bit_without_the_folder_before(
    first, grown_digits, tmp_path, stop_at, settings
):
    before = tmp_path / "before"
    shutil.copytree(first, before)
    whole = continue_run(tmp_path / "whole", grown_digits, before, **settings)
    whole_labels = finish(whole)
    stop = {"callbacks": [StopAt(stop_at)]}
    continue_run(tmp_path / "part", grown_digits, before, stop, **settings).train()
    shutil.move(before, tmp_path / "moved")
    resumed = continue_run(tmp_path / "part", grown_digits, before, **settings)
    assert resumed.from_scratch
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    resumed.save_labels(tmp_path / "part")
    np.testing.assert_array_equal(read_labels(tmp_path / "part"), whole_labels)
    histories = [RunHistory.read(tmp_path / name) for name in ("whole", "part")]
    assert histories[0].next_number == histories[1].next_number
    assert histories[0].runs[0] == histories[1].runs[0]
    assert histories[0].runs[1].events == histories[1].runs[1].events
    assert histories[0].runs[1].data == histories[1].runs[1].data
    assert read_cluster_names(tmp_path / "part") == read_cluster_names(tmp_path / "moved")
    assert (tmp_path / "part" / "tree.json").read_bytes() == (tmp_path / "whole" / "tree.json").read_bytes()
    with pytest.raises(ValueError, match="is gone: without it this run can be resumed, not started"):
        continue_run(tmp_path / "part", grown_digits, before, **settings).train()
    shutil.rmtree(tmp_path / "part")
    with pytest.raises(ValueError, match="is not a folder"):
        continue_run(tmp_path / "part", grown_digits, before, **settings)


def test_another_run_before_is_another_setting(first, grown_digits, tmp_path):
    stop = {"callbacks": [StopAt(5)]}
    continue_run(tmp_path / "part", grown_digits, first, stop).train()
    other = tmp_path / "other"
    shutil.copytree(first, other)
    with pytest.raises(ValueError, match=r"continue_from was .*first.* and is .*other"):
        continue_run(tmp_path / "part", grown_digits, other).train(resume_from_checkpoint=True)


def test_a_damaged_state_is_named(first, grown_digits, tmp_path):
    trainer = continue_run(tmp_path / "out", grown_digits, first, num_train_epochs=1)
    trainer.train()
    state = trainer.label_state()
    checkpoint, _ = last_complete_checkpoint(tmp_path / "out")
    fresh = continue_run(tmp_path / "out", grown_digits, first, num_train_epochs=1)
    for name, value, fault in (
        ("continued.about", np.frombuffer(b"{}", np.uint8), "'continued.about' tells of no run"),
        ("continued.last", np.zeros(3, np.int32), "'continued.last' holds int32 of shape"),
        ("continued.ids", np.array([-4]), "'continued.ids' holds values from -4"),
    ):
        with pytest.raises(ValueError, match=fault):
            fresh.load_label_state({**state, name: value}, str(checkpoint))
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            fresh.load_label_state({key: array for key, array in state.items() if key != name}, str(checkpoint))
    assert json.loads(state["continued.about"].tobytes())["names"] == {"0": "nought", "999": "gone long ago"}


# ---- other parts of a run --------------------------------------------------------------------------------------------


def test_an_own_refiner_and_density_clusters_are_continued(first, grown_digits, tmp_path):
    last = read_labels(first)
    own = {"refiner": PseudoLabelRefiner.from_preset("slr", linkage="ward")}
    arguments = {"clusterer": "agglomerative", "num_train_epochs": 1}
    now = finish(continue_run(tmp_path / "out", grown_digits, first, own, **arguments))
    assert (now[:200].to_numpy() == last[3:].to_numpy()).mean() > 0.4
    density = {"clusterer": "dbscan", "clusterer_kwargs": {"eps": 0.6, "k1": 12}, "num_clusters": None}
    trainer = continue_run(tmp_path / "dbscan", grown_digits, first, num_train_epochs=1, **density)
    finish(trainer)
    assert trainer.summary().continued.startswith(f"Continues {first}: 200 of 203 samples known")


def test_recordings_in_segments_are_continued(some_sounds, tmp_path):
    settings = {**SETTINGS, "num_train_epochs": 1, "num_clusters": 6, "segment_seconds": 0.25}
    before = tmp_path / "sounds"
    trainer = tiny.sound_trainer(before, some_sounds.select(range(40)), PLRTrainer, **settings)
    finish(trainer)
    settings = {**settings, "per_device_eval_batch_size": 8}
    trainer = continue_run(tmp_path / "out", some_sounds.select(range(10, 60)), before, **settings)
    finish(trainer)
    data = RunHistory.read(tmp_path / "out").runs[1].data
    before, now = (pd.read_parquet(tmp_path / name / "pseudo_labels.parquet") for name in ("sounds", "out"))
    assert data.removed == (before["index"] < 10).sum()
    assert data.known == (before["index"] >= 10).sum()
    assert data.known + data.new == len(now)
    whole = continue_run(tmp_path / "whole", some_sounds, tmp_path / "sounds", **{**settings, "segment_seconds": None})
    with pytest.raises(ValueError, match="has labels of segments, but this run trains on whole samples"):
        whole.train()


def test_centers_of_ones_own_are_no_reason_to_stop(first, grown_digits, tmp_path):
    clusterer = KMeans(12, init=np.random.default_rng(0).normal(size=(12, 32)).astype(np.float32))
    trainer = continue_run(
        tmp_path / "second", grown_digits, first, {"clusterer": clusterer}, num_train_epochs=1, num_clusters=None
    )
    trainer.train()
    assert trainer.pseudo_labels.n_clusters > 1
