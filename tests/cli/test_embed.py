"""`hf-plr embed`: the features of the trainer, in a file."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, Value, load_dataset
from helpers.hub_cache import cache_repo
from helpers.tiny import deep_images, image_trainer, tiny_vit
from PIL import Image as PILImage
from transformers import ViTConfig, ViTModel

from hf_plr import PLRTrainer
from hf_plr.cli import main
from hf_plr.jobs.embedding import Embedder
from hf_plr.jobs.run_settings import read_run_settings
from hf_plr.models.vision import small_vit_processor
from hf_plr.pseudo_labels.data_record import read_record
from hf_plr.report.metrics_file import write_metrics


def write(dataset, folder):
    folder.mkdir()
    dataset.to_parquet(folder / "train.parquet")
    return str(folder)


def test_images_have_the_features_of_the_run(make_trainer, some_digits, tmp_path, capsys):
    trainer = make_trainer(num_train_epochs=1, pooling="mean")
    trainer.train()
    trainer.save_model()
    out = trainer.args.output_dir
    write_metrics(tmp_path / "out" / "metrics.json", trainer.summary(), seconds=1.0)
    command = ["embed", "--model", out, "--dataset", write(some_digits, tmp_path / "data")]
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 0
    assert "203 features of 32 numbers" in capsys.readouterr().out
    found = pd.read_parquet(tmp_path / "features.parquet")
    assert found["index"].tolist() == list(range(203))
    np.testing.assert_allclose(np.stack(found["feature"]), trainer.extract_features().numpy(), atol=1e-6)
    loaded = load_dataset("parquet", data_files=str(tmp_path / "features.parquet"), cache_dir=str(tmp_path / "cache"))
    assert np.asarray(loaded["train"]["feature"][:]).shape == (203, 32)

    assert main([*command, "--pooling", "cls", "--output", str(tmp_path / "cls.parquet")]) == 0
    cls = np.stack(pd.read_parquet(tmp_path / "cls.parquet")["feature"])
    assert np.abs(cls - np.stack(found["feature"])).max() > 0.01
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err
    for damaged in ("{", '{"settings": {"layer": "last"}}'):
        (tmp_path / "out" / "metrics.json").write_text(damaged)
        assert main([*command, "--output", str(tmp_path / "other.parquet")]) == 2
        assert "restore it, or remove it to do without them" in capsys.readouterr().err


def test_features_that_are_not_finite_are_refused(make_trainer, some_digits, tmp_path, capsys):
    trainer = make_trainer()
    trainer.modality.model.embeddings.cls_token.data.fill_(float("nan"))
    trainer.modality.model.save_pretrained(tmp_path / "out")
    trainer.modality.processor.save_pretrained(tmp_path / "out")
    data = write(some_digits.select(range(30)), tmp_path / "data")
    command = ["embed", "--model", str(tmp_path / "out"), "--dataset", data, "--output", str(tmp_path / "features")]
    assert main([*command, "--shard", "1/3"]) == 2
    assert "shard 1/3: the feature of row 10 is NaN or infinite, as are 9 others" in capsys.readouterr().err
    assert list((tmp_path / "features").iterdir()) == []


@pytest.mark.parametrize("content", ['{"accuracy": 0.9}', "[1, 2]", '{"settings": "default"}'])
def test_a_metrics_file_that_is_not_of_a_run_tells_nothing(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    assert read_run_settings(str(tmp_path)) == {}


TWO_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


@pytest.mark.parametrize(("n_channels", "settings"), [(3, {"layer": 1}), (3, {"pooling": "cls+mean"}), (1, {})])
def test_the_snippet_of_the_card_gives_the_feature_of_the_run(
    make_trainer, some_digits, tmp_path, n_channels, settings
):
    config = ViTConfig(**TWO_LAYERS, intermediate_size=64, num_channels=n_channels)
    processor = small_vit_processor(16)
    if n_channels == 1:
        processor.do_convert_rgb, processor.image_mean, processor.image_std = False, [0.5], [0.5]
    trainer = make_trainer({"model": ViTModel(config), "processing_class": processor}, num_train_epochs=1, **settings)
    trainer.train()
    trainer.save_model()
    out, picture = tmp_path / "out", tmp_path / "image.png"
    write_metrics(out / "metrics.json", trainer.summary(), seconds=1.0)
    command = ["embed", "--model", str(out), "--dataset", write(some_digits, tmp_path / "data")]
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 0
    embedded = pd.read_parquet(tmp_path / "features.parquet")["feature"][0]
    some_digits[0]["image"].save(picture)
    names = {}
    exec(trainer.modality.usage_snippet(str(out)).replace("image.png", str(picture)), names)  # noqa: S102
    np.testing.assert_allclose(names["feature"][0].numpy(), embedded, atol=1e-4)


@pytest.mark.parametrize("n_channels", [3, 1])
@pytest.mark.parametrize("background", [None, "white", "#ff8000"])
def test_the_snippet_of_the_card_turns_photos_and_lays_them_on_the_background(tmp_path, n_channels, background):
    rng = np.random.default_rng(0)
    exif = PILImage.Exif()
    exif[0x0112] = 6
    files = []
    for _ in range(30):
        pixels = rng.integers(0, 256, (16, 24, 3 if background is None else 4), np.uint8)
        PILImage.fromarray(pixels).save(buffer := io.BytesIO(), "PNG", exif=exif)
        files.append({"bytes": buffer.getvalue(), "path": None})
    photos = Dataset.from_dict({"image": files}).cast_column("image", Image())
    processor = small_vit_processor(16)
    if n_channels == 1:
        processor.do_convert_rgb, processor.image_mean, processor.image_std = False, [0.5], [0.5]
    model = ViTModel(ViTConfig(**TWO_LAYERS, intermediate_size=64, num_channels=n_channels))
    parts = {"model": model, "processing_class": processor}
    trainer = image_trainer(tmp_path / "out", photos, parts, num_clusters=4, transparency_background=background)
    trainer.save_model()
    snippet = trainer.modality.usage_snippet(str(tmp_path / "out"))
    features = trainer.extract_features()
    for row in (0, 7):
        (tmp_path / "image.png").write_bytes(files[row]["bytes"])
        names = {}
        exec(snippet.replace("image.png", str(tmp_path / "image.png")), names)  # noqa: S102
        torch.testing.assert_close(names["feature"][0], features[row], atol=1e-4, rtol=1e-4)


def test_the_snippet_of_the_card_turns_deep_photos(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6
    files = []
    for image in deep_images(30)["image"]:
        image.save(buffer := io.BytesIO(), "PNG", exif=exif)
        files.append({"bytes": buffer.getvalue(), "path": None})
    photos = Dataset.from_dict({"image": files}).cast_column("image", Image())
    trainer = image_trainer(tmp_path / "out", photos, num_clusters=4)
    trainer.save_model()
    (tmp_path / "image.png").write_bytes(files[4]["bytes"])
    names = {}
    snippet = trainer.modality.usage_snippet(str(tmp_path / "out"))
    exec(snippet.replace("image.png", str(tmp_path / "image.png")), names)  # noqa: S102
    torch.testing.assert_close(names["feature"][0], trainer.extract_features()[4], atol=1e-4, rtol=1e-4)


def test_the_snippet_of_the_card_takes_images_of_8_and_of_16_bits_from_one_folder(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for i in range(32):
        shape, kind = [((16, 16, 3), "u1"), ((16, 16), "u1"), ((16, 16, 4), "u1"), ((16, 16), "u2")][i % 4]
        pixels = rng.integers(0, 256 if kind == "u1" else 4096, shape).astype(kind)
        PILImage.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    mixed = Dataset.from_dict({"image": files}).cast_column("image", Image())
    trainer = image_trainer(tmp_path / "out", mixed, num_clusters=4, transparency_background="#ff8000")
    trainer.save_model()
    snippet, geometry = trainer.modality.usage_snippet(str(tmp_path / "out")), trainer.modality.geometry
    features, decoder = trainer.extract_features(), geometry.make_decoder()
    for row in range(8):
        (tmp_path / "image.png").write_bytes(files[row]["bytes"])
        names = {}
        exec(snippet.replace("image.png", str(tmp_path / "image.png")), names)  # noqa: S102
        np.testing.assert_array_equal(np.asarray(names["image"]), np.asarray(decoder.decode(files[row], row)))
        torch.testing.assert_close(names["feature"][0], features[row], atol=1e-4, rtol=1e-4)


def test_the_folder_of_the_output_is_made_and_errors_name_the_option(some_digits, tmp_path, capfd):
    tiny_vit().save_pretrained(tmp_path / "model")
    small_vit_processor(16).save_pretrained(tmp_path / "model")
    data = write(some_digits.select(range(20)), tmp_path / "data")
    command = ["embed", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "new folder" / "x.parquet")]
    assert main([*command, "--dataset", data]) == 0
    assert len(pd.read_parquet(tmp_path / "new folder" / "x.parquet")) == 20
    assert "Loading weights" not in capfd.readouterr().err
    assert main([*command, "--overwrite", "--dataset", str(tmp_path / "none")]) == 2
    assert f"hf-plr embed: error: --dataset '{tmp_path / 'none'}' is neither a folder" in capfd.readouterr().err


def test_images_in_nested_columns_are_found(some_digits, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "model")
    small_vit_processor(16).save_pretrained(tmp_path / "model")
    rows = [{"sample": {"image": image, "id": i}} for i, image in enumerate(some_digits[:20]["image"])]
    nested = Dataset.from_list(rows, Features({"sample": {"image": Image(), "id": Value("int64")}}))
    nested.save_to_disk(tmp_path / "saved")
    command = ["embed", "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "saved")]
    assert main([*command, "--output", str(tmp_path / "found.parquet")]) == 0
    assert main([*command, "--output", str(tmp_path / "named.parquet"), "--image_column", "sample.image"]) == 0
    found, named = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("found", "named"))
    assert len(found) == 20
    pd.testing.assert_frame_equal(found, named)


def test_deep_images_are_decoded_as_in_the_run(make_trainer, tmp_path, capsys):
    images = deep_images()
    trainer = image_trainer(tmp_path / "deep", images, num_train_epochs=1)
    trainer.train()
    trainer.save_model()
    assert "# 0 to 4,095 become 0 to 255" in trainer.modality.usage_snippet("name")
    assert "np" not in make_trainer().modality.usage_snippet("name")
    dark = [row for row in range(len(images)) if row % 3 == 0]
    data = write(images.select(dark), tmp_path / "data")
    command = ["embed", "--model", trainer.args.output_dir, "--dataset", data]
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 0
    found = np.stack(pd.read_parquet(tmp_path / "features.parquet")["feature"])
    np.testing.assert_allclose(found, trainer.extract_features().numpy()[dark], atol=1e-6)
    assert main([*command, "--pixel_range", "0", "1023", "--output", str(tmp_path / "other.parquet")]) == 0
    assert np.abs(np.stack(pd.read_parquet(tmp_path / "other.parquet")["feature"]) - found).max() > 0.01
    assert main([*command, "--pixel_range", "5", "1", "--output", str(tmp_path / "none.parquet")]) == 2
    assert "the lower first" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{}, {"layer": 1, "max_seconds": 0.5}])
def test_sounds_have_the_features_of_the_run(make_sound_trainer, some_sounds, tmp_path, settings):
    trainer = make_sound_trainer(PLRTrainer, num_train_epochs=1, **settings)
    trainer.save_model()
    write_metrics(tmp_path / "out" / "metrics.json", trainer.summary(), seconds=1.0)
    command = ["embed", "--model", trainer.args.output_dir, "--dataset", write(some_sounds, tmp_path / "data")]
    assert main([*command, "--batch_size", "8", "--output", str(tmp_path / "features.parquet")]) == 0
    found = pd.read_parquet(tmp_path / "features.parquet")
    assert found["index"].tolist() == list(range(83))
    of_run = trainer.extract_features().numpy()[np.argsort(trainer.train_dataset.rows)]
    np.testing.assert_allclose(np.stack(found["feature"]), of_run, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_and_adapters_have_the_features_of_the_run(make_trainer, some_digits, tmp_path, lora):
    (tmp_path / "start").mkdir()
    tiny_vit().save_pretrained(tmp_path / "start")
    small_vit_processor(16).save_pretrained(tmp_path / "start")
    model = {"model": str(tmp_path / "start"), "processing_class": None}
    trainer = make_trainer(model, num_train_epochs=1, pooling="mean", lora=lora)
    trainer.train()
    trainer.save_model()
    out = tmp_path / "out"
    write_metrics(out / "metrics.json", trainer.summary(), seconds=1.0)
    data = write(some_digits, tmp_path / "data")
    folders = [*out.glob("checkpoint-*"), *([out / "adapter"] if lora else [])]
    assert len(folders) == 1 + lora
    for number, folder in enumerate(folders):
        file = tmp_path / f"{number}.parquet"
        assert main(["embed", "--model", str(folder), "--dataset", data, "--output", str(file)]) == 0
        found = np.stack(pd.read_parquet(file)["feature"])
        np.testing.assert_allclose(found, trainer.extract_features().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["images", "files", "sounds"])
def test_shards_together_are_the_whole(
    make_trainer, make_sound_trainer, some_digits, some_sounds, tmp_path, kind, capsys
):
    if kind == "sounds":
        trainer = make_sound_trainer(PLRTrainer, num_train_epochs=1)
        data, options, n = write(some_sounds, tmp_path / "data"), ["--batch_size", "8", "--segment_seconds", "0.4"], 83
    elif kind == "images":
        trainer, data, options, n = make_trainer(num_train_epochs=1), write(some_digits, tmp_path / "data"), [], 203
    else:  # whose names are relative to the folder of all, also where a shard has one folder alone
        trainer, data, options, n = make_trainer(num_train_epochs=1), str(tmp_path / "data"), [], 40
        for row in range(n):
            folder = tmp_path / "data" / ("b" if row % 2 else "a")
            folder.mkdir(parents=True, exist_ok=True)
            some_digits[row]["image"].save(folder / f"{row:03d}.png")
    trainer.save_model()
    out, shards = tmp_path / "whole.parquet", tmp_path / "shards"
    command = ["embed", "--model", trainer.args.output_dir, "--dataset", data, *options]
    assert main([*command, "--output", str(out)]) == 0
    for shard in (2, 0, 1):
        assert main([*command, "--shard", f"{shard}/3", "--output", str(shards)]) == 0
    whole = pd.read_parquet(out)
    files = sorted(shards.iterdir())
    assert [file.name for file in files] == [f"shard-0000{i}-of-00003.parquet" for i in range(3)]
    parts = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    np.testing.assert_allclose(np.stack(parts.pop("feature")), np.stack(whole.pop("feature")), atol=1e-5)
    pd.testing.assert_frame_equal(parts, whole)
    assert parts["index"].nunique() == n
    assert ("start" in parts) == (kind == "sounds")
    assert (kind != "files") or parts["file"][0] == "a/000.png"
    records = {read_record(pq.read_schema(file)) for file in (out, *files)}
    assert {record.rows for record in records} == {n}
    assert len(records) == 1

    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    capsys.readouterr()
    for shard in range(3):
        assert main([*command, "--shard", f"{shard}/3", "--skip_existing", "--output", str(shards)]) == 0
    assert capsys.readouterr().out.count("Kept") == 2
    assert files[0].stat().st_mtime_ns == before
    assert files[1].exists()
    assert main([*command, "--shard", "0/3", "--output", str(shards)]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err


def test_shards_that_do_not_fit_are_named(some_digits, tmp_path, capsys):
    tiny_vit().save_pretrained(tmp_path / "model")
    small_vit_processor(16).save_pretrained(tmp_path / "model")
    command = ["embed", "--model", str(tmp_path / "model"), "--dataset", write(some_digits, tmp_path / "data")]
    command += ["--output", str(tmp_path / "out")]
    for options, message in (
        (["--shard", "0/300"], "--shard 0/300 has no rows"),
        (["--shard", "3/3"], "so the last of 3 is 2/3"),
        (["--skip_existing"], "--skip_existing needs --shard"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_an_embedder_maps_tables(make_trainer, some_digits, tmp_path):
    trainer = make_trainer(num_train_epochs=1, pooling="mean")
    trainer.save_model()
    write_metrics(tmp_path / "out" / "metrics.json", trainer.summary(), seconds=1.0)
    digits = some_digits.flatten_indices().data.table
    table = digits.append_column("index", pa.array(range(1000, 1203)))
    embedder = Embedder(trainer.args.output_dir, batch_size=64)
    parts = [embedder(table.slice(50, 20)), embedder(table.slice(7, 3))]
    assert parts[0]["index"].to_pylist() == list(range(1050, 1070))
    assert parts[1]["index"].to_pylist() == [1007, 1008, 1009]
    found = np.stack(parts[0]["feature"].to_pylist())
    np.testing.assert_allclose(found, trainer.extract_features().numpy()[50:70], atol=1e-5)
    with pytest.raises(ValueError, match="needs a column 'index'"):
        embedder(digits)


@pytest.mark.parametrize("skip", [False, True])
def test_an_embedder_names_rows_of_the_whole_and_leaves_no_trace(some_digits, tmp_path, monkeypatch, caplog, skip):
    def fail(*args, **kwargs):
        raise AssertionError("of a table that comes once")

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__init__", fail)
    monkeypatch.setattr("hf_plr.data.decoded_cache.DecodedCache.__init__", fail)
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", fail)
    monkeypatch.setattr("hf_plr.training_args.base.count_default_workers", lambda: 2)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_vit().save_pretrained(tmp_path / "model")
    small_vit_processor(16).save_pretrained(tmp_path / "model")
    table = some_digits.select_columns("image").flatten_indices().data.table.slice(0, 10)
    images = table["image"].to_pylist()
    images[3] = {"bytes": b"damaged", "path": None}
    numbers = [1200 + 7 * i for i in range(10)]
    table = table.set_column(0, table.schema.field(0), pa.array(images, table.schema.field(0).type))
    table = table.append_column("index", pa.array(numbers))
    embedder = Embedder(str(tmp_path / "model"), skip_unreadable=skip)
    if skip:
        assert embedder(table)["index"].to_pylist() == [number for number in numbers if number != 1221]
        assert "left out: row 3 (row 1221 of the whole data set)" in caplog.text
    else:
        with pytest.raises(ValueError, match=r"image 3 cannot be read .*\(row 1221 of the whole data set\)"):
            embedder(table)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("known", [False, True])
def test_a_cached_backbone_goes_on_without_the_hub(some_digits, tmp_path, monkeypatch, caplog, known):
    snapshot = cache_repo(tmp_path / "cache", monkeypatch, "alice/vit", missing=["metrics.json"] if known else [])
    tiny_vit().save_pretrained(snapshot)
    small_vit_processor(16).save_pretrained(snapshot)
    command = ["embed", "--model", "alice/vit", "--dataset", write(some_digits.select(range(5)), tmp_path / "data")]
    assert main([*command, "--output", str(tmp_path / "features.parquet")]) == 0
    warning = "the Hub cannot be reached, and metrics.json of alice/vit is not in the cache"
    assert (warning in caplog.text) is not known
    (snapshot / "metrics.json").write_text('{"settings": {"pooling": "mean"}}')
    assert read_run_settings("alice/vit") == {"pooling": "mean"}


def test_features_of_shards_go_into_a_folder(tmp_path, capsys):
    output = tmp_path / "features.parquet"
    command = ["embed", "--model", "m", "--dataset", "d", "--shard", "0/2", "--output", str(output)]
    assert main(command) == 2
    assert (
        "is named like a file, but the features of shards go into a folder: leave out .parquet"
        in capsys.readouterr().err
    )
    assert not output.exists()
