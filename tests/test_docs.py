"""The Markdown of docs/ and README.md: no page is lost, no link is dead, and the first page's code runs.

`make docs` builds the site of it, and fails at every warning.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "benchmarks/README.md"]


def name(page):
    return str(page.relative_to(ROOT))


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"```\{toctree\}\n(?::[^\n]*\n)*(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    found = {(DOCS / f"{entry}.md").resolve() for entry in "\n".join(listed).split()}
    lost = sorted(map(name, set(DOCS.rglob("*.md")) - {DOCS / "index.md"} - found))
    assert lost == [], "expected each page of docs/ in a toctree of docs/index.md"
    assert all(page.exists() for page in found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_links_to_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name(page)} links to {target}"


def test_every_picture_is_shown_somewhere():
    shown = "".join(page.read_text() for page in PAGES)
    pictures = [*DOCS.glob("*.png"), *DOCS.glob("*.webp")]
    assert [picture.name for picture in pictures if picture.name not in shown] == []


def test_the_moving_picture_is_small_enough_to_wait_for():
    assert (DOCS / "view.webp").stat().st_size <= 1_000_000


def test_the_code_of_the_first_page_runs():
    def play(envs):
        for _ in range(20):
            envs.step(envs.action_space.sample())
        return np.zeros((20, 8)), np.zeros(8)

    code = re.search(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL).group(1)
    assert len(textwrap.dedent(code).split("\n")) <= 14
    scope = {"num_rollouts": 2, "play": play}
    exec(compile(code, "index.md", "exec"), scope)  # noqa: S102  it is our own
    assert scope["envs"].levels.max() < 200
    scope["envs"].close()
