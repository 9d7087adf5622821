"""What the output folder of a recipe may hold at the start, and what --overwrite removes."""

import pytest

from hf_plr.recipe_tools.output_folder import OutputArguments, check_output_dir, prepare_output_dir


def test_an_output_folder_that_is_a_file_is_refused_by_name(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"--output_dir .*taken is a file: name a folder"):
        check_output_dir(OutputArguments(output_dir=str(path)))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("file", ["metrics.json", "plr_state.safetensors", "pseudo_labels.parquet", "run_history.json"])
def test_a_run_is_known_by_each_of_its_files_recipes_or_not(tmp_path, file):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(ValueError, match=r"holds an unfinished run: --resume_from_checkpoint resumes it"):
        check_output_dir(OutputArguments(output_dir=str(tmp_path)))
    (tmp_path / file).touch()
    # What writes the results may have been killed: only the last of them tells that it was not.
    message = (
        "holds a finished run: --overwrite" if file == "metrics.json" else "--resume_from_checkpoint completes its"
    )
    with pytest.raises(ValueError, match=message):
        check_output_dir(OutputArguments(output_dir=str(tmp_path)))
    check_output_dir(OutputArguments(output_dir=str(tmp_path), overwrite=True))
    (tmp_path / "checkpoint-7").rmdir()
    with pytest.raises(ValueError, match=r"holds a finished run: --overwrite replaces it"):
        check_output_dir(OutputArguments(output_dir=str(tmp_path)))


def test_overwriting_leaves_nothing_that_tells_of_other_clusters(tmp_path):
    names = {"cluster_names.json", "run_history.json", "known_clusters.safetensors"}
    for name in (*names, "mine.txt"):
        (tmp_path / name).write_text("{}")
    for arguments, left in (({}, names), ({"overwrite": True}, set())):
        prepare_output_dir(OutputArguments(output_dir=str(tmp_path), **arguments), is_main_process=True)
        assert {path.name for path in tmp_path.iterdir()} == {*left, "mine.txt"}


def test_overwriting_leaves_nothing_that_a_run_writes(tmp_path):
    written = {
        *("README.md", "clusters.png", "model.safetensors", "model-00001-of-00002.safetensors", "config.json"),
        *("preprocessor_config.json", "metrics.json", "report.json", "report.html", "training_args.bin"),
        *("pseudo_labels.parquet", "units.parquet", "prototypes.safetensors", "centroids.safetensors", "tree.json"),
        *("plr_state.safetensors", "plr_state-00001-of-00002.safetensors"),
    }
    mine = {"marks.csv", "names.csv", "labels.parquet", "ten.parquet", "notes.md", "features.npy"}
    for name in written | mine:
        (tmp_path / name).write_text("{}")
    prepare_output_dir(OutputArguments(output_dir=str(tmp_path), overwrite=True), is_main_process=True)
    assert {path.name for path in tmp_path.iterdir()} == mine


@pytest.mark.parametrize("labels", ["pseudo_labels.parquet", "."])
def test_overwriting_keeps_what_the_run_starts_from(tmp_path, labels):
    for name in ("model.safetensors", "config.json", "README.md", "prototypes.safetensors", "pseudo_labels.parquet"):
        (tmp_path / name).write_text("{}")
    args = OutputArguments(output_dir=str(tmp_path), overwrite=True)
    args.labels = str(tmp_path / labels)  # as recipes' own arguments have it
    prepare_output_dir(args, is_main_process=True, start=str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.safetensors", "config.json", "pseudo_labels.parquet"}
