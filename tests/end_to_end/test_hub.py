"""Publishing through the real client to a Hub on localhost, and loading from there without hf_plr."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Audio, Dataset
from helpers.hub_repos import Fault, Repo
from helpers.hub_server import HubServer
from helpers.paths import HELPERS, REPOSITORY
from safetensors.numpy import load_file

from hf_plr import read_levels
from hf_plr.cli import main
from hf_plr.clustering.novelty import KnownClusters
from hf_plr.data.example_data import make_synthetic_recordings
from hf_plr.hub.push import PUBLISHED, HubError, list_published_files, push_folder

TOKEN = "hf_alicesOwnSecretToken"
BACKBONE = {"README.md", "clusters.png", "config.json", "model.safetensors", "preprocessor_config.json"}
CLUSTERS = {
    *("metrics.json", "pseudo_labels.parquet", "prototypes.safetensors", "known_clusters.safetensors"),
    *("run_history.json", "tree.json"),
}
UNITS = {"metrics.json", "units.parquet", "centroids.safetensors"}
MODELS = {
    "alice/vit": ("AutoImageProcessor", "AutoModelForImageClassification", "epoch-2"),
    "alice/dino": ("AutoImageProcessor", "AutoModelForImageClassification", None),
    "alice/hubert": ("AutoFeatureExtractor", "AutoModelForAudioClassification", "epoch-1"),
    "alice/units": ("AutoFeatureExtractor", "AutoModelForAudioClassification", None),
}
LABELS = ("alice/vit-labels", "alice/dino-labels", "alice/hubert-labels", "alice/units-labels")


def run_python(*arguments: object, hub: HubServer, home: Path, token: str | None = TOKEN, **options: Any) -> Any:
    """Run Python with its Hub at the server, its cache in `home`, and this checkout's hf_plr."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {**inherited, **hub.environment(home, token), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, **options)


def hf_plr(*arguments: object, **where: Any) -> Any:
    """The command `hf-plr`."""
    code = "import sys; from hf_plr.cli import main; sys.exit(main())"
    return run_python("-c", code, *arguments, **where)


def assert_nothing_private(hub: HubServer, *folders: Path) -> None:
    """No commit has what is not to be published, and no token and no folder of this machine is in what was sent."""
    for name, repo in hub.repos.items():
        for commit in repo.commits if name.startswith("models/") else []:
            for path in commit.files:
                assert any(fnmatch.fnmatchcase(path, one) for one in PUBLISHED), path
                assert "/" not in path
    for content in hub.everything():
        for secret in (TOKEN, *map(str, folders)):
            assert secret.encode() not in content


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer({TOKEN: "alice", "hf_bob": "bob"}) as server:
        yield server


# ---- the round trip --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Four backbones and their labels, trained and pushed by another process."""
    folder = tmp_path_factory.mktemp("published")
    hub.repos["models/bob/taken"] = Repo("bob/taken", private=False)
    run = run_python(HELPERS / "published_runs.py", folder, hub=hub, home=folder / "home")
    assert run.returncode == 0, run.stderr
    return folder, json.loads((folder / "published.json").read_text())


@pytest.fixture(scope="module")
def read(hub, published, tmp_path_factory) -> dict[str, Any]:
    """What a process without hf_plr loads by name, from an empty cache."""
    home = tmp_path_factory.mktemp("reader")
    asked = json.dumps({"models": MODELS, "labels": LABELS})
    run = run_python("-I", HELPERS / "foreign_reader.py", asked, hub=hub, home=home)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
def test_what_is_pushed(hub, published):
    folder, _ = published
    for name in ("vit", "dino", "hubert"):
        assert set(hub.files(f"models/alice/{name}")) == BACKBONE | CLUSTERS
    assert set(hub.files("models/alice/units")) == BACKBONE | UNITS
    in_training = hub.repos["models/alice/vit"].commits[1]
    assert in_training.title == "Training in progress, epoch 1"
    assert set(in_training.files) == BACKBONE
    assert not list(folder.glob("*/_push-*"))
    assert hub.repos["models/alice/vit"].tags.keys() == {"epoch-2"}
    private = {name for name, repo in hub.repos.items() if repo.private}
    assert private == {"models/alice/vit", "datasets/alice/vit-labels"}
    assert_nothing_private(hub, folder)
    card = hub.files("models/alice/dino")["README.md"].decode()  # its name was not given
    assert 'AutoModel.from_pretrained("alice/dino")' in card


