"""Marks in a browser: one sample has one mark, wherever the page shows it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from helpers.chromium import CHROMIUM, Page, check_page, wait_for_file
from helpers.constructed_report import write_constructed_report

from hf_plr import PLRTrainer
from hf_plr.cli import main

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)"),
]
N_SAMPLES = 40  # fewer than a random check has: it shows every one of them
LABELS = [i % 4 for i in range(N_SAMPLES)]
EARLIER_LABELS = [0 if label == 3 else (label + 1) % 3 if i < 8 else label for i, label in enumerate(LABELS)]
HELPERS = """
window.cardsOf = (row, place = "") => [...document.querySelectorAll(place + " .card")]
  .filter((card) => card.getAttribute("aria-label").startsWith(`image ${row},`));
window.marksOf = (row) => cardsOf(row).map((card) => card.dataset.mark);
window.openCluster = (id) => {
  const choice = document.querySelector("#sheet-choice");
  choice.value = String(id);
  choice.dispatchEvent(new Event("change"));
};
window.showOnMap = (id) => {
  const filter = document.querySelector("#map-filter");
  filter.value = String(id);
  filter.dispatchEvent(new Event("change"));
};
window.confirm = () => true;
true
"""


@pytest.fixture
def report(make_trainer, some_digits):
    """What the page shows of 40 images, each of them in the random check; clusters 0 to 3, the last one born."""
    trainer = make_trainer({"train_dataset": some_digits.select(range(N_SAMPLES))})
    data = write_constructed_report(trainer, [EARLIER_LABELS, LABELS])
    assert sorted(data["sheets"]["random"], key=int) == [str(i) for i in range(N_SAMPLES)]
    return data


def sheet_of(data, cluster):
    return next(sheet for sheet in data["sheets"]["clusters"] if sheet["id"] == cluster)


async def press_on(page: Page, row: int, place: str, key: str) -> None:
    """Press a key on a sample's card in one place."""
    await page.run(f"cardsOf({row}, '{place}')[0].focus()")
    await page.press(key)


async def downloaded(page: Page, folder) -> pd.DataFrame:
    """The marks, as the page hands them out."""
    (folder / "marks.csv").unlink(missing_ok=True)
    await page.run("document.querySelector('#download').click()")
    return pd.read_csv(await wait_for_file(folder / "marks.csv"))


def test_a_sample_has_one_mark_in_a_sheet_and_in_the_random_check(report, tmp_path, capsys):
    out, browser = tmp_path / "out", tmp_path / "browser"
    zero = sheet_of(report, 0)
    in_two_sheets = int(next(key for key in zero["changed"] if key in zero["most"] + zero["least"]))
    elsewhere = int(sheet_of(report, 1)["least"][0])

    async def work(page: Page) -> None:
        await page.run(HELPERS)
        await page.run("openCluster(0)")
        places = 3  # two sheets and the random check
        assert await page.run(f"marksOf({in_two_sheets})") == [""] * places

        # In a sheet: marked there, and everywhere else at once.
        await press_on(page, in_two_sheets, "#sheets", "w")
        assert await page.run(f"marksOf({in_two_sheets})") == ["wrong"] * places
        spoken = await page.run(f"cardsOf({in_two_sheets}, '#check')[0].getAttribute('aria-label')")
        assert spoken == f"image {in_two_sheets}, cluster 0, marked as wrong"
        pressed = f"cardsOf({in_two_sheets}, '#check')[0].querySelector('.is-wrong').getAttribute('aria-pressed')"
        assert await page.run(pressed) == "true"
        assert "1 wrong, 0 right, 39 of 40" in await page.run("document.querySelector('.labels').innerText")

        # In the random check: changed there, taken back in a sheet.
        await press_on(page, in_two_sheets, "#check", "r")
        assert await page.run(f"marksOf({in_two_sheets})") == ["right"] * places
        await press_on(page, in_two_sheets, "#sheets", "r")
        assert await page.run(f"marksOf({in_two_sheets})") == [""] * places
        assert "0 wrong, 0 right, 40 of 40" in await page.run("document.querySelector('.labels').innerText")

        # A sheet that is opened later knows the marks made before.
        await press_on(page, elsewhere, "#check", "w")
        await press_on(page, in_two_sheets, "#check", "w")
        await page.run("openCluster(1)")
        assert set(await page.run(f"marksOf({elsewhere})")) == {"wrong"}
        await page.run("document.querySelector('#rest').click()")
        assert "2 wrong, 38 right, 0 of 40" in await page.run("document.querySelector('.labels').innerText")
        table = await downloaded(page, browser)
        assert list(table.columns) == ["index", "label", "sheet", "mark"]
        assert table["index"].tolist() == list(range(N_SAMPLES))
        assert table["label"].tolist() == LABELS
        assert set(table["sheet"]) == {"random"}
        assert set(table.query("mark == 'wrong'")["index"]) == {in_two_sheets, elsewhere}

        # All are still there when the page is opened again, and can be forgotten together.
        await page.reload()
        await page.run(HELPERS)
        assert set(await page.run(f"marksOf({elsewhere})")) == {"wrong"}
        await page.run("[...document.querySelectorAll('.labels button')].pop().click()")
        assert set(await page.run(f"marksOf({elsewhere})")) == {""}
        assert await page.run("document.querySelector('#download').disabled")

    check_page(browser, out / "report.html", work)
    assert main(["audit", str(out), "--marks", str(browser / "marks.csv")]) == 0
    assert "2 of 40 random samples are wrong" in capsys.readouterr().out


