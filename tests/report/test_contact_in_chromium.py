"""The contact sheet and the menu of sections, as a browser shows them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.chromium import CHROMIUM, Page, check_page
from helpers.constructed_report import write_constructed_report

from hf_plr.report.html.render import render

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)"),
]
SECTIONS = "[...document.querySelectorAll('main section')].map((section) => section.id)"
LABELS = np.minimum(np.arange(203) // 2, 99) % 70  # 70 clusters, of 2 to 7 samples


def test_all_clusters_come_first_and_lead_to_their_members(make_trainer, tmp_path):
    write_constructed_report(make_trainer(), [[0] * 203, LABELS.tolist()])

    async def work(page: Page) -> None:
        assert (await page.run(SECTIONS))[0] == "clusters"
        assert await page.run("document.querySelector('#nav a').textContent") == "Clusters"
        tiles = "[...document.querySelectorAll('#clusters .face')]"
        ids, sizes = np.unique(LABELS, return_counts=True)
        shown = await page.run(f"{tiles}.map((tile) => tile.querySelector('b').textContent)")
        assert sorted(map(int, shown)) == ids.tolist()
        assert [sizes[int(label)] for label in shown] == sorted(sizes, reverse=True)
        counts = await page.run(f"{tiles}.map((tile) => tile.querySelectorAll('img').length)")
        assert counts == [min(sizes[int(label)], 6) for label in shown]

        # One stop of the Tab key; arrow keys go on; Enter opens the members, of clusters without a sheet, too.
        await page.run("document.querySelector('#clusters .face-name').focus()")
        await page.press("ArrowRight")
        await page.press("ArrowDown")
        stops = "[...document.querySelectorAll('#clusters .face-name')].filter((each) => each.tabIndex === 0).length"
        assert await page.run(stops) == 1
        name = await page.run("document.activeElement.querySelector('b').textContent")
        assert name not in shown[:2]
        await page.press("Enter")
        assert await page.run("document.querySelector('#sheet-choice').value") == name
        assert await page.run("document.activeElement.id") == "sheet-choice"
        await page.click(f"{tiles}.at(-1).querySelector('button')")
        assert await page.run("document.querySelector('#sheet-choice').value") == shown[-1]
        assert await page.run("document.querySelectorAll('#sheets .card img').length") > 0

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_a_thousand_clusters_appear_when_they_are_asked_for(make_trainer, tmp_path):
    write_constructed_report(make_trainer(), [[0] * 203, list(range(200)) + [0, 0, 0]])

    async def work(page: Page) -> None:
        tiles = "document.querySelectorAll('#clusters .face').length"
        assert await page.run(tiles) == 120
        await page.click("[...document.querySelectorAll('#clusters button')].at(-1)")
        assert await page.run(tiles) == 200
        assert await page.run("document.activeElement.className") == "face-name"
        assert await page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work, width=390, height=844)


def test_sections_are_a_menu_on_a_phone(make_trainer, tmp_path):
    write_constructed_report(make_trainer(), [[0] * 203, LABELS.tolist()])

    async def work(page: Page) -> None:
        is_shown = "getComputedStyle(document.getElementById('nav')).display !== 'none'"
        state = "document.getElementById('menu').getAttribute('aria-expanded')"
        assert not await page.run(is_shown)
        await page.run("document.getElementById('menu').focus()")
        await page.press("Enter")
        assert await page.run(is_shown)
        assert await page.run(state) == "true"
        names = await page.run("[...document.querySelectorAll('#nav a')].map((link) => link.hash.slice(1))")
        assert names == await page.run(SECTIONS)
        fits = "[...document.querySelectorAll('#nav a')].every((link) => link.getBoundingClientRect().bottom <= 844)"
        assert await page.run(fits)
        await page.press("Escape")
        assert not await page.run(is_shown)
        assert await page.run("document.activeElement.id") == "menu"
        await page.click("document.getElementById('menu')")
        await page.click("[...document.querySelectorAll('#nav a')].at(-1)")
        assert not await page.run(is_shown)
        assert await page.run("location.hash") == "#settings"
        assert await page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work, width=390, height=844)


def test_a_report_that_was_written_before_there_was_a_contact_sheet(make_trainer, tmp_path):
    data = write_constructed_report(make_trainer(), [[0] * 203, LABELS.tolist()])
    data = json.loads(json.dumps(data))
    del data["sheets"]["contact"]
    html = tmp_path / "older.html"
    html.write_text(render(data))

    async def work(page: Page) -> None:
        assert await page.run("document.querySelectorAll('#clusters .face').length") == 60  # those with sheets

    check_page(tmp_path / "browser", html, work)
