"""The re-identification recipe: as a user runs it, and that identities of the target only score."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from helpers.launching import call, launch, load_script
from helpers.paths import RECIPES, REID_PLR
from helpers.runs import assert_same_run
from PIL import Image as PILImage
from sklearn.metrics import normalized_mutual_info_score
from transformers import AutoImageProcessor, AutoModel

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.cli import main
from hf_plr.data.content_digest import digest_content
from hf_plr.models.vision import small_vit_processor
from hf_plr.reid.reid_data import ReidData, ReidSplit, load_reid_data
from hf_plr.reid.retrieval_evaluator import KnownLabels, RetrievalEvaluator

CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))
SIZE = ["--image_height", "32", "--image_width", "16"]
SHORT = [
    *SIZE,
    *("--num_train_epochs", "2", "--per_device_train_batch_size", "36", "--disable_tqdm", "true", "--use_cpu", "true"),
    *("--cpu_threads", "1"),
]
TINY = [*SHORT, "--clusterer_kwargs", '{"eps": 0.7, "k1": 8, "k2": 3}', "--refinement", "slr"]


@pytest.fixture(scope="module")
def recipe():
    return load_script(REID_PLR)


def person(identity, camera, shot):
    """32 x 16 pixels: four coloured stripes say who it is, brightness says which camera, noise differs by shot."""
    colours = np.random.default_rng(identity).integers(40, 216, (4, 1, 3)).repeat(8, axis=0)
    noise = np.random.default_rng([identity, camera, shot]).normal(0, 12, (32, 16, 3))
    return PILImage.fromarray((colours + noise + 15 * (camera - 2)).clip(0, 255).astype(np.uint8))


def write_market(folder, identities, query_identities, shots=3):
    def save(part, identity, camera, shot, shown):
        (folder / part).mkdir(parents=True, exist_ok=True)
        person(shown, camera, shot).save(folder / part / f"{identity:04}_c{camera}s1_{shot:06}_00.jpg", quality=95)

    for camera in (1, 2, 3):
        for shot in range(shots):
            for identity in identities:
                save("bounding_box_train", identity, camera, shot, identity)
            for identity in query_identities:
                save("query" if shot == 0 else "bounding_box_test", identity, camera, shot, identity)
            save("bounding_box_test", 0, camera, shot, 1000 + shot)
        junk = folder / "bounding_box_test" / f"-1_c{camera}s1_000000_00.jpg"
        person(2000, camera, 0).save(junk)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    write_market(folder / "Market-1501-v15.09.15", range(1, 13), range(21, 27))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_market(folder, range(101, 113), range(121, 123))
    return folder


@pytest.mark.slow
def test_source_adaptation_scores_and_resume(target, source, tmp_path):
    out = tmp_path / "out"
    common = ["--dataset_name", target, "--source_dataset_name", source, "--output_dir", out, *TINY]
    halved = ["--per_device_train_batch_size", 18]
    run = launch(*common, *halved, "--source_epochs", "8", processes=2, script=REID_PLR)
    assert run.returncode == 0, run.stderr
    for words in ("before  source   after", "mAP", "Rank 1", "Rank 10", "ARI of the last labels"):
        assert words in run.stdout
    assert "trained on 108 images of 12 identities (" in run.stdout
    assert "queries in the gallery under other cameras" in run.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["scores"]) == ["before", "source", "after"]
    for scores in metrics["scores"].values():
        assert {"mAP", "rank_1", "rank_5", "rank_10"} < set(scores)
        assert 0.0 < scores["mAP"] <= 1.0
        assert (scores["queries"], scores["queries_without_match"]) == (18, 0)
    assert set(metrics["scores"]["after"]) - set(metrics["scores"]["source"]) == {"cluster_ari", "cluster_nmi"}
    labels = pd.read_parquet(out / "pseudo_labels.parquet")
    assert labels["index"].tolist() == list(range(108))
    for folder in (out, out / "source"):
        _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert dict(AutoImageProcessor.from_pretrained(folder).size) == {"height": 32, "width": 16}
    card = (out / "README.md").read_text()
    assert "| | before | source | after |\n|---|---|---|---|\n| mAP | 0." in card
    assert "* Before adaptation: trained with labels on 108 images of 12 identities" in card
    assert "* Start: random weights" in card

    weights = (out / "source" / "model.safetensors").stat().st_mtime_ns
    longer = [*common, "--num_train_epochs", 3, "--resume_from_checkpoint"]
    alone = call(*longer, script=REID_PLR)
    assert "processes was 2 and is 1" in alone.stderr
    onwards = launch(*longer, *halved, processes=2, script=REID_PLR)
    assert onwards.returncode == 0, onwards.stderr
    assert (out / "source" / "model.safetensors").stat().st_mtime_ns == weights  # the source is not trained again
    again = json.loads((out / "metrics.json").read_text())
    assert [again["scores"][moment] for moment in ("before", "source")] == [
        metrics["scores"][moment] for moment in ("before", "source")
    ]
    assert [entry["epoch"] for entry in again["epochs"]] == [0, 1.0, 2.0]


def parquet_folder(folder, identities):
    """A folder with the same 72 images in the same order, whatever the identities are said to be."""
    folder.mkdir()
    rows = [(identity, camera, shot) for identity in range(12) for camera in (1, 2) for shot in range(3)]
    columns = {
        "photo": [person(*row) for row in rows],
        "person": [None if identity is None else f"person {identity}" for identity in identities],
        "place": [row[1] for row in rows],
    }
    features = Features({"photo": Image(), "person": Value("string"), "place": Value("int64")})
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return folder


GIVEN = ["--dataset_name", "data", "--output_dir", "out"]
COLUMNS = ["--identity_column", "person", "--camera_column", "place"]


def test_identities_of_the_target_score_and_do_nothing_else(recipe, tmp_path, capsys):
    truth = np.repeat(np.arange(12), 6)
    runs = {}
    for name, identities in (("true", truth), ("shuffled", np.random.default_rng(0).permutation(truth))):
        folder = parquet_folder(tmp_path / name, identities)
        out = tmp_path / f"out-{name}"
        recipe.main(["--dataset_name", str(folder), "--output_dir", str(out), *COLUMNS, *TINY])
        labels = pd.read_parquet(out / "pseudo_labels.parquet")
        weights = AutoModel.from_pretrained(out).state_dict()
        runs[name] = labels, weights, json.loads((out / "metrics.json").read_text())["scores"]["after"]
    assert "every training image among those of other cameras" in capsys.readouterr().out
    assert (runs["true"][0]["label"] >= 0).any()
    pd.testing.assert_frame_equal(runs["true"][0], runs["shuffled"][0])
    assert all(torch.equal(weight, runs["shuffled"][1][name]) for name, weight in runs["true"][1].items())
    assert runs["true"][2] != runs["shuffled"][2]


def tiny_trainer(tiny_vit, tmp_path, data, source=None, **arguments):
    args = PLRTrainingArguments(str(tmp_path), num_train_epochs=1, use_cpu=True, disable_tqdm=True, **arguments)
    images = data.train.images if source is None else source.images
    known = None if source is None else KnownLabels(source.identities)
    trainer = PLRTrainer(
        tiny_vit(),
        args,
        images,
        processing_class=small_vit_processor(16),
        clusterer=known,
        evaluator=RetrievalEvaluator(data, is_trained_on=source is None),
    )
    if source is not None:
        trainer.check_samples()
        known.labels = source.identities[trainer.train_dataset.rows]
    return trainer


def test_the_trainer_of_a_target_is_given_images_alone(tiny_vit, target, tmp_path):
    data = load_reid_data(str(target))
    trainer = tiny_trainer(tiny_vit, tmp_path, data)
    assert trainer.label_column is None
    assert trainer.train_dataset.labels is None
    assert trainer.train_dataset.check()[0].keys() == {"index", "pixel_values"}


def test_a_source_is_trained_on_its_identities(tiny_vit, target, source, tmp_path):
    data, known = load_reid_data(str(target)), load_reid_data(str(source), camera_column=None).train
    trainer = tiny_trainer(tiny_vit, tmp_path, data, known, refinement="none", save_strategy="no")
    trainer.train()
    _, expected = np.unique(known.identities, return_inverse=True)
    np.testing.assert_array_equal(trainer.pseudo_labels.targets, expected)
    assert "cluster_ari" not in trainer.score("source")


def test_trainers_can_share_an_evaluator(tiny_vit, target, tmp_path):
    data = load_reid_data(str(target))
    first, second = (tiny_trainer(tiny_vit, tmp_path, data) for _ in range(2))
    alone = second.score("alone")
    stores = []
    extract = second.extract_features
    second.extract_features = lambda store: stores.append(store) or extract(store)
    second.evaluator = first.evaluator
    first.score("first")
    assert second.score("shared") == alone
    assert stores == [second.open_samples(split.images) for split in (data.query, data.gallery)]


def test_retrieval_is_scored_during_training_and_changes_nothing(tiny_vit, target, tmp_path):
    data, runs = load_reid_data(str(target)), []
    for every in (1, 0):
        trainer = tiny_trainer(tiny_vit, tmp_path / str(every), data, score_every=every, num_clusters=12)
        trainer.train()
        runs.append(trainer)
    scored, plain = runs
    (entry,) = [entry for entry in scored.state.log_history if "score/mAP" in entry]
    scored.state.log_history.remove(entry)
    assert_same_run(plain, scored)
    assert entry["epoch"] == 1
    assert entry["score/mAP_low"] < entry["score/mAP"] < entry["score/mAP_high"]
    (stage,) = [entry for entry in scored.state.log_history if "plr/seconds" in entry]
    after = scored.score("after")
    assert stage["score/pseudo_label_ari"] == entry["score/cluster_ari"] == after["cluster_ari"]
    identities = data.train.identities
    assert after["cluster_nmi"] == pytest.approx(normalized_mutual_info_score(identities, scored.pseudo_labels.labels))
    assert after["mAP"] == entry["score/mAP"]


def test_images_that_cannot_be_read_keep_the_rest_in_step(tiny_vit, target, tmp_path):
    data = load_reid_data(str(target))

    def damaged(split, row):
        images = split.images.cast_column("image", Image(decode=False)).to_list()
        images[row]["image"] = {"bytes": b"nothing", "path": None}
        return ReidSplit(Dataset.from_list(images, split.images.features), split.identities, split.cameras)

    broken = ReidData(damaged(data.train, 0), damaged(data.query, 3), damaged(data.gallery, 5))
    kept = [np.delete(np.arange(len(split.images)), row) for split, row in ((data.query, 3), (data.gallery, 5))]
    without = ReidData(data.train, data.query.select(kept[0]), data.gallery.select(kept[1]))
    scores = tiny_trainer(tiny_vit, tmp_path, broken, skip_unreadable=True).score("before")
    assert scores == pytest.approx(tiny_trainer(tiny_vit, tmp_path, without).score("before"))
    trainer = tiny_trainer(tiny_vit, tmp_path, data, damaged(data.train, 0), skip_unreadable=True)
    clusterer = trainer.labelings[0].stage.clusterer
    assert isinstance(clusterer.estimator, KnownLabels)
    assert clusterer.estimator.fit_predict(None).tolist() == data.train.identities[1:].tolist()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_configs_are_read(config):
    text = config.read_text(encoding="utf-8")
    name = re.search(r"recipes/(\w+)\.py", text)[1]
    recipe, args = load_script(RECIPES / f"{name}.py").parse(
        ["--config", str(config), "--dataset_name", "data", "--output_dir", "out"]
    )
    assert f"--config recipes/configs/{config.name}" in text
    if config.stem.startswith(("cluster_contrast", "transreid_ssl")):
        assert args.clusterer_kwargs["k1"] == 30
        assert recipe.image_height in (224, 256)
        total = args.num_train_epochs * args.steps_per_epoch
        assert sum(args.lr_scheduler_kwargs[part] for part in ("num_stable_steps", "num_decay_steps")) == 0.8 * total


def test_defaults_of_the_recipe_give_way_to_file_and_flags(recipe, tmp_path):
    (tmp_path / "run.yaml").write_text("refinement: slr\nclusterer_kwargs: {eps: 0.4}\nsamples_per_cluster: 8\n")
    _, args = recipe.parse(GIVEN)
    assert (args.clusterer, args.refinement, args.augmentation) == ("dbscan", "auto", "reid")
    _, args = recipe.parse([*GIVEN, "--config", str(tmp_path / "run.yaml"), "--samples_per_cluster", "16"])
    assert (args.refinement, args.clusterer_kwargs, args.samples_per_cluster) == ("slr", {"eps": 0.4}, 16)
    chosen, args = recipe.parse([*GIVEN, "--model_name_or_path", "model"])
    assert (args.learning_rate, chosen.source_learning_rate) == (3e-5, 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"--dataset_name is needed: .*Market-1501.*MSMT17.*VeRi-776.*--identity_column"),
        (GIVEN[:2], "--output_dir is needed"),
        ([*GIVEN, "--label_column", "x"], "--identity_column names the column"),
        ([*GIVEN, "--image_height", "64"], "give both or none"),
        ([*GIVEN, "--image_height", "64", "--image_width", "32", "--image_size", "84"], "give these alone"),
        ([*GIVEN, "--image_height", "4", "--image_width", "8"], "image_height=4 must be at least 8"),
        ([*GIVEN, "--source_epochs", "0"], r"source_epochs=0.0 must be above 0"),
    ],
)
def test_arguments_that_do_not_do(recipe, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        recipe.parse(arguments)
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_is_wrong_with_the_data_is_said_before_training(recipe, tmp_path, caplog):
    folder = parquet_folder(tmp_path / "data", np.arange(72))
    arguments = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "out"), *TINY]
    with pytest.raises(ValueError, match="identity_column='nobody' is not in the data set"):
        recipe.main([*arguments, "--identity_column", "nobody"])
    for columns in ([], COLUMNS):  # identities are not known, or everybody was seen once
        caplog.clear()
        options, args = recipe.parse([*arguments, *columns, "--use_cpu", "true"])
        target, _ = recipe.load(options, args)
        assert "Nothing is scored: no two images of" in caplog.text
        assert len(target.train.images) == 72


def test_labels_of_all_rows_are_refused_for_some_rows(recipe, tmp_path):
    folder = parquet_folder(tmp_path / "data", np.repeat(np.arange(12), 6))
    np.save(tmp_path / "labels.npy", np.arange(72) % 4)
    arguments = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "out"), *COLUMNS, *SHORT]
    with pytest.raises(ValueError, match="--max_samples 40 draws some rows, but --labels tells of all"):
        recipe.main([*arguments, "--labels", str(tmp_path / "labels.npy"), "--max_samples", "40"])


def test_given_labels_are_of_the_target_alone(tmp_path, capsys):
    recipe = load_script(REID_PLR)  # loaded last: pickle takes the class of the arguments by the name of its module
    folder = parquet_folder(tmp_path / "data", [*np.repeat(np.arange(11), 6), *[None] * 6])
    np.save(tmp_path / "labels.npy", np.arange(72) % 4)
    arguments = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "out"), *COLUMNS, *SIZE]
    few = [*("--num_train_epochs", "1", "--source_epochs", "1", "--use_cpu", "true", "--disable_tqdm", "true")]
    recipe.main(
        [
            *(*arguments, *few, "--source_dataset_name", str(folder), "--per_device_train_batch_size", "36"),
            *("--labels", str(tmp_path / "labels.npy"), "--cpu_threads", "1"),
        ]
    )
    labels = pd.read_parquet(tmp_path / "out" / "pseudo_labels.parquet")["label"]
    np.testing.assert_array_equal(labels, np.arange(72) % 4)
    assert "Trained on 66 images of 11 identities (data)" in capsys.readouterr().out  # nobody is known in six


def test_max_steps_and_the_metric_of_the_best_model_are_of_the_target_alone(tmp_path):
    recipe = load_script(REID_PLR)  # as above
    folder = parquet_folder(tmp_path / "data", np.repeat(np.arange(12), 6))
    out = tmp_path / "out"
    few = ["--source_epochs", "2", "--steps_per_epoch", "3", "--max_steps", "1", "--score_every", "0"]
    few += ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end", "true"]
    few += ["--refinement", "soft", "--num_labelings", "2", "--metric_for_best_model", "plr/labelings_ari"]
    recipe.main(
        ["--dataset_name", str(folder), "--source_dataset_name", str(folder), "--output_dir", str(out), *TINY]
        + ["--identity_column", "person", *few]
    )
    steps = [json.loads((where / "metrics.json").read_text())["steps"] for where in (out / "source", out)]
    assert steps == [6, 1]


def test_labels_are_pushed_with_the_images_of_the_run(target, tmp_path, monkeypatch, capsys):
    pushed = []  # names of images

    def keep(folder, repo_id, *, media, **options):
        pushed.append([Path(row["path"]).name for row in media["image"]])
        return repo_id, "https://hub"

    monkeypatch.setattr("hf_plr.hub.label_dataset.push_labels", keep)
    recipe, out = load_script(REID_PLR), tmp_path / "out"  # as above
    recipe.main(["--dataset_name", str(target), "--output_dir", str(out), *TINY, "--num_train_epochs", "1"])
    push = ["push-labels", "--repo", "me/labels", "--with_media"]
    assert main([*push, str(target), str(out)]) == 0, capsys.readouterr().err
    assert pushed.pop() == pd.read_parquet(out / "pseudo_labels.parquet")["file"].tolist()

    (folder,) = target.iterdir()
    files = sorted(str(path) for path in folder.rglob("*.jpg"))  # as `hf-plr train image` takes them
    digests = [f"{digest_content(file):016x}" for file in files]
    frame = pd.DataFrame(
        {"index": range(len(files)), "label": 0, "digest": digests, "file": map(os.path.basename, files)}
    )
    frame.to_parquet(out / "pseudo_labels.parquet")
    assert main([*push, str(target), str(out)]) == 0, capsys.readouterr().err
    assert pushed == [frame["file"].tolist()]
    frame.assign(digest=digests[::-1]).to_parquet(out / "pseudo_labels.parquet")
    assert main([*push, str(target), str(out)]) == 2
    assert "it is not the one that the run was given" in capsys.readouterr().err


def test_all_noise_says_what_to_change(recipe, tmp_path, caplog):
    folder = parquet_folder(tmp_path / "data", np.repeat(np.arange(12), 6))
    arguments = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "out"), *COLUMNS, *TINY]
    with pytest.raises(ValueError, match="all 72 samples are noise"):
        recipe.main([*arguments, "--clusterer_kwargs", '{"eps": 0.0, "min_samples": 72}'])
    assert "try a larger eps" in caplog.text


@pytest.mark.parametrize("model", ["ViT", "DINOv2"])
def test_a_pretrained_backbone_sees_images_of_the_size_asked_for(recipe, target, tmp_path, tiny_vit, model):
    if model == "ViT":
        start, processor = tiny_vit(), small_vit_processor(16)
    else:
        from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        start = Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes))
        processor = BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    start.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    options, args = recipe.parse(
        [
            *("--dataset_name", str(target), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"),
            *("--model_name_or_path", str(tmp_path / "model"), "--image_height", "56", "--image_width", "28"),
        ]
    )
    data, _ = recipe.load(options, args)
    backbone, processor = recipe.start(options, args, data)
    trainer = PLRTrainer(backbone, args, data.train.images, processing_class=processor)
    assert trainer.train_dataset[0]["pixel_values"].shape == (3, 56, 28)
    assert trainer.extract_features().shape == (108, 32)


def split_of(files, cameras):
    images = Dataset.from_dict({"image": files}).cast_column("image", Image())
    return ReidSplit(images, np.array([Path(file).stem[0] for file in files], int), np.array(cameras))


def test_unknown_cameras_leave_true_matches_in(tiny_vit, tmp_path):
    files = [str(tmp_path / name) for name in ("0a.png", "0b.png", "1a.png", "1b.png")]
    for i, file in enumerate(files):
        person(i, 0, 0).save(file)
    data = ReidData(
        split_of(files, [1, 2, -1, -1]),
        split_of(files, [1, 2, -1, -1]),
        split_of([*files, files[1]], [1, 2, -1, -1, -1]),  # the last one is a copy, of camera 2
    )
    trainer = tiny_trainer(tiny_vit, tmp_path, data, num_clusters=2)
    whole = trainer.score("before")
    assert (whole["queries"], whole["queries_without_match"]) == (4, 0)
    query, gallery = trainer.evaluator._number_cameras(trainer.evaluator._open_samples(trainer))
    is_same = np.eye(4, 5, dtype=bool)
    is_same[1, 4] = True
    np.testing.assert_array_equal(query[:, None] == gallery, is_same)
    alone = tiny_trainer(tiny_vit, tmp_path, ReidData(data.train, None, None), num_clusters=2)
    assert alone.score("before")["queries"] == 4


@pytest.mark.parametrize("cameras", [None, 0])
def test_a_query_that_lies_in_the_gallery_does_not_find_itself(tiny_vit, tmp_path, cameras):
    files = [str(tmp_path / f"{i}.png") for i in range(24)]
    for i, file in enumerate(files):
        person(i, 0, 0).save(file)  # nothing tells who it is
    identities = np.arange(24) // 2
    known = None if cameras is None else np.full(24, cameras)
    by_path, by_content = (
        ReidSplit(Dataset.from_dict({"image": values}).cast_column("image", Image()), identities, known)
        for values in (files, [{"bytes": Path(file).read_bytes(), "path": None} for file in files])
    )
    expected = tiny_trainer(tiny_vit, tmp_path, ReidData(by_path, None, None)).score("before")
    data = ReidData(by_path, by_path, by_content)
    assert tiny_trainer(tiny_vit, tmp_path, data).score("before") == expected
    assert expected["mAP"] < 1
