"""The report as a browser shows it: headless Chromium, where there is one (`apt-get install chromium`)."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from helpers.chromium import CHROMIUM, Page, check_page, in_chromium, wait_for_file
from helpers.constructed_report import write_constructed_report

from hf_plr import PLRTrainer
from hf_plr.cli import main
from hf_plr.report.html.render import render

pytestmark = [
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
    out, browser = tmp_path / "out", tmp_path / "browser"
    labels = [i % 12 for i in range(203)]
    earlier = [min(label, 8) if i % 5 else (label + 1) % 9 for i, label in enumerate(labels)]  # 9 to 11 are born later
    data = write_constructed_report(make_trainer(), [earlier, [min(label, 8) for label in labels], labels])
    drawn_samples = [int(key) for key in data["sheets"]["random"]]
    largest = data["sheets"]["clusters"][0]
    unmarked = next(int(key) for key in largest["most"] if int(key) not in drawn_samples)

    async def work(page: Page) -> None:
        drawn = await page.run(DRAWN)
        assert drawn["dots"] > 1000
        assert drawn["lines"] == 3
        assert drawn["bars"] == 12
        assert drawn["ribbons"] > 5
        assert drawn["thumbnails"] == 120
        assert drawn["broken"] == 0
        assert drawn["tables"] >= drawn["lines"]
        text = await page.run("document.body.innerText")
        assert "kNN accuracy (5 neighbours)" in text
        assert "0.250 \u2192 0.750" in text
        assert "no labels were given" not in text

        # The map: pointing and arrow keys show a sample, and Enter opens its cluster.
        panel = "document.querySelector('#map .panel').innerText"
        await page.run("document.querySelector('#map canvas').scrollIntoView({block: 'center', behavior: 'instant'})")
        await page.run("document.querySelector('#map canvas').focus()")
        seen = [await page.run(panel)]
        for key in ("ArrowRight", "ArrowUp"):
            await page.press(key)
            seen.append(await page.run(panel))
        assert all("confidence" in sample for sample in seen)
        assert len(set(seen)) == 3
        cluster = seen[-1].split("cluster")[1].split()[0]
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

        # Marks, by keys and by clicks, in the random check and on a sheet.
        await page.run("document.querySelector('#check .card').focus()")
        await page.press("w")
        await page.run("document.querySelectorAll('#check .card')[1].focus()")
        await page.press("r")
        await page.click("document.querySelectorAll('#check .card')[2].querySelector('.picture')")
        marks = "[...document.querySelectorAll('#check .card')].map((card) => card.dataset.mark)"
        assert (await page.run(marks))[:4] == ["wrong", "right", "wrong", ""]
        await page.run(
            f"(() => {{ const choice = document.querySelector('#sheet-choice'); choice.value = '{largest['id']}';"
            "choice.dispatchEvent(new Event('change'));"
            "[...document.querySelectorAll('#sheets .card')]"
            f".find((card) => card.getAttribute('aria-label').startsWith('image {unmarked},')).focus(); }})()"
        )
        await page.press("w")
        await page.run("document.querySelector('#rest').click()")
        assert set(await page.run(marks)) == {"wrong", "right"}
        assert "2 wrong, 118 right, 0 of 120" in await page.run("document.querySelector('.labels').innerText")
        assert "Other images: 1 marked" in await page.run("document.querySelector('.labels').innerText")
        await page.run("document.querySelector('#download').click()")
        table = pd.read_csv(await wait_for_file(browser / "marks.csv"))
        assert list(table.columns) == ["index", "label", "sheet", "mark"]
        assert table["index"].is_unique
        assert [labels[row] for row in table["index"]] == table["label"].tolist()
        in_check = table.query("sheet == 'random'")
        assert sorted(in_check["index"]) == sorted(drawn_samples)
        assert in_check["mark"].value_counts().to_dict() == {"right": 118, "wrong": 2}
        assert table[table["sheet"] != "random"].values.tolist() == [
            [unmarked, largest["id"], "most_confident", "wrong"]
        ]

    check_page(browser, out / "report.html", work)
    assert main(["audit", str(out), "--marks", str(browser / "marks.csv")]) == 0
    said = capsys.readouterr().out
    assert "121 samples are marked, 3 of them wrong" in said
    assert "2 of 120 random samples are wrong" in said
    assert "no mark" not in said


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

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


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

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work, width=360, height=700, dark=True)


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

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work, width=360, height=700)


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
    assert data["run"]["weights_epoch"] is None  # the last one
    data["run"]["weights_epoch"] = 1.0
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
        assert "steps · weights of epoch 1, the best" in await page.run("document.querySelector('.lead').textContent")
        command = await page.run("document.querySelector('code.command').textContent")
        assert command == "hf-plr audit '" + HOSTILE.replace("'", "'\\''") + "' --marks marks.csv"
        data_only = "[...document.images].every((image) => image.src.startsWith('data:'))"
        assert await page.run(data_only)

    check_page(tmp_path / "browser", html, work)
