"""The report as a browser shows it: headless Chromium, where there is one (`apt-get install chromium`)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.chromium import CHROMIUM, Page, in_chromium

from hf_plr import PLRTrainer
from hf_plr.cli import main
from hf_plr.report.html.render import render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)"),
]
HOSTILE = '</script><img src=x onerror="alert(1)"><!-- \''
DRAWN = """(() => {
  const canvas = document.querySelector("#map canvas");
  const pen = canvas && canvas.getContext("2d");
  const pixels = canvas ? pen.getImageData(0, 0, canvas.width, canvas.height).data : [];
  let dots = 0;
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) dots += 1;
  return {
    dots,
    lines: [...document.querySelectorAll("#curves path.line")].filter((path) => path.getTotalLength() > 0).length,
    bars: document.querySelectorAll("#sizes rect.bar").length,
    ribbons: document.querySelectorAll("#flow .ribbon, #flow .stub").length,
    thumbnails: document.querySelectorAll("#check .card img").length,
    broken: [...document.images].filter((image) => image.complete && !image.naturalWidth).length,
    tables: document.querySelectorAll("#curves table").length,
  };
})()"""


def check(folder: Path, html: Path, work, **options) -> None:
    """Open a page, do something with it, and see that it asked for nothing and complained of nothing."""

    async def whole(page: Page) -> None:
        await page.open(html, **options)
        assert await page.run("document.documentElement.dataset.ready") == "true"
        await work(page)
        assert page.errors == []
        assert page.requests == [html.resolve().as_uri()]

    in_chromium(folder, whole)


async def file_of(path: Path) -> Path:
    """A download, when it is there."""
    for _ in range(200):
        if path.exists():
            return path
        await asyncio.sleep(0.05)
    raise AssertionError(f"{path} was not downloaded")


def test_the_check_finds_what_it_looks_for(tmp_path):
    html = tmp_path / "bad.html"
    html.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no'); throw Error('bad')</script>")

    async def work(page: Page) -> None:
        await page.open(html)
        assert "http://127.0.0.1:9/x.png" in page.requests
        assert any("bad" in error for error in page.errors)
        assert any("'no'" in error for error in page.errors)

    in_chromium(tmp_path / "browser", work)


def test_images_are_shown_marked_and_read_back(make_trainer, tmp_path, capsys):
    trainer = make_trainer()
    trainer.score("before")
    trainer.train()
    trainer.score("after")
    out = tmp_path / "out"
    trainer.save_labels(str(out))
    trainer.write_report()
    labels = pd.read_parquet(out / "pseudo_labels.parquet").set_index("index")["label"]

    async def work(page: Page) -> None:
        drawn = await page.run(DRAWN)
        assert drawn["dots"] > 1000
        assert drawn["lines"] > 8
        assert drawn["bars"] == labels.nunique()
        assert drawn["ribbons"] > 5
        assert drawn["thumbnails"] == 120
        assert drawn["broken"] == 0
        assert drawn["tables"] >= drawn["lines"]
        text = await page.run("document.body.innerText")
        assert "kNN accuracy (5 neighbours)" in text
        assert "no labels were given" not in text

        # The map: pointing and arrow keys show a sample, and Enter opens its cluster.
        panel = "document.querySelector('#map .panel').innerText"
        await page.run("document.querySelector('#map canvas').scrollIntoView({block: 'center', behavior: 'instant'})")
        await page.run("document.querySelector('#map canvas').focus()")
        await page.press("ArrowRight")
        first = await page.run(panel)
        assert "confidence" in first
        await page.press("ArrowLeft")
        await page.press("ArrowUp")
        assert await page.run(panel) != first
        cluster = (await page.run(panel)).split("cluster")[1].split()[0]
        await page.press("Enter")
        assert await page.run("document.querySelector('#sheet-choice').value") == cluster
        assert await page.run("document.activeElement.id") == "sheet-choice"

        # A curve: the arrow keys give its values.
        await page.run("document.querySelector('#curves svg').focus()")
        await page.press("ArrowLeft")
        assert " at " in await page.run("document.querySelector('#curves .value').textContent")

        # What changed: another pair of epochs.
        await page.run("document.querySelector('#flow input').focus()")
        await page.press("ArrowLeft")
        assert await page.run("document.querySelector('#flow-choice').selectedOptions[0].text") == "epoch 0 \u2192 1"

        # Marks, by keys and by clicks, in two sheets.
        await page.run("document.querySelector('#check .card').focus()")
        await page.press("w")
        await page.press("Tab")
        await page.run("document.querySelectorAll('#check .card')[1].focus()")
        await page.press("r")
        box = await page.run(
            "(() => { const card = document.querySelectorAll('#check .card')[2].querySelector('.picture');"
            "card.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = card.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        await page.point(*box, click=True)
        marks = "[...document.querySelectorAll('#check .card')].map((card) => card.dataset.mark)"
        assert (await page.run(marks))[:4] == ["wrong", "right", "wrong", ""]
        await page.run("document.querySelector('#sheets .card').focus()")
        await page.press("w")
        await page.run("document.querySelector('#rest').click()")
        assert set(await page.run(marks)) == {"wrong", "right"}
        assert "2 wrong, 118 right, 0 of 120" in await page.run("document.querySelector('.labels').innerText")
        await page.run("document.querySelector('#download').click()")
        found = pd.read_csv(await file_of(tmp_path / "browser" / "marks.csv"))
        assert list(found.columns) == ["index", "label", "sheet", "mark"]
        assert found["sheet"].value_counts().to_dict() == {"random": 120, "most_confident": 1}
        assert found.query("sheet == 'random'")["mark"].value_counts().to_dict() == {"right": 118, "wrong": 2}
        assert found["index"].map(labels).tolist() == found["label"].tolist()
        assert found.query("sheet == 'random'")["index"].is_unique

        # They are still there when the page is opened again.
        await page.send("Page.reload")
        await asyncio.sleep(0.7)
        assert "2 wrong, 118 right" in await page.run("document.querySelector('.labels').innerText")
        page.requests.pop()

    check(tmp_path / "browser", out / "report.html", work)
    assert main(["audit", str(out), "--marks", str(tmp_path / "browser" / "marks.csv")]) == 0
    assert "2 of 120" in capsys.readouterr().out


def test_sounds_are_played(make_sound_trainer, tmp_path):
    trainer = make_sound_trainer(PLRTrainer, num_train_epochs=2)
    trainer.train()
    trainer.write_report()

    async def work(page: Page) -> None:
        drawn = await page.run(DRAWN)
        assert drawn["dots"] > 200
        assert drawn["thumbnails"] > 60
        assert drawn["broken"] == 0
        await page.run("document.querySelector('#map canvas').focus()")
        await page.press("ArrowRight")
        seconds = (
            "new Promise((done, failed) => { const audio = document.querySelector('#map audio');"
            "audio.preload = 'auto'; audio.onerror = () => failed(audio.error.message);"
            "if (audio.readyState) done(audio.duration); audio.onloadedmetadata = () => done(audio.duration); })"
        )
        assert 0.2 < await page.run(seconds) < 1.3
        assert await page.run("document.querySelectorAll('#check .play').length") == drawn["thumbnails"]
        await page.run("document.querySelector('#check .picture').click()")

    check(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_units_of_frames_on_a_phone(make_sound_trainer, tmp_path):
    trainer = make_sound_trainer(num_train_epochs=2)
    trainer.train()
    trainer.write_report()

    async def work(page: Page) -> None:
        drawn = await page.run(DRAWN)
        assert drawn["bars"] == 12
        assert drawn["dots"] == drawn["thumbnails"] == 0
        assert await page.run("document.querySelectorAll('#sheets .play').length") > 0
        text = await page.run("document.body.innerText")
        assert "too many to be dots" in text
        assert "Random check" not in text
        assert await page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    check(tmp_path / "browser", tmp_path / "out" / "report.html", work, width=360, height=700, dark=True)


def test_without_labels_it_does_not_pretend_to_know_accuracy(make_trainer, some_digits, tmp_path):
    trainer = make_trainer({"train_dataset": some_digits.remove_columns("label")}, num_train_epochs=2)
    trainer.train()
    trainer.write_report()

    async def work(page: Page) -> None:
        drawn = await page.run(DRAWN)
        assert min(drawn[name] for name in ("dots", "lines", "bars", "ribbons", "thumbnails")) > 0
        text = await page.run("document.body.innerText")
        assert "No labels were given, so accuracy is not known." in text
        assert "kNN" not in text
        assert await page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    check(tmp_path / "browser", tmp_path / "out" / "report.html", work, width=360, height=700)


def test_names_are_text_whatever_they_are(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=2)
    trainer.score("before")
    trainer.train()
    trainer.write_report()
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    data |= {"title": HOSTILE, "note": HOSTILE, "facts": [HOSTILE], "settings": [[HOSTILE, HOSTILE]]}
    data |= {"versions": {HOSTILE: HOSTILE}, "scores": {HOSTILE: {HOSTILE: 0.5}}, "score_titles": {HOSTILE: HOSTILE}}
    data["run"] |= dict.fromkeys(("noun", "plural", "members", "architecture", "start", "source"), HOSTILE)
    data["run"] |= dict.fromkeys(("written", "output_dir", "scored_on"), HOSTILE)
    for curve in data["curves"]:
        curve |= {"title": HOSTILE, "what": HOSTILE}
    for sample in data["samples"].values():
        sample[4] = HOSTILE
    data["media_types"]["image"] = "text/html," + HOSTILE
    html = tmp_path / "hostile.html"
    html.write_text(render(data))

    async def work(page: Page) -> None:
        assert await page.run("document.querySelectorAll('[onerror]').length") == 0
        assert await page.run("document.querySelectorAll('script').length") == 2
        assert await page.run("document.querySelector('h1').textContent") == HOSTILE
        assert await page.run("document.title") == f"{HOSTILE} - hf-plr report"
        command = await page.run("document.querySelector('code.command').textContent")
        assert command == "hf-plr audit '" + HOSTILE.replace("'", "'\\''") + "' --marks marks.csv"
        data_only = "[...document.images].every((image) => image.src.startsWith('data:'))"
        assert await page.run(data_only)

    check(tmp_path / "browser", html, work)
