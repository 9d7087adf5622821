"""Names, and the history over runs, as a browser shows them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.chromium import CHROMIUM, Page, check_page
from helpers.constructed_report import write_constructed_report
from helpers.run_lines import make_history, write_run

from hf_plr.report.html.earlier_runs import render_again
from hf_plr.report.names import write_cluster_names
from hf_plr.report.run_history import RunHistory

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)"),
]
HOSTILE = "</script><img src=x onerror=alert(1)><!-- '"
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
LEAKS = """[...document.querySelectorAll('#runs svg text, #flow svg text')].filter((text) => {
  const [box, frame] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
  return box.left < frame.left - 1 || box.right > frame.right + 1;
}).map((text) => text.textContent)"""
ROWS = "[...document.querySelectorAll('#runs svg.lives text.name')].map((text) => text.lastChild.textContent)"


def rows_of(selector: str) -> str:
    cells = "[...row.cells].map((cell) => cell.textContent)"
    return f"[...document.querySelectorAll('{selector} tbody tr')].map((row) => {cells})"


def test_names_are_shown_wherever_a_cluster_is(make_trainer, tmp_path):
    position = range(203)
    stages = [[0 if i < 100 else 1 for i in position], [0 if i < 50 else 2 if i < 100 else 1 for i in position]]
    write_constructed_report(make_trainer(), stages)
    out = tmp_path / "out"
    write_cluster_names(out, {1: "crack along the whole of the seam", 2: "dent"})
    render_again(out)

    async def work(page: Page) -> None:
        assert "2 of the 3 clusters have a name." in await page.run("document.getElementById('overview').innerText")
        sheets = await page.run("document.getElementById('sheet-choice').innerText")
        assert "crack along the whole of the seam (1)" in sheets
        assert "dent (2)" in sheets
        assert "cluster 0" in sheets
        assert "dent (2)" in await page.run("document.getElementById('map-filter').innerText")
        diagram = await page.run("document.querySelector('#flow .diagram').textContent")
        assert "dent (2) (new): 50" in diagram
        assert "crack along the" in diagram
        assert "\u2026 (1): 103" in diagram
        assert "dent (2)" in await page.run("document.querySelector('#flow .appeared').innerText")
        sizes = await page.run(rows_of("#sizes"))
        assert sizes[0][:3] == ["1", "crack along the whole of the seam", "103"]
        assert ["2", "dent", "50"] in [row[:3] for row in sizes]
        assert ["0", "-", "50"] in [row[:3] for row in sizes]
        changes = await page.run(rows_of("#flow"))
        assert [sorted(row[2].split(", ")) for row in changes if row[0] == "split"] == [["0", "dent (2)"]]
        headings = await page.run("[...document.querySelectorAll('#check h4')].map((each) => each.innerText)")
        assert headings[0] == "crack along the whole of the seam (1)"

    check_page(tmp_path / "browser", out / "report.html", work)


@pytest.mark.parametrize("width", [360, 800])
def test_long_names_fit_into_the_diagram(make_trainer, tmp_path, width):
    position = range(203)
    stages = [[0 if i < 100 else 1 for i in position], [0 if i < 50 else 2 if i < 100 else 1 for i in position]]
    write_constructed_report(make_trainer(), stages)
    write_cluster_names(tmp_path / "out", {1: "uneven surface at the left edge of the tile", 2: "Großer Riß, mehrfach"})
    render_again(tmp_path / "out")

    async def work(page: Page) -> None:
        assert await page.run("document.querySelectorAll('#flow svg text').length") > 4
        assert await page.run(LEAKS) == []
        assert await page.run(FITS)

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work, width=width, height=800)


@pytest.mark.parametrize(("n_runs", "n_clusters"), [(2, 5), (8, 64)])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_history_over_runs(tmp_path, n_runs, n_clusters, width):
    history = make_history(n_runs, n_clusters)
    out = write_run(tmp_path / "out", history)
    events = history.runs[-1].events
    write_cluster_names(out, {events.born[0]: "a name that is as long as names can be, which is 60 signs", 0: "crack"})
    render_again(out)
    last = history.runs[-1]
    everyone = {label for run in history.runs for label in run.clusters}

    async def work(page: Page) -> None:
        assert await page.run(FITS)
        assert await page.run(LEAKS) == []
        (table, sizes, changes) = [
            await page.run(rows_of(f'#runs [aria-label="{name}"]'))
            for name in ("Runs", "Sizes by run", "Changes from run to run")
        ]
        heads = await page.run("[...document.querySelectorAll('#runs table.runs th')].map((head) => head.textContent)")
        rows = [dict(zip(heads, row, strict=True)) for row in table]
        assert [row["run"] for row in rows] == [run.name for run in history.runs]
        assert [row["clusters"] for row in rows] == [str(len(run.clusters)) for run in history.runs]
        counts = {kind: count for kind, count in events.counts().items() if count or kind in heads}
        assert {kind: int(rows[-1][kind]) for kind in counts} == counts
        assert "reshaped" not in counts
        numbers = {"samples": last.samples, "new": last.data.new, "gone": last.data.removed}
        assert {name: rows[-1][name] for name in numbers} == {name: f"{number:,}" for name, number in numbers.items()}
        if last.audit is not None:
            assert rows[-1]["wrong (95%)"].startswith(f"{last.audit.wrong / 120:.1%} (")
            said = await page.run("document.getElementById('overview').innerText")
            assert f"{last.audit.wrong / 120:.1%} of the labels are wrong" in said
        assert [row[0] for row in changes] == [
            "born",
            "died",
            *["split"] * counts["split"],
            *["merged"] * len(events.merged),
        ]
        named = f"a name that is as long as names can be, which is 60 signs ({events.born[0]})"
        born = [f"{named if x == events.born[0] else x} \u00b7 {last.clusters[x]:,}" for x in events.born]
        assert changes[0] == ["born", "-", ", ".join(born)]

        shown = await page.run(ROWS)
        assert len(shown) == min(16, len(everyone))
        if len(everyone) > 16:
            await page.run("[...document.querySelectorAll('#runs button')].at(-1).click()")
            shown = await page.run(ROWS)
        assert len(shown) == len(everyone)
        assert await page.run(FITS)
        assert await page.run(LEAKS) == []
        at_end = await page.run("[...document.querySelectorAll('#runs text.size')].map((text) => text.textContent)")
        assert sorted(at_end) == sorted(f"{last.clusters[x]:,}" if x in last.clusters else "gone" for x in everyone)
        born = [x for x in everyone if x not in history.runs[0].clusters]
        assert await page.run("document.querySelectorAll('#runs .mark.born').length") == len(born)
        died = everyone - last.clusters.keys()
        assert await page.run("document.querySelectorAll('#runs .mark.died').length") == len(died)
        by_cluster = {row[0]: row[1:] for row in await page.run(rows_of('#runs [aria-label="Sizes by run"]'))}
        assert len(sizes) == len(by_cluster) == len(everyone)
        for x in everyone:
            name = f"crack ({x})" if x == 0 else named if x == events.born[0] else str(x)
            assert by_cluster[name] == [f"{run.clusters[x]:,}" if x in run.clusters else "-" for run in history.runs]

        # The arrow keys go through clusters and runs, and say what became of each.
        await page.run("document.querySelector('#runs svg.lives').focus()")
        readout = "document.querySelector('#runs output').textContent"
        first = await page.run(readout)
        await page.press("ArrowDown")
        second = await page.run(readout)
        assert first != second
        assert f" in {last.name}: " in second
        await page.press("ArrowLeft")
        assert f" in {history.runs[-2].name}: " in await page.run(readout)

    check_page(tmp_path / "browser", out / "report.html", work, width=width, height=800, dark=width < 500)


@pytest.mark.parametrize(
    ("copies", "words"), [(0, ""), (1, "1 is a further copy of these, "), (2, "2 are further copies")]
)
def test_changes_of_an_earlier_pair_of_runs_are_chosen(tmp_path, copies, words):
    history = make_history(3, 6)
    both = history.runs[1].data.known
    data = dataclasses.replace(history.runs[1].data, known=both + copies, new=history.runs[1].data.new - copies)
    second = dataclasses.replace(history.runs[1], data=data)
    history = dataclasses.replace(history, runs=(history.runs[0], second, history.runs[2]))
    out = write_run(tmp_path / "out", history)
    events = history.runs[1].events

    async def work(page: Page) -> None:
        options = await page.run("[...document.getElementById('runs-choice').options].map((each) => each.text)")
        assert options == ["line-3-january \u2192 february", "february \u2192 march"]
        await page.run(
            "(() => { const choice = document.getElementById('runs-choice'); choice.value = '1'; "
            "choice.dispatchEvent(new Event('change')); })()"
        )
        rows = await page.run(rows_of('#runs [aria-label="Changes from run to run"]'))
        before, now = history.runs[0].clusters, history.runs[1].clusters
        parent, (_, child) = events.split[0]
        assert ["died", f"{events.died[0]} \u00b7 {before[events.died[0]]}", "-"] in rows
        became = f"{parent} \u00b7 {now[parent]}, {child} \u00b7 {now[child]}"
        assert ["split", f"{parent} \u00b7 {before[parent]}", became] in rows
        assert f"{both:,} samples are in both runs, {words}" in await page.run(
            "document.getElementById('runs').innerText"
        )

    check_page(tmp_path / "browser", out / "report.html", work)


def test_a_first_run_has_no_history_to_show(tmp_path):
    out = write_run(tmp_path / "out", make_history(1, 5))

    async def work(page: Page) -> None:
        assert await page.run("document.getElementById('runs')") is None
        assert "7.5% of the labels are wrong" in await page.run("document.getElementById('overview').innerText")

    check_page(tmp_path / "browser", out / "report.html", work)


def test_names_of_clusters_and_runs_are_text_whatever_they_are(tmp_path):
    out = write_run(tmp_path / "out", make_history(3, 6))
    content = json.loads((out / "run_history.json").read_text())
    for run in content["runs"]:
        run |= {"name": HOSTILE, "written": HOSTILE}
    (out / "run_history.json").write_text(json.dumps(content))
    history = RunHistory.read(out)
    write_cluster_names(out, {label: HOSTILE for run in history.runs for label in run.clusters})
    render_again(out)
    html = out / "report.html"
    assert "<img" not in html.read_text()

    async def work(page: Page) -> None:
        assert await page.run("document.querySelectorAll('[onerror], img').length") == 0
        assert HOSTILE in await page.run("document.getElementById('runs').textContent")

    check_page(tmp_path / "browser", html, work)
