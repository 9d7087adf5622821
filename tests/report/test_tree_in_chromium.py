"""The tree of clusters and its levels, as a browser shows them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.chromium import CHROMIUM, Page, check_page
from helpers.constructed_report import write_constructed_report

from hf_plr.refinement.cluster_tree import ClusterTree, make_tree
from hf_plr.report.html.earlier_runs import render_again
from hf_plr.report.names import write_cluster_names
from hf_plr.report.tree_file import write_tree

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)"),
]
HOSTILE = "</script><img src=x onerror=alert(1)><!-- '"
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
BARS = "[...document.querySelectorAll('#tree [role=treeitem]')]"
FOCUSED = "document.activeElement.getAttribute('aria-label')"
MAP = "document.querySelector('#map canvas').toDataURL()"
GROUPS = """[...document.querySelectorAll('#clusters .group-of-faces')].map((box) =>
  [...box.querySelectorAll('.face-name b')].map((name) => Number(name.textContent)))"""
SIZES = """[...document.querySelectorAll('#sizes tbody tr')].map((row) =>
  [...row.cells].slice(0, 2).map((cell) => Number(cell.textContent)))"""
OPTIONS = """[...document.querySelectorAll('#sheet-choice optgroup')].map((group) =>
  [...group.querySelectorAll('option')].map((option) => Number(option.value)))"""


def write_report_with_tree(trainer, out, n_clusters: int) -> ClusterTree:
    labels = (np.arange(203) ** 2 // 7) % n_clusters
    labels[:n_clusters] = np.arange(n_clusters)
    write_constructed_report(trainer, [[0] * 203, labels.tolist()])
    ids, sizes = np.unique(labels, return_counts=True)
    points = np.random.default_rng(n_clusters).normal(size=(n_clusters, 4))
    tree = make_tree(ids, sizes, np.linalg.norm(points[:, None] - points, axis=2))
    write_tree(out, tree)
    render_again(out)
    return tree


async def choose_level(page: Page, n_groups: int) -> None:
    field = "document.querySelector('#tree input[type=number]')"
    await page.run(f"{field}.value = {n_groups}, {field}.dispatchEvent(new Event('change'))")


def as_sets(groups):
    return {frozenset(group) for group in groups}


def test_a_level_recolours_the_map_and_regroups_sizes_and_sheets(make_trainer, tmp_path):
    tree = write_report_with_tree(make_trainer(), tmp_path / "out", 12)

    async def work(page: Page) -> None:
        assert await page.run("document.querySelectorAll('#clusters .face').length") == 12
        whole, before = await page.run(MAP), None
        for k in (9, 4, 2):
            await choose_level(page, k)
            level = tree.cut(k)
            groups = await page.run(GROUPS)
            assert as_sets(groups) == as_sets(level.members.values())
            assert as_sets(await page.run(OPTIONS)) == as_sets(level.members.values())
            sizes = await page.run(SIZES)
            assert dict(sizes) == {number: level.size(number) for number in level.members}
            assert await page.run("document.querySelectorAll('#sizes rect.bar').length") == k
            filtered = "[...document.querySelectorAll('#map-filter option')].map((each) => each.value).slice(1)"
            assert {int(number) for number in await page.run(filtered)} == set(level.members)
            drawn = await page.run(MAP)
            assert drawn not in (whole, before)
            before = drawn
        await page.click("[...document.querySelectorAll('#map .presets button')].at(-1)")
        assert await page.run("document.querySelectorAll('#clusters .group-of-faces').length") == 0
        assert await page.run(MAP) == whole

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_levels_and_bars_are_nested(make_trainer, tmp_path):
    write_report_with_tree(make_trainer(), tmp_path / "out", 11)

    async def work(page: Page) -> None:
        partitions = []
        for k in range(1, 11):
            await choose_level(page, k)
            partitions.append(as_sets(await page.run(GROUPS)))
            assert len(partitions[-1]) == k
            outside = await page.run(
                f"(() => {{ const at = {BARS}.map((bar) => [Number(bar.getAttribute('aria-level')),"
                "parseFloat(bar.style.left), parseFloat(bar.style.left) + parseFloat(bar.style.width)]);"
                "return at.filter(([row, start, end]) => row > 1 && !at.some(([above, from, to]) =>"
                "above === row - 1 && from <= start + 0.1 && end <= to + 0.1)).length; })()"
            )
            assert outside == 0
        for coarse, fine in pairwise(partitions):
            assert all(any(group <= whole for whole in coarse) for group in fine)

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_the_keyboard_goes_through_the_tree(make_trainer, tmp_path):
    tree = write_report_with_tree(make_trainer(), tmp_path / "out", 12)

    async def work(page: Page) -> None:
        assert await page.run(f"{BARS}.filter((bar) => bar.tabIndex === 0).length") == 1
        await page.run(f"{BARS}[0].focus()")
        assert await page.run(FOCUSED) == "all 12 clusters, 203 images, 12 clusters"
        seen = []
        for key in ("ArrowDown", "ArrowRight", "ArrowUp", "ArrowDown", "End", "ArrowLeft", "Home"):
            await page.press(key)
            seen.append(await page.run(FOCUSED))
        assert seen[0] == seen[3] == seen[6] != seen[1]
        assert seen[2].startswith("all 12 clusters")
        assert await page.run(f"{BARS}.filter((bar) => bar.tabIndex === 0).length") == 1
        assert await page.run(f"{BARS}.filter((bar) => bar.getAttribute('aria-selected') === 'true').length") == 1
        heading = "document.querySelector('#tree .node h3').innerText"
        assert seen[6].split(",")[0] in await page.run(heading)

        # Enter goes into a bar, Escape out of it, to where it was.
        n_bars = await page.run(f"{BARS}.length")
        await page.press("Enter")
        assert await page.run(FOCUSED) == seen[6]
        assert await page.run(f"{BARS}.length") < n_bars
        assert await page.run(f"{BARS}[0].getAttribute('aria-label')") == seen[6]
        await page.press("Escape")
        assert await page.run(f"{BARS}.length") == n_bars
        assert await page.run(FOCUSED) == seen[6]

        # The name of a row chooses its level. A cluster at the bottom leads to its members.
        await page.click("document.querySelectorAll('#tree .row-name')[1]")
        pressed = "[...document.querySelectorAll('[aria-pressed=true]:is(.row-name, .presets button)')]"
        (words,) = set(await page.run(f"{pressed}.map((button) => button.textContent)"))
        assert words == f"{tree.choose_levels()[0]} groups"
        await page.run(f"{BARS}.findLast((bar) => bar.getAttribute('aria-label').startsWith('cluster')).focus()")
        number = (await page.run(FOCUSED)).split(",")[0].removeprefix("cluster ")
        await page.press("Enter")
        assert await page.run("document.querySelector('#sheet-choice').value") == number

        # The slider goes by single groups.
        await page.run("document.querySelector('#tree input[type=range]').focus()")
        await page.press("ArrowRight")
        assert await page.run("document.querySelector('#sizes input[type=number]').value") == str(
            tree.choose_levels()[0] + 1
        )

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


@pytest.mark.parametrize("n_clusters", [2, 5, 200])
def test_few_and_many_clusters_fit_on_a_phone(make_trainer, tmp_path, n_clusters):
    write_report_with_tree(make_trainer(), tmp_path / "out", n_clusters)

    async def work(page: Page) -> None:
        for k in (n_clusters // 2, n_clusters):
            await choose_level(page, k)
            assert await page.run(FITS)
            inside = (
                f"{BARS}.every((bar) => bar.offsetWidth >= 1 && bar.offsetLeft >= 0"
                "&& bar.offsetLeft + bar.offsetWidth <= bar.offsetParent.clientWidth + 1)"
            )
            assert await page.run(inside)
            assert 2 <= await page.run(f"{BARS}.length") <= 400
        if n_clusters == 200:
            several = f"{BARS}.filter((bar) => bar.classList.contains('several'))"
            assert await page.run(f"{several}.length") > 0
            await page.click(f"{several}[0]")
            await page.click("document.querySelector('#tree .node button')")
            assert await page.run(f"{BARS}[0].getAttribute('aria-label').startsWith('group')")
            assert await page.run(FITS)

    check_page(
        tmp_path / "browser", tmp_path / "out" / "report.html", work, width=390, height=844, dark=n_clusters == 5
    )


def test_names_name_groups_and_stay_text(make_trainer, tmp_path):
    tree = write_report_with_tree(make_trainer(), tmp_path / "out", 12)
    level = tree.cut(3)
    names = {int(label): "dent" for label in tree.labels[:6]} | {int(tree.labels[6]): HOSTILE}
    write_cluster_names(tmp_path / "out", names)
    render_again(tmp_path / "out")

    async def work(page: Page) -> None:
        await choose_level(page, 3)
        expected = level.names(names)
        headings = await page.run("[...document.querySelectorAll('.group-of-faces h3')].map((each) => each.innerText)")
        for number, members in level.members.items():
            named = f"{expected[number]} ({number})" if number in expected else f"group {number}"
            named = named.replace("group", "cluster") if len(members) == 1 else named
            assert any(heading.replace("\n", " ").startswith(named) for heading in headings)
        assert await page.run("document.querySelectorAll('[onerror]').length") == 0
        labels = await page.run(f"{BARS}.map((bar) => bar.getAttribute('aria-label'))")
        assert any("dent" in label for label in labels)

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_levels_of_the_run_have_their_own_numbers_and_names(make_trainer, tmp_path):
    tree = write_report_with_tree(make_trainer(), tmp_path / "out", 12)
    cut = tree.cut(4)
    new = {number: 40 + i for i, number in enumerate(cut.members)}  # as where numbers have lived on from earlier runs
    level = replace(cut, numbers=np.array([new[number] for number in cut.numbers.tolist()]))
    write_tree(tmp_path / "out", tree, {4: level, 7: tree.cut(7)})
    write_cluster_names(tmp_path / "out", {}, {4: {41: "dents"}})
    render_again(tmp_path / "out")

    async def work(page: Page) -> None:
        presets = "[...document.querySelectorAll('#tree .presets button')].map((each) => parseInt(each.textContent))"
        assert await page.run(presets) == [4, 7, 12]
        await choose_level(page, 4)
        assert dict(await page.run(SIZES)) == {number: level.size(number) for number in level.members}
        headings = await page.run("[...document.querySelectorAll('.group-of-faces h3')].map((each) => each.innerText)")
        for number in level.members:
            named = "dents (41)" if number == 41 else f"group {number}"
            assert any(heading.replace("\n", " ").startswith(named) for heading in headings)
        labels = await page.run(f"{BARS}.map((bar) => bar.getAttribute('aria-label'))")
        assert sum("dents (41)" in label for label in labels) == 1  # in the row of its level alone
        await choose_level(page, 5)  # no level of the run
        assert {number for number, _ in await page.run(SIZES)} == set(tree.cut(5).members)

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)


def test_without_a_tree_the_page_has_none(make_trainer, tmp_path):
    write_report_with_tree(make_trainer(), tmp_path / "out", 12)
    (tmp_path / "out" / "tree.json").unlink()
    render_again(tmp_path / "out")

    async def work(page: Page) -> None:
        assert await page.run("document.querySelectorAll('#tree, .levels').length") == 0
        assert await page.run("document.querySelectorAll('#clusters .face').length") == 12

    check_page(tmp_path / "browser", tmp_path / "out" / "report.html", work)
