"""How Sphinx builds the documentation: `make docs`. Nothing is loaded from the internet, not even to show formulas."""

from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import itra_hf

project = "itra_hf"
author = project_copyright = "The itra_hf authors"
release = itra_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "literal"  # docstrings quote code with one backtick, as Markdown does
napoleon_custom_sections = [
    ("What is matched", "params_style"),
    ("Guards against collapse", "params_style"),
    ("The kernel", "params_style"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
pygments_dark_style = "github-dark"  # furo's own underlines every module
html_title = f"itra_hf {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "mathml"


def inline_mathml(self: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw themselves."""
    self.body.append(tex2mathml(node.astext(), as_block=False))
    raise SkipNode


def block_mathml(self: Any, node: Any) -> None:
    """The same for a formula in a line of its own, which may be wider than a phone."""
    self.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode


def setup(app: Any) -> None:
    """Tell Sphinx of the formulas."""
    app.add_html_math_renderer("mathml", (inline_mathml, None), (block_mathml, None))
    app.connect("autodoc-process-docstring", indented_is_literal, priority=400)  # before napoleon


def indented_is_literal(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Mark indented paragraphs of a docstring, which hold formulas and code, as what they are."""
    for above, blank, below in zip(lines, lines[1:], lines[2:], strict=False):
        deeper = len(below) - len(below.lstrip()) >= len(above) - len(above.lstrip()) + 4
        if above.strip() and not blank.strip() and deeper and not below.lstrip().startswith(">>>"):
            lines[lines.index(above)] = above.rstrip(":") + ("::" if above.endswith(":") else " ::")
