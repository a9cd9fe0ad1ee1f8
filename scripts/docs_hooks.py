"""What the site needs beyond MkDocs' own plugins: equations as MathML, made when the site is built.

Browsers draw MathML themselves, so that no page needs a script from the network. In the Markdown,
equations stand between dollars, as GitHub draws them too.
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


def _as_mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    return convert(html.unescape(found[3]).strip(), display=display)