@pytest.mark.slow
@pytest.mark.parametrize("repo", MODELS)
def test_a_stock_process_loads_the_same_bits(published, read, repo):
    trained = published[1]["weights"][repo.split("/")[1]]
    found = read["models"][repo]
    assert found["weights"] == trained
    assert found["missing"] == found["unexpected"] == []
    assert found["head"] == (["classifier"] if MODELS[repo][0] == "AutoImageProcessor" else ["classifier", "projector"])
    below = found["below head"]
    assert below.items() <= trained.items()
    assert {name for name in trained if name not in below} <= {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.slow
def test_labels_load_as_a_data_set(published, read, all_digits):
    folder, _ = published
    for name in ("vit", "dino", "hubert"):
        found, kept = read["labels"][f"alice/{name}-labels"], pd.read_parquet(folder / name / "pseudo_labels.parquet")
        media = {"vit": ["image"], "dino": [], "hubert": ["audio"]}[name]
        own = ["index", "label", "previous_label", "confidence", "digest"]
        levels = [f"level_{n}" for n in read_levels(folder / name)]
        assert levels
        assert found["columns"] == [*own, *levels, *media]
        for column in kept.columns:
            np.testing.assert_array_equal(pd.Series(found[column]).astype(kept[column].dtype), kept[column])
    units, kept = read["labels"]["alice/units-labels"], pd.read_parquet(folder / "units" / "units.parquet")
    assert units["columns"] == ["index", "units"]
    assert all(np.array_equal(*pair) for pair in zip(units["units"], kept["units"], strict=True))
    images = [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in all_digits[:120]["image"]]
    assert read["labels"]["alice/vit-labels"]["media"] == images
    sounds = make_synthetic_recordings(n_per_class=5).cast_column("audio", Audio(decode=False))["audio"]
    expected = [hashlib.sha256(sound["bytes"]).hexdigest() for sound in sounds]
    assert read["labels"]["alice/hubert-labels"]["media"] == expected  # trained by length, published by index


@pytest.mark.slow
def test_what_the_hub_refuses_ends_the_run_before_it_begins(published):
    folder, found = published
    said = found["refusals"]
    assert said["no token"].startswith("HubError: there is no token for the Hub: `hf auth login`")
    assert said["wrong token"].startswith("HubError: the Hub does not accept the token (401)")
    assert said["other's name"].startswith(
        "HubError: the token may not write to bob/vit (403: You don't have the right"
    )
    assert said["other's repository"].startswith("HubError: the token may not write to bob/taken (403")
    assert said["no name"].startswith("HubError: Repo id must be")
    assert said["optimizer"].startswith("ValueError: hub_strategy='checkpoint' would push optimizer, random states")
    assert "is public, so nothing was pushed" in said["public"]
    assert not (folder / "refused" / "model.safetensors").exists()


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def not_pushed(hub, tmp_path_factory) -> tuple[Path, Any]:
    """The output folder of a recipe whose Hub was away at the start and cut every commit, and what the recipe said."""
    folder = tmp_path_factory.mktemp("not-pushed")
    hub.faults += [Fault("POST /api/repos/create", times=1), Fault("POST .*/digits/commit/")]
    arguments = ["--output_dir", folder / "out", "--max_samples", 100, "--num_clusters", 8, "--num_train_epochs", 1]
    push = ["--push_to_hub", "--hub_model_id", "alice/digits", "--hub_private_repo", "--disable_tqdm", "true"]
    recipe = REPOSITORY / "recipes" / "vit_plr.py"
    run = run_python(recipe, *arguments, *push, "--use_cpu", "true", hub=hub, home=folder / "home", cwd=folder)
    hub.faults.clear()
    return folder / "out", run


@pytest.mark.slow
def test_a_run_whose_push_is_cut_keeps_its_results_and_says_how_to_push_them(not_pushed):
    out, run = not_pushed
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "Nothing can be pushed now: the connection to http://127.0.0.1" in run.stderr
    assert "The push at epoch 1 did not work" in run.stderr
    told, again = run.stderr.strip().splitlines()[-2:]
    assert told.startswith(f"error: the results are in {out}, but not on the Hub: the connection to http://127.0.0.1")
    assert again == f"Push them with: hf-plr push {out} --repo alice/digits --private"
    assert {path.name for path in list_published_files(out)} == BACKBONE | CLUSTERS


@pytest.mark.slow
def test_then_the_command_works(hub, not_pushed):
    out, run = not_pushed
    command = run.stderr.strip().splitlines()[-1].removeprefix("Push them with: hf-plr ").split()
    assert set(hub.files("models/alice/digits")) == set()
    pushed = hf_plr(*command, hub=hub, home=out.parent / "home")
    assert pushed.returncode == 0, pushed.stderr
    assert f"On the Hub: {hub.url}/alice/digits (tag epoch-1)" in pushed.stdout
    repo = hub.repos["models/alice/digits"]
    assert repo.private
    assert repo.tags["epoch-1"] == repo.branches["main"]
    files = hub.files("models/alice/digits")
    assert set(files) == BACKBONE | CLUSTERS
    assert files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    again = hf_plr(*command, hub=hub, home=out.parent / "home")
    assert again.returncode == 0, again.stderr
    assert len(repo.commits) == 2  # nothing was new
    assert_nothing_private(hub, out)


def test_files_of_an_earlier_push_do_not_stay_beside_other_weights(hub, tmp_path):
    own, other = ("LICENSE", "notes/tree.json", "README.md"), ("cluster_names.json", "prototypes.safetensors")
    for name in ("config.json", "model.safetensors", "README.md", *other):
        (tmp_path / name).write_text(f"first {name}")
    push = ("push", tmp_path, "--repo", "alice/twice")
    pushed = hf_plr(*push, hub=hub, home=tmp_path / "home")
    assert pushed.returncode == 0, pushed.stderr
    assert "Removed" not in pushed.stdout
    commit = hub.repos["models/alice/twice"].at("main")
    commit.files |= dict.fromkeys(own, commit.files["README.md"])  # two that somebody has added
    for name in (*other, "README.md"):
        (tmp_path / name).unlink()
    (tmp_path / "model.safetensors").write_text("second")
    pushed = hf_plr(*push, hub=hub, home=tmp_path / "home")
    assert pushed.returncode == 0, pushed.stderr
    assert f"Removed, of an earlier run: {', '.join(other)}\n" in pushed.stdout
    files = hub.files("models/alice/twice")
    del hub.repos["models/alice/twice"]  # other tests look at all that there is
    assert set(files) == {"config.json", "model.safetensors", *own}
    assert files["model.safetensors"] == b"second"


@pytest.mark.slow
def test_a_name_that_is_new_is_in_the_card_and_the_tag_moves(hub, not_pushed):
    out, _ = not_pushed
    for _ in range(2):
        pushed = hf_plr("push", out, "--repo", "other", hub=hub, home=out.parent / "home")
        assert pushed.returncode == 0, pushed.stderr
        card = hub.files("models/alice/other")["README.md"].decode()
        assert '.from_pretrained("alice/other")' in card
        assert "\n# alice/other\n" in card
        assert "\nmodel-index:\n- name: alice/other\n" in card
        assert hub.repos["models/alice/other"].tags == {"epoch-1": hub.repos["models/alice/other"].branches["main"]}
        hub.repos["models/alice/other"].commits[-1].files.pop("metrics.json")  # so that there is something to commit
    branch = hf_plr("push", out, "--repo", "alice/other", "--revision", "next", hub=hub, home=out.parent / "home")
    assert branch.returncode == 0, branch.stderr
    assert hub.repos["models/alice/other"].branches.keys() == {"main", "next"}


FAULTS = {
    "no token": (None, [], "there is no token for the Hub: `hf auth login`, or set HF_TOKEN"),
    "wrong token": ("hf_wrong", [], "the Hub does not accept the token (401)"),
    "token revoked on the way": (TOKEN, [Fault("/commit/", 401)], "the Hub does not accept the token (401)"),
    "other's name": ("hf_bob", [], "the token may not write to alice/faulty (403: "),
    "no room": (TOKEN, [Fault("/commit/", 413, "too large")], "the Hub refused alice/faulty (413: too large"),
    "broken": (TOKEN, [Fault("/commit/", 500, "oh no")], "the Hub failed (500: oh no)"),
    "cut": (TOKEN, [Fault("/commit/")], "the connection to http://127.0.0.1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_told_in_one_line(hub, not_pushed, fault):
    out, _ = not_pushed
    token, faults, message = FAULTS[fault]
    hub.faults += faults
    run = hf_plr("push", out, "--repo", "alice/faulty", hub=hub, home=out.parent / "home", token=token)
    hub.faults.clear()
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith(f"hf-plr push: error: {message}")
    assert "Traceback" not in run.stderr
    assert TOKEN not in run.stderr


@pytest.mark.slow
def test_two_processes_end_together(hub, tmp_path):
    hub.faults.append(Fault("/two/commit/", 413, "too large"))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    arguments = ["--output_dir", tmp_path / "out", "--max_samples", 100, "--num_clusters", 8, "--num_train_epochs", 1]
    push = ["--push_to_hub", "--hub_model_id", "alice/two", "--disable_tqdm", "true", "--use_cpu", "true"]
    recipe = REPOSITORY / "recipes" / "vit_plr.py"
    run = run_python(*launch, recipe, *arguments, *push, hub=hub, home=tmp_path / "home", cwd=tmp_path)
    hub.faults.clear()
    assert run.returncode == 1
    told = (
        f"error: the results are in {tmp_path / 'out'}, but not on the Hub: the Hub refused alice/two (413: too large)"
    )
    assert told in run.stderr
    assert {path.name for path in list_published_files(tmp_path / "out")} == BACKBONE | CLUSTERS


@pytest.mark.slow
def test_what_passes_is_overcome(hub, not_pushed):
    out, _ = not_pushed
    hub.faults += [
        Fault("PUT /lfs/", times=1),
        Fault("/overcome/commit/", times=1),
        Fault("/overcome/tag/", 503, times=1),
    ]
    hub.blobs.clear()
    run = hf_plr("push", out, "--repo", "alice/overcome", hub=hub, home=out.parent / "home")
    assert run.returncode == 0, run.stderr
    assert hub.faults == []
    assert "Not pushed yet: the connection to" in run.stderr
    assert "Not pushed yet: the Hub failed (503" in run.stderr
    assert hub.repos["models/alice/overcome"].tags


@pytest.mark.slow
def test_by_xet_too(not_pushed, tmp_path):
    pytest.importorskip("hf_xet")
    out, _ = not_pushed
    with HubServer({TOKEN: "alice"}, xet=True) as hub:
        run = hf_plr("push", out, "--repo", "alice/xet", hub=hub, home=tmp_path)
        assert run.returncode == 0, run.stderr
        assert hub.files("models/alice/xet")["model.safetensors"] == (out / "model.safetensors").read_bytes()
        assert not any("/lfs/" in request for request in hub.requests)
        hub.faults.append(Fault("xet-write-token", 403, "not for you"))
        run = hf_plr("push", out, "--repo", "alice/other", hub=hub, home=tmp_path)
        assert run.returncode == 1
        assert run.stderr.strip().splitlines()[-1].startswith("hf-plr push: error: ")
        assert "Traceback" not in run.stderr


# ---- labels of a folder ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_push_labels_with_the_data_that_the_run_was_given(hub, not_pushed, all_digits, tmp_path):
    out, _ = not_pushed
    (tmp_path / "data").mkdir()
    all_digits.to_parquet(tmp_path / "data" / "train.parquet")
    asked = ["push-labels", out, "--repo", "alice/labels", "--private"]
    hub.faults.append(Fault("/labels/commit/", times=1))
    run = hf_plr(*asked, hub=hub, home=tmp_path / "home")
    assert run.returncode == 0, run.stderr
    assert 'load_dataset("alice/labels", split="train")' in run.stdout
    with_media = hf_plr(*asked, "--with_media", tmp_path / "data", hub=hub, home=tmp_path / "home")
    assert with_media.returncode == 0, with_media.stderr
    assert hub.repos["datasets/alice/labels"].private
    (tmp_path / "there.parquet").write_bytes(hub.files("datasets/alice/labels")["data/train-00000-of-00001.parquet"])
    there = Dataset.from_parquet(str(tmp_path / "there.parquet"), cache_dir=str(tmp_path / "cache"))
    kept = pd.read_parquet(out / "pseudo_labels.parquet")
    assert there["index"] == kept["index"].tolist()
    assert there["label"] == kept["label"].tolist()
    for row in (0, 99):
        assert there[row]["image"] == all_digits[int(kept["index"][row])]["image"]
    card = hub.files("datasets/alice/labels")["README.md"].decode()
    assert "The images are in it." in card
    assert "path: data/train-*" in card
    assert_nothing_private(hub, tmp_path, out)


def test_folders_that_do_not_fit_are_named(tmp_path, capsys):
    assert main(["push", str(tmp_path), "--repo", "alice/x"]) == 2
    assert f"{tmp_path} holds no trained backbone: no config.json and model.safetensors" in capsys.readouterr().err
    assert main(["push-labels", str(tmp_path), "--repo", "alice/x"]) == 2
    assert f"{tmp_path} holds no labels: neither pseudo_labels.parquet nor units.parquet" in capsys.readouterr().err


def test_only_listed_files_are_published(tmp_path):
    for name in (
        "config.json",
        "model.safetensors",
        "optimizer.pt",
        "training_args.bin",
        "plr_state.safetensors",
        ".env",
    ):
        (tmp_path / name).write_text("{}")
    shutil.copytree(tmp_path, tmp_path / "checkpoint-1")
    assert [path.name for path in list_published_files(tmp_path)] == ["config.json", "model.safetensors"]


def test_offline_is_told(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE=1 keeps this process away from the Hub"):
        push_folder(tmp_path, "alice/x")


def test_a_token_with_a_line_break_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(HubError, match="the token has characters in it that no token has") as error:
        push_folder(tmp_path, "alice/x", token="hf_secret\nhf_other")
    assert "hf_secret" not in str(error.value)


def test_prototypes_and_epochs(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1, save_strategy="no")
    trainer.train()
    trainer.save_labels(tmp_path)
    labels = pd.read_parquet(tmp_path / "pseudo_labels.parquet")["label"].to_numpy()
    arrays = load_file(tmp_path / "prototypes.safetensors")
    np.testing.assert_array_equal(arrays["labels"], np.unique(labels[labels >= 0]))
    features = trainer.extract_features().cpu().numpy()
    np.testing.assert_allclose(arrays["center"], features.mean(axis=0), atol=1e-5)
    embedded = features - arrays["center"]
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    means = np.stack([embedded[labels == label].mean(axis=0) for label in arrays["labels"]])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(arrays["prototypes"], expected, atol=1e-5)
    known = KnownClusters.load(tmp_path / "known_clusters.safetensors")
    np.testing.assert_array_equal(known.sizes, np.bincount(labels[labels >= 0])[known.labels])
    found = known.assign(trainer.extract_features().cpu())
    np.testing.assert_array_equal(found.label, known.labels[(embedded @ expected.T).argmax(axis=1)])
    assert (found.p_value > 0.01).all()  # as members that are compared with themselves, too
    trainer.publisher.write_metrics(1.0)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["trained_epochs"] == 1.0
