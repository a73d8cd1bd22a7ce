"""How `make docs` builds the site: of the Markdown here, in README.md and in benchmarks/, and of the docstrings.

The root of the sources is that of the repository, so that a link between two files works on GitHub and on the site.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

project = "PLR curriculum server"
release = metadata.version("plr-server")
html_title = f"{project} {release}"
html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = html_copy_source = False

root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/README.md", "benchmarks/learning/protocol.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_mock_imports = ["ding", "easydict", "gym3", "pettingzoo", "procgen", "ray", "stable_baselines3", "torch"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes, units, ranges
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_attr_annotations = False

FOREIGN = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*(?:src|href)=["'](?:https?:)?//""")


def _code_is_code(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Makes code of what stands between single backticks, as Markdown and the readers of our docstrings take it."""
    lines[:] = re.sub(r"(?<!`)`([^`\n]+)`(?![`_])", r"``\1``", "\n".join(lines)).split("\n")


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _finish(app: Sphinx, exception: Exception | None) -> None:
    """Leads to the first page, and fails where a page would load something from elsewhere: it works without a net."""
    first = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
    Path(app.outdir, "index.html").write_text(first, encoding="utf-8")
    for page in Path(app.outdir).rglob("*.html") if exception is None else ():
        if found := FOREIGN.search(page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{page}: expected a page that loads nothing from elsewhere, got {found[0]}")


def setup(app: Sphinx) -> None:
    """Sphinx calls it. Equations are MathML, which browsers show by themselves."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline_math, None), block_renderers=(_block_math, None))
    app.connect("autodoc-process-docstring", _code_is_code, priority=100)  # before napoleon
    app.connect("build-finished", _finish)
