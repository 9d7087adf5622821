"""What recipes check before they run."""

import pytest

from hf_plr.recipe_tools.running import OutputArguments, check_output_dir


def test_an_output_folder_that_is_a_file_is_refused_by_name(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"--output_dir .*taken is a file: name a folder"):
        check_output_dir(OutputArguments(output_dir=str(path)))
    assert path.read_text() == "mine"