def test_marks_are_shown_wherever_a_sample_is(report, tmp_path):
    (born,) = [event for event in report["stages"][-1]["flow"]["events"] if 3 in event["new"]]
    example = int(born["examples"]["3"][0])

    async def work(page: Page) -> None:
        await page.run(HELPERS)
        strip = f"[...document.querySelectorAll('#flow .strip img')].find((i) => i.alt.startsWith('image {example}'))"
        panel = "document.querySelector('#map .panel').innerText"
        await page.run("showOnMap(3)")
        row = int((await page.run(panel)).split("row")[1].split()[0])
        assert LABELS[row] == 3
        assert "not marked" in await page.run(panel)
        assert await page.run(f"{strip}.alt") == f"image {example}"
        for sample in {row, example}:
            await press_on(page, sample, "#check", "w")
        assert "wrong" in await page.run(panel)
        assert await page.run(f"{strip}.alt") == f"image {example}, marked as wrong"
        for sample in {row, example}:
            await press_on(page, sample, "#check", "w")
        assert "not marked" in await page.run(panel)
        assert await page.run(f"{strip}.alt") == f"image {example}"

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_a_mark_on_a_sheet_counts_for_the_random_check_and_missing_ones_are_told(report, tmp_path, capsys):
    out, browser = tmp_path / "out", tmp_path / "browser"
    row = int(sheet_of(report, 2)["least"][0])

    async def work(page: Page) -> None:
        await page.run(HELPERS)
        await page.run("openCluster(2)")
        await press_on(page, row, "#sheets", "w")
        table = await downloaded(page, browser)
        assert len(table) == N_SAMPLES
        assert table.dropna().values.tolist() == [[row, 2, "random", "wrong"]]

    check_page(browser, out / "report.html", work)
    assert main(["audit", str(out), "--marks", str(browser / "marks.csv")]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 random samples are wrong" in said
    assert "39 of the 40 random samples have no mark" in said


def test_marks_that_an_earlier_page_kept_are_loaded(report, tmp_path):
    kept = {
        "least_confident|0": {"index": 0, "label": 0, "sheet": "least_confident", "mark": "wrong"},
        "random|0": {"index": 0, "label": 0, "sheet": "random", "mark": "right"},  # against the one above
        "random|5": {"index": 5, "label": 1, "sheet": "random", "mark": "wrong"},
        "changed|6": {"index": 6, "label": 2, "sheet": "changed", "mark": "right"},
        "random|99": {"index": 99, "label": 2, "sheet": "random", "mark": "right"},  # not on this page
        "random|7": {"mark": "<b>"},
        "8": 3,
    }
    name = f"hf-plr-marks-{report['labels_id']}"

    async def work(page: Page) -> None:
        for text, marked in ((json.dumps(kept), {0: "right", 5: "wrong", 6: "right"}), ("[1]", {}), ("{", {})):
            await page.run(f"localStorage.setItem({json.dumps(name)}, {json.dumps(text)})")
            await page.reload()
            await page.run(HELPERS)
            shown = await page.run(f"[...Array({N_SAMPLES}).keys()].map((row) => marksOf(row)[0])")
            assert {row: mark for row, mark in enumerate(shown) if mark} == marked
            if marked:
                table = (await downloaded(page, tmp_path / "browser")).dropna()
                assert table["index"].tolist() == [0, 5, 6]

        # What another tab writes is shown here.
        event = f"new StorageEvent('storage', {{key: {json.dumps(name)}}})"
        await page.run(f'localStorage.setItem({json.dumps(name)}, \'{{"3":"wrong"}}\'); dispatchEvent({event})')
        assert np.unique(await page.run("marksOf(3)")).tolist() == ["wrong"]

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_marks_of_segments_name_their_seconds(make_sound_trainer, tmp_path, capsys):
    trainer = make_sound_trainer(PLRTrainer, segment_seconds=0.25, num_clusters=4)
    store = trainer.train_dataset
    labels = np.arange(len(store)) % 4
    data = write_constructed_report(trainer, [labels, labels])
    out, browser = tmp_path / "out", tmp_path / "browser"
    frame = pd.DataFrame({"index": store.rows, "start": store.segments[:, 0], "end": store.segments[:, 1]})
    frame.assign(label=labels).to_parquet(out / "pseudo_labels.parquet")
    shown = data["sheets"]["random"][0]
    row, start, end = (data["samples"][shown][i] for i in (0, 5, 6))

    async def work(page: Page) -> None:
        names = await page.run(
            "[...document.querySelectorAll('#check .card')].map((card) => card.getAttribute('aria-label'))"
        )
        assert any(name.startswith(f"segment {row} ({start:.2f} to {end:.2f} s), cluster") for name in names)
        await page.run("document.querySelector('#rest').click()")
        table = await downloaded(page, browser)
        assert list(table.columns) == ["index", "label", "sheet", "mark", "start", "end"]
        expected = {tuple(data["samples"][key][i] for i in (0, 5, 6)) for key in data["sheets"]["random"]}
        assert set(table[["index", "start", "end"]].itertuples(index=False, name=None)) == expected

    check_page(browser, out / "report.html", work)
    assert main(["audit", str(out), "--marks", str(browser / "marks.csv")]) == 0
    assert f"(0 of {len(data['sheets']['random'])} random samples are wrong)" in capsys.readouterr().out
