"""The test of the pages can fail: each kind of comment, and what it must refuse."""

from __future__ import annotations

import itertools

import pytest
from helpers.doc_blocks import PageError, compare, normalize, read_page, run_page


@pytest.fixture
def run(tmp_path):
    """Run a page in a new folder; returns how many of its blocks ran."""
    numbers = itertools.count()

    def run(text, **preparations):
        folder = tmp_path / f"page{next(numbers)}"
        folder.mkdir()
        return run_page(read_page(text, "page.md"), folder, preparations)

    return run


def test_blocks_run_in_order_in_one_folder_and_python_remembers(run):
    text = """
```bash
echo 12 > number
```

* a list

  ```python
  number = int(open("number").read())
  class Kept:
      pass
  ```

```yaml
number: 5
```

```bash
[ "$(cat number)" = 12 ]
```

```python
import pickle
assert number == 12
assert isinstance(pickle.loads(pickle.dumps(Kept())), Kept)
```
"""
    assert run(text) == 4


@pytest.mark.parametrize(
    "block",
    [
        "```bash\nfalse\ntrue\n```",
        "```bash\nfalse | cat\n```",
        "```bash\necho $UNSET_VARIABLE_OF_A_PAGE\n```",
        "```python\nassert False\n```",
        "```python\nexit(0)\n```",
        "```python\nimport os\nos._exit(1)\n```",
        "```python\ndef:\n```",
    ],
)
def test_a_block_that_fails_fails_the_page(run, block):
    with pytest.raises(PageError, match=r"page.md:2: fails"):
        run("\n" + block)


def test_a_block_may_be_meant_to_fail(run):
    assert run("<!-- test: fails -->\n```bash\nexit 3\n```\n<!-- test: fails -->\n\n```python\n1 / 0\n```") == 2


def test_a_block_that_is_meant_to_fail_must(run):
    with pytest.raises(PageError, match="succeeds, and should fail"):
        run("<!-- test: fails -->\n```bash\ntrue\n```")


def test_a_skip_needs_a_reason():
    with pytest.raises(PageError, match=r"page.md:1: a skip needs a reason"):
        read_page("<!-- test: skip -->\n```bash\nfalse\n```", "page.md")


def test_what_is_skipped_does_not_run_and_its_output_is_not_known(run):
    text = "<!-- test: skip needs a GPU -->\n```bash\nfalse\n```\n<!-- test: output -->\n```text\n1\n```\n"
    assert run(text + "```bash\ntrue\n```") == 1
    assert not read_page(text, "page.md").runs


def test_output_is_what_the_block_before_printed(run):
    page = "```{}\n```\n<!-- test: output -->\n```text\n{}\n```\n"
    printed = "bash\necho 'loss 0.25'; echo 'took 7 seconds' >&2; echo ready"
    assert run(page.format(printed, "loss  0.31\n...\nready")) == 1
    with pytest.raises(PageError, match=r"page.md:5: 'loss is 0.25' is nowhere"):
        run(page.format(printed, "loss is 0.25"))
    with pytest.raises(PageError, match=r"'loss 0.25' is earlier"):
        run(page.format(printed, "ready\nloss 0.25"))
    with pytest.raises(PageError, match="'ready' is nowhere"):
        run(page.format("python\nprint('loss 0.25')", "loss 0.25\nready"))


def test_output_of_python_has_what_its_processes_print(run):
    program = "import subprocess\nprint('first')\nsubprocess.run(['echo', 'second'])"
    assert run(f"```python\n{program}\n```\n<!-- test: output -->\n```text\nfirst\nsecond\n```") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- test: output -->\n```text\n1\n```", "output of which block"),
        ("```bash\ntrue\n```\n<!-- test: output -->\n```text\n```", "empty output"),
        ("```bash\ntrue\n```\n<!-- test: output -->\n```bash\ntrue\n```", "an output is a block of text"),
        ("<!-- test: fails -->\n```yaml\na: 1\n```", "nothing to steer"),
        ("<!-- test: fails -->\nwords\n```bash\nfalse\n```", "page.md:1: no block follows 'fails'"),
        ("<!-- test: fails -->", "no block follows"),
        ("<!-- test: flaky -->\n```bash\nfalse\n```", "unknown: 'flaky'"),
        ('<!-- test: replace "A" -->\n```bash\nA\n```', "write replace"),
        ("```console\n$ false\n```", "write bash or python"),
        ("```bash\ntrue", "page.md:1: the block has no end"),
    ],
)
def test_comments_that_say_nothing_are_refused(text, message):
    with pytest.raises(PageError, match=message):
        read_page(text, "page.md")


def test_replacements_are_of_one_block(run):
    text = '<!-- test: replace "--epochs 100" "" -->\n<!-- test: replace "big" "tiny" -->\n'
    text += '```bash\necho big --epochs 100 | grep "^tiny *$"\n```\n```bash\necho big | grep big\n```'
    assert run(text) == 2


def test_replacements_are_of_whole_words(run):
    text = '<!-- test: replace "data" "photos" -->\n```bash\necho --data_x data | grep -e "^--data_x photos$"\n```'
    assert run(text) == 1


def test_a_replacement_that_matches_nothing_fails(run):
    with pytest.raises(PageError, match="replaces 'small', which is no whole word"):
        run('<!-- test: replace "small" "tiny" -->\n```bash\necho big\n```')


def test_preparations_come_first_and_must_exist(run):
    text = "# Page\n\n```bash\ncat photos\n```\n\n<!-- test: prepare photos -->\n<!-- test: slow -->"
    assert read_page(text, "page.md").slow
    assert run(text, photos=lambda folder: (folder / "photos").write_text("1")) == 1
    with pytest.raises(PageError, match="no preparation 'sounds'"):
        run_page(read_page("<!-- test: prepare sounds -->", "page.md"), None, {})


def test_longer_fences_hold_shorter_ones(run):
    page = read_page("````md\n```bash\nfalse\n```\n````\n```bash\ntrue\n```", "page.md")
    assert [block.language for block in page.blocks] == ["md", "bash"]


def test_numbers_and_spaces_do_not_count_in_outputs_and_words_do():
    assert normalize("cluster  7:  1,797 samples, -0.25%,  3, 5, 12") == "cluster N: N samples, N%, N"
    assert normalize("12%|###  |\r epoch-30: 1e-5 +4.5") == normalize("epoch-7: 0.1 -12")
    compare("7 clusters", "8 clusters", "page.md:1")
    compare("events: ... (7)\n...", "events: 3 born (1)", "page.md:1")
    with pytest.raises(PageError):
        compare("7 clusters", "8 samples", "page.md:1")
