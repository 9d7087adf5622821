"""Damaged configurations, and those with values that do not fit: the message names file and argument."""

from __future__ import annotations

import pytest
from helpers.damaged import check_damaged
from helpers.paths import REPOSITORY

from hf_plr import PLRTrainingArguments
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.running import DataArguments

pytestmark = pytest.mark.timeout(300)


def test_configs_of_the_recipes(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    settings_ = (REPOSITORY / "recipes" / "configs" / "cluster_contrast_market1501.yaml").read_bytes().splitlines()
    path.write_bytes(b"\n".join(line for line in settings_ if line and not line.startswith((b"#", b"image_"))))

    def read():
        parser = RecipeParser([DataArguments, PLRTrainingArguments], "", lambda given: {})
        try:
            parser.parse_args_and_config(["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true"])
        except SystemExit:
            raise ValueError(capsys.readouterr().err) from None

    check_damaged(path, read, examples=80)
