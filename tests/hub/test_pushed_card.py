"""The model card that a push takes along: it loads from the repository, and what people wrote stays."""

from __future__ import annotations

import re

import pytest
import yaml

from hf_plr.hub.push import rename_model

PEOPLE = 'People: compare `AutoModel.from_pretrained("facebook/dinov2-small")`, and run 7 of "# plain".\n'


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "my run #1", "it's *mine*", 'a "quoted" run', "R&D <3", "back\\slash", "yes", "3", "me/run-7"),
        "a name that is so long that YAML writes it on more than one line, as it has many more words than others do",
    ],
)
@pytest.mark.parametrize("has_scores", [True, False])
def test_the_name_of_the_run_becomes_that_of_the_repository(make_trainer, tmp_path, name, has_scores):
    trainer = make_trainer(label_column="label")
    if has_scores:
        trainer.scores = {"after": {"knn_accuracy": 0.75}}
    trainer.create_model_card(model_name=name)
    path = tmp_path / "out" / "README.md"
    card = path.read_text() + PEOPLE
    pushed = rename_model(card, "alice/_other_run")
    trainer.create_model_card(model_name="alice/_other_run")
    assert pushed == path.read_text() + PEOPLE
    assert len(re.findall(r'from_pretrained\("alice/_other_run"', pushed)) == 2
    metadata = header_of(pushed)
    assert (metadata["model-index"][0]["name"] if has_scores else metadata["model_name"]) == "alice/_other_run"


@pytest.mark.parametrize("card", ["", "# mine\n", "---\n- list\n---\n", "---\n{\n---\n", "---\nmodel-index: 3\n---\n"])
def test_cards_of_people_stay(card):
    assert rename_model(card + PEOPLE, "alice/other") == card + PEOPLE
