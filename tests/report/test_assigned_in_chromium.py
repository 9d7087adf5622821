"""The page of an assigned data set as a browser shows it: headless Chromium, where there is one."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.chromium import CHROMIUM, Page, check_page
from helpers.constructed_assignment import construct_assignment
from sklearn.datasets import load_digits

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)"),
]
HOSTILE = "</script><img src=x onerror=alert(1)>"
DRAWN = """(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    patterns: all("#patterns .group").length,
    figures: all("#patterns .card img").length,
    rows: all("#clusters .share-row").length,
    bars: all("#clusters .share-bar .here").filter((bar) => bar.getBoundingClientRect().width > 0).length,
    lines: all("#time path.line").filter((path) => path.getTotalLength() > 0).length,
    band: all("#time path.band").length,
    p_values: all("#overview rect.bar").length,
    broken: all("img").filter((image) => image.complete && !image.naturalWidth).length,
    colours: new Set(all(".swatch").map((swatch) => getComputedStyle(swatch).backgroundColor)).size,
  };
})()"""


@pytest.fixture(scope="module")
def pixels():
    return (load_digits().images[:600] * 15.9).astype(np.uint8)


def test_shares_patterns_and_times_are_shown(pixels, tmp_path):
    assigned, samples = construct_assignment(pixels, names={2: "crack", 14: HOSTILE}, title=HOSTILE)
    assigned.write(tmp_path / "assigned.parquet")

    async def work(page: Page) -> None:
        drawn = await page.run(DRAWN)
        assert drawn["patterns"] == 2
        assert drawn["figures"] == 16 + min(16, assigned.report["lone"]["size"])
        assert drawn["rows"] == drawn["bars"] == 8
        assert drawn["lines"] == 9
        assert drawn["band"] == 1
        assert drawn["p_values"] == 20
        assert drawn["broken"] == 0
        assert drawn["colours"] == 8
        text = await page.run("document.body.innerText")
        assert f"{samples.is_new.sum()} \u00b7 " in text
        assert "More images are new than chance explains" in text
        assert "crack (2)" in text
        assert f"{HOSTILE} (14)" in text
        assert "By taken, in 24 bins of one week each" in text

        # A curve tells its values to the keyboard and to the mouse.
        plot = "document.querySelector('#time .curve svg')"
        readout = "document.querySelector('#time .curve output').textContent"
        await page.run(f"{plot}.focus()")
        await page.press("ArrowLeft")
        assert "2026-11-02" in await page.run(readout)
        await page.run(f"{plot}.blur()")
        assert "2026" not in await page.run(readout)
        assert await page.run("document.querySelector('#clusters details').open") is False
        await page.run("document.querySelector('#clusters summary').click()")
        assert await page.run("document.querySelectorAll('#clusters tbody tr').length") == 8

    check_page(tmp_path / "browser", tmp_path / "assigned.html", work)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_without_scrolling_sideways(pixels, tmp_path, dark):
    assigned, _ = construct_assignment(pixels, n_clusters=64, n_patterns=5, names={0: "W" * 60}, title="x" * 80)
    assigned.write(tmp_path / "assigned.parquet")

    async def work(page: Page) -> None:
        assert await page.run("document.documentElement.scrollWidth") <= 390
        assert (await page.run(DRAWN))["rows"] == 30
        assert "30 of 64 are drawn" in await page.run("document.body.innerText")
        background = await page.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == dark

    check_page(tmp_path / "browser", tmp_path / "assigned.html", work, width=390, height=844, dark=dark)


def test_nothing_new_and_no_times_are_said(pixels, tmp_path):
    assigned, _ = construct_assignment(pixels[:120], n_clusters=3, n_patterns=0, has_times=False)
    report = assigned.report
    report["new"] |= {"count": 0, "share": 0.0, "low": 0.0, "high": 0.03}
    report["lone"] = {"size": 0, "members": []}
    assigned.write(tmp_path / "assigned.parquet")

    async def work(page: Page) -> None:
        text = await page.run("document.body.innerText")
        assert "No more images are new than chance explains" in text
        assert "No image is new." in text
        assert await page.run("document.getElementById('time')") is None

    check_page(tmp_path / "browser", tmp_path / "assigned.html", work)
