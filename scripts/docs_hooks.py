"""What the site needs beyond MkDocs' own plugins, so that its pages ask nothing of the network.

Equations become MathML when the site is built, which browsers draw themselves; in the Markdown they
stand between dollars, as GitHub draws them too. The link to the repository stays a link: the theme
would ask GitHub for its stars and its newest release.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)


def on_page_content(page_html: str, **_: Any) -> str:
    """Replace the equations that ``pymdownx.arithmatex`` has marked."""
    return _EQUATION.sub(_as_mathml, page_html)


def on_post_page(output: str, **_: Any) -> str:
    """Take away the mark by which the theme's script finds the repository to ask about."""
    return output.replace(' data-md-component="source"', "")


def _as_mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    return convert(html.unescape(found[3]).strip(), display=display)
