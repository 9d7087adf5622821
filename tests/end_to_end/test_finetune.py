"""Downstream: the recipes that fine-tune stock classifiers from a trained backbone, into stock pipelines."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import soundfile
import torch
from helpers.launching import load_script
from helpers.paths import RECIPES
from helpers.spectrograms import MODELS, make_extractor, make_model
from helpers.tiny import deep_images, image_trainer, tiny_hubert
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DINOv3ViTConfig,
    HGNetV2Config,
    HGNetV2ForImageClassification,
    MetaClip2VisionConfig,
    MetaClip2VisionModel,
    ResNetConfig,
    ResNetModel,
    SeamlessM4TFeatureExtractor,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2FeatureExtractor,
)

from hf_plr import PLRTrainer, PLRTrainingArguments, UnitTrainer, UnitTrainingArguments
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.models.speech import small_hubert, small_hubert_extractor
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.recipe_tools.finetuning import extract_sounds
from hf_plr.training_args.base import LAUNCHED_PRECISION
from hf_plr.utils.cores import count_cores


def recipe(name, *arguments):
    module = load_script(RECIPES / f"{name}.py")
    return module.main([*map(str, arguments), "--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none"])


def write(train, test, folder):
    folder.mkdir()
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")
    return folder


def test_deep_images_have_the_pixels_of_the_run(tmp_path, monkeypatch):
    images = deep_images()
    trainer = image_trainer(tmp_path / "plr", images, num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    module = load_script(RECIPES / "finetune_image.py")
    inputs = {}

    def stop(make_model, add_inputs, data, processor, recipe, args):
        inputs["test"] = add_inputs(data.test, data.test_labels)[:]
        inputs["kept"] = processor.to_dict()["pixel_range"]
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_classifier", stop)
    dark = [row for row in range(len(images)) if row % 3 == 0]
    data = write(images, images.select(dark), tmp_path / "data")
    arguments = [
        "--model_name_or_path",
        trainer.args.output_dir,
        "--dataset_name",
        data,
        "--output_dir",
        tmp_path / "c",
    ]
    with pytest.raises(KeyboardInterrupt):
        module.main([*map(str, arguments), "--use_cpu", "true", "--report_to", "none"])
    geometry = trainer.modality.geometry
    expected = geometry.normalise(geometry.unit_range(trainer.train_dataset.pixels(torch.tensor(dark))))
    assert torch.equal(inputs["test"]["pixel_values"], expected)
    assert inputs["kept"] == [0, 4095]


def test_a_family_without_a_classifier_is_refused_at_once(tmp_path):
    config = DINOv3ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.save_pretrained(tmp_path)
    module = load_script(RECIPES / "finetune_image.py")
    arguments = ["--model_name_or_path", tmp_path, "--dataset_name", "absent", "--output_dir", tmp_path / "c"]
    with pytest.raises(
        ValueError,
        match=r"no classifier for .*\(model_type='dinov3_vit'\): train one",
    ):
        module.main([*map(str, arguments), "--use_cpu", "true", "--report_to", "none"])


@pytest.mark.slow
def test_digits_from_few_labels_and_from_all(tmp_path, all_digits, capsys):
    out = str(tmp_path / "plr")
    train, test = all_digits.select(range(1400)), all_digits.select(range(1400, 1797))
    arguments = PLRTrainingArguments(out, num_train_epochs=8, disable_tqdm=True, use_cpu=True, save_strategy="no")
    trainer = PLRTrainer(small_vit(32, 8), arguments, train, processing_class=small_vit_processor(32))
    trainer.train()
    trainer.save_model()
    common = ["--model_name_or_path", out, "--dataset_name", write(train, test, tmp_path / "data")]
    common += ["--output_dir", tmp_path / "classifier"]

    few = recipe("finetune_image", *common, "--labels_per_class", 10, "--freeze_backbone", "--learning_rate", 1e-2)
    told = capsys.readouterr().out
    assert "Trained on 100 labels of 10 classes. Test split of 397: accuracy" in told
    assert 'pipeline("image-classification"' in told
    assert few["accuracy"] > 0.4  # after eight epochs; chance is 0.1

    more = ["--num_train_epochs", 8, "--learning_rate", 1e-3, "--overwrite"]
    everything = recipe("finetune_image", *common, *more)
    assert everything["accuracy"] > max(0.85, few["accuracy"])
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    assert classifier.config.id2label[3] == all_digits.features["label"].names[3]


@pytest.mark.slow
def test_sounds_from_all_labels(tmp_path, capsys):
    out = str(tmp_path / "plr")
    sounds = make_synthetic_recordings(n_per_class=40, seed=1)
    rows = np.random.default_rng(0).permutation(len(sounds))
    train, test = sounds.select(rows[:240]), sounds.select(rows[240:])
    arguments = UnitTrainingArguments(
        out, num_train_epochs=4, relabel_every=2, num_clusters=30, disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    start = small_hubert(8_000, hidden_size=64, num_hidden_layers=2)
    trainer = UnitTrainer(start, arguments, train, processing_class=small_hubert_extractor(8_000))
    trainer.train()
    trainer.save_model()
    common = ["--model_name_or_path", out, "--dataset_name", write(train, test, tmp_path / "data")]
    found = recipe(
        "finetune_audio", *common, "--output_dir", tmp_path / "c", "--num_train_epochs", 12, "--learning_rate", 2e-3
    )
    assert found["accuracy"] > 0.7
    assert 'pipeline("audio-classification"' in capsys.readouterr().out
    classifier = AutoModelForAudioClassification.from_pretrained(tmp_path / "c")
    assert set(classifier.config.label2id) == set(sounds.features["label"].names)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sounds_by_models_of_spectrograms(tmp_path, capsys, name):
    sounds = make_synthetic_recordings(n_per_class=6, seed=1)
    make_model(name).save_pretrained(tmp_path / "out")
    make_extractor(name).save_pretrained(tmp_path / "out")
    common = ["--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "c", "--num_train_epochs", 1]
    common += ["--dataset_name", write(sounds.select(range(36)), sounds.select(range(36, 48)), tmp_path / "data")]
    for more in ([], ["--freeze_backbone", "--max_seconds", 0.5, "--overwrite"]):
        recipe("finetune_audio", *common, *more)
        assert 'pipeline("audio-classification"' in capsys.readouterr().out


def test_a_frozen_backbone_stays_as_it_is(tmp_path, some_digits):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    start = ResNetModel(config)
    start.save_pretrained(tmp_path / "start")
    small_vit_processor(32).save_pretrained(tmp_path / "start")
    folder = write(some_digits.select(range(40)), some_digits.select(range(40, 60)), tmp_path / "data")
    common = ["--model_name_or_path", tmp_path / "start", "--dataset_name", folder, "--output_dir", tmp_path / "c"]
    recipe("finetune_image", *common, "--freeze_backbone", "--num_train_epochs", 1)
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "c").resnet.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in start.state_dict().items())


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PIXELS = {"image_size": 32, "patch_size": 8}
TOWERS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "metaclip_2": (MetaClip2VisionModel, MetaClip2VisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
}


def make_clip(folder):
    config = CLIPConfig(vision_config={**SMALL, **PIXELS}, text_config=SMALL)
    CLIPModel(config).save_pretrained(folder)


def make_hgnet(folder):
    config = HGNetV2Config(
        embedding_size=8,
        depths=[1],
        hidden_sizes=[16],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8],
        stage_mid_channels=[8],
        stage_out_channels=[16],
        stage_num_blocks=[1],
        stage_downsample=[False],
        stage_light_block=[False],
        stage_kernel_size=[3],
        stage_numb_of_layers=[1],
        num_labels=10,
    )
    HGNetV2ForImageClassification(config).save_pretrained(folder)


@pytest.mark.parametrize(("make", "head"), [(make_clip, "classifier."), (make_hgnet, "fc.")])
def test_the_head_alone_is_trained_of_a_classifier_without_a_base_model(tmp_path, some_digits, make, head):
    make(tmp_path / "start")
    small_vit_processor(32).save_pretrained(tmp_path / "start")
    folder = write(some_digits.select(range(40)), some_digits.select(range(40, 60)), tmp_path / "data")
    common = ["--model_name_or_path", tmp_path / "start", "--dataset_name", folder, "--freeze_backbone"]
    before, after = (
        recipe("finetune_image", *common, "--output_dir", tmp_path / str(epochs), "--num_train_epochs", epochs)
        and AutoModelForImageClassification.from_pretrained(tmp_path / str(epochs)).state_dict()
        for epochs in (1, 2)
    )
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith(head) for name in changed)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_is_fine_tuned_in_the_classifier_of_its_family(tmp_path, some_digits, capsys, kind):
    model_class, config_class = TOWERS[kind]
    start = model_class(config_class(**SMALL, **PIXELS)).half()
    start.save_pretrained(tmp_path / "start")
    small_vit_processor(32).save_pretrained(tmp_path / "start")
    folder = write(some_digits.select(range(40)), some_digits.select(range(40, 60)), tmp_path / "data")
    common = ["--model_name_or_path", tmp_path / "start", "--dataset_name", folder, "--output_dir", tmp_path / "c"]
    recipe("finetune_image", *common, "--freeze_backbone", "--num_train_epochs", 1)
    assert 'pipeline("image-classification"' in capsys.readouterr().out
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "c")
    assert classifier.config.model_type == kind
    assert classifier.config.num_labels == 10
    assert classifier.dtype == torch.float32  # though its start was saved in half precision
    trained = classifier.vision_model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in start.float().state_dict().items())


def test_a_head_for_other_classes_is_replaced(tmp_path, some_digits):
    start = ViTForImageClassification(ViTConfig(**SMALL, **PIXELS, num_labels=1000))
    start.save_pretrained(tmp_path / "start")
    small_vit_processor(32).save_pretrained(tmp_path / "start")
    folder = write(some_digits.select(range(40)), some_digits.select(range(40, 60)), tmp_path / "data")
    common = ["--model_name_or_path", tmp_path / "start", "--dataset_name", folder, "--output_dir", tmp_path / "c"]
    recipe("finetune_image", *common, "--num_train_epochs", 1)
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "c").config.num_labels == 10


def make_wav2vec2_bert(folder):
    config = Wav2Vec2BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, output_hidden_size=16
    )
    Wav2Vec2BertModel(config).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)


def make_hubert(folder):
    tiny_hubert().save_pretrained(folder)
    small_hubert_extractor(8_000).save_pretrained(folder)


@pytest.mark.parametrize("make", [make_hubert, make_wav2vec2_bert])
@pytest.mark.parametrize(("seconds", "is_off"), [(0.15, True), (0.5, False)])
def test_spans_that_clips_have_no_room_for_are_not_masked(tmp_path, caplog, make, seconds, is_off):
    make(tmp_path / "start")
    sounds = make_synthetic_recordings(n_per_class=2, seed=1)
    common = ["--model_name_or_path", tmp_path / "start", "--output_dir", tmp_path / "c", "--num_train_epochs", 1]
    common += ["--dataset_name", write(sounds, sounds, tmp_path / "data"), "--max_seconds", seconds]
    recipe("finetune_audio", *common)
    assert ("Time masking is off: the spans of 10 frames (mask_time_length) do not fit" in caplog.text) == is_off
    start, trained = (AutoConfig.from_pretrained(tmp_path / name) for name in ("start", "c"))
    assert trained.mask_time_prob == start.mask_time_prob > 0


def test_padding_is_masked_whatever_the_extractor_does_by_itself():
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8_000, return_attention_mask=False)
    inputs = extract_sounds(extractor, [np.ones(600, np.float32), np.ones(900, np.float32)], 8_000, 800)
    assert inputs["input_values"].shape == (2, 800)
    assert inputs["attention_mask"].sum(1).tolist() == [600, 800]


def test_sounds_of_seconds_are_not_cut_by_default(tmp_path, monkeypatch):
    make_hubert(tmp_path / "start")
    for number in range(8):
        noise = np.random.default_rng(number).normal(0.0, 0.1, 16_000)
        folder = tmp_path / "data" / ("train" if number < 4 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.wav", noise, 8_000)
    module = load_script(RECIPES / "finetune_audio.py")
    lengths = set()
    extract = module.extract_sounds
    monkeypatch.setattr(module, "extract_sounds", lambda *call: lengths.add(call[-1]) or extract(*call))
    common = ["--model_name_or_path", tmp_path / "start", "--output_dir", tmp_path / "c", "--num_train_epochs", 1]
    common += ["--dataset_name", tmp_path / "data", "--use_cpu", "true", "--report_to", "none"]
    module.main([*map(str, common)])
    assert lengths == {16_000}


def test_clips_are_at_most_as_long_as_the_model_sees(tmp_path, caplog):
    make_model("ast").save_pretrained(tmp_path / "start")
    make_extractor("ast").save_pretrained(tmp_path / "start")
    for number in range(8):
        noise = np.random.default_rng(number).normal(0.0, 0.1, 8_000 + 4_000 * (number % 4))
        folder = tmp_path / "data" / ("train" if number < 4 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.wav", noise, 8_000)
    common = ["--model_name_or_path", tmp_path / "start", "--output_dir", tmp_path / "c", "--num_train_epochs", 1]
    common += ["--dataset_name", tmp_path / "data"]
    recipe("finetune_audio", *common)
    assert "6 of 8 recordings are longer than the 1.249 s that the model sees, and only their begin" in caplog.text
    with pytest.raises(ValueError, match=r"--max_seconds 60.0 is longer than the 1.249 s that the model sees: give at"):
        recipe("finetune_audio", *common, "--overwrite", "--max_seconds", 60)


@pytest.mark.parametrize("out", ["start", "run"])
def test_a_classifier_replaces_no_backbone(tmp_path, capsys, out):
    (tmp_path / "start").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pseudo_labels.parquet").touch()
    common = ["--model_name_or_path", tmp_path / "start", "--dataset_name", "data"]
    with pytest.raises(SystemExit):
        recipe("finetune_image", *common, "--output_dir", tmp_path / out)
    assert "holds a backbone that the classifier would replace: name another folder" in capsys.readouterr().err


def test_a_classifier_replaces_no_other_by_itself(tmp_path, some_digits, capsys):
    small_vit(32, 16, 32, 1).save_pretrained(tmp_path / "start")
    small_vit_processor(32).save_pretrained(tmp_path / "start")
    folder = write(some_digits.select(range(40)), some_digits.select(range(40, 60)), tmp_path / "data")
    common = ["--model_name_or_path", tmp_path / "start", "--dataset_name", folder, "--output_dir", tmp_path / "c"]
    common += ["--num_train_epochs", 1]
    recipe("finetune_image", *common, "--save_strategy", "epoch")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    written = (tmp_path / "c" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        recipe("finetune_image", *common, "--seed", 1)
    assert "holds a model: --overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == written
    recipe("finetune_image", *common, "--seed", 1, "--overwrite")
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != written
    assert not list((tmp_path / "c").glob("checkpoint-*"))
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"


def test_an_unfinished_classifier_is_not_begun_anew_by_itself(tmp_path, capsys):
    (tmp_path / "c" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(SystemExit):
        recipe("finetune_image", "--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", tmp_path / "c")
    assert "--resume_from_checkpoint resumes it, --overwrite starts anew" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["x", "c/checkpoint-2"])
def test_a_classifier_removes_no_checkpoint_of_a_run_nor_its_own_start(tmp_path, capsys, start):
    checkpoint = tmp_path / "c" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    if start == "x":
        (checkpoint / "plr_state.safetensors").touch()
    common = ["--model_name_or_path", tmp_path / start, "--dataset_name", "y", "--output_dir", tmp_path / "c"]
    with pytest.raises(SystemExit):
        recipe("finetune_image", *common, "--overwrite")
    assert "checkpoint-2 in --output_dir" in capsys.readouterr().err
    assert checkpoint.is_dir()


def test_an_interrupted_training_is_resumed(tmp_path, some_digits, capsys):
    small_vit(32, 16, 32, 1).save_pretrained(tmp_path / "start")
    small_vit_processor(32).save_pretrained(tmp_path / "start")
    folder = write(some_digits.select(range(40)), some_digits.select(range(40, 60)), tmp_path / "data")
    common = ["--model_name_or_path", tmp_path / "start", "--dataset_name", folder, "--output_dir", tmp_path / "c"]
    common += ["--save_strategy", "epoch", "--logging_strategy", "epoch"]
    recipe("finetune_image", *common, "--num_train_epochs", 1)
    for more in ([], [tmp_path / "c" / "checkpoint-2"]):
        capsys.readouterr()
        recipe("finetune_image", *common, "--num_train_epochs", 2, "--resume_from_checkpoint", *more)
        assert capsys.readouterr().out.count("'loss'") == 1  # of the second epoch
        weights, config = (tmp_path / "c" / name for name in ("model.safetensors", "config.json"))
        assert weights.stat().st_mode == config.stat().st_mode
        shutil.rmtree(tmp_path / "c" / "checkpoint-4")


@pytest.mark.parametrize("name", ["finetune_image", "finetune_audio"])
def test_one_process_takes_all_cores_of_a_launch(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as accelerate sets it
    monkeypatch.setenv(LAUNCHED_PRECISION, "no")
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    with pytest.raises(ValueError, match="the model"):
        recipe(name, "--model_name_or_path", tmp_path / "no", "--dataset_name", "data", "--output_dir", tmp_path / "c")
    assert chosen == [count_cores()]


@pytest.mark.parametrize("name", ["finetune_image", "finetune_audio"])
def test_a_model_that_is_not_there_is_named(tmp_path, name):
    missing = str(tmp_path / "missing")
    with pytest.raises(ValueError, match=f"the model '{missing}' is neither a folder here nor the name of a model"):
        recipe(name, "--model_name_or_path", missing, "--dataset_name", "data", "--output_dir", tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", "x", "--output_dir", "y"], "--model_name_or_path is needed"),
        (["--model_name_or_path", "x", "--dataset_name", "y"], "--output_dir is needed"),
        (["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", "z", "--colour", 1], "--colour"),
        (["--model_name_or_path", "x", "--dataset_name", "y", "--output_dir", "z", "--save_steps", 5], "save_strategy"),
    ],
)
@pytest.mark.parametrize("name", ["finetune_image", "finetune_audio"])
def test_what_is_missing_is_named(capsys, name, arguments, message):
    with pytest.raises(SystemExit) as ended:
        recipe(name, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
