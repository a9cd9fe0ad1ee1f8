"""What tests ask a page for."""

import numpy as np
import pandas as pd

from tests.report.reports import Report

SHOWN = (
    "return [...document.querySelectorAll('#rows .row')]"
    ".sort((a, b) => parseFloat(a.style.top) - parseFloat(b.style.top))"
    ".map(row => Number(row.dataset.latent))"
)
LISTED = "return [...document.querySelectorAll('.listed')].map(e => Number(e.dataset.latent))"
TEXT = "return document.querySelector(arguments[0])?.textContent"
TEXTS = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
PIXELS = (
    "const from = document.querySelector(arguments[0]);"
    "const c = Object.assign(document.createElement('canvas'),"
    " {width: from.width, height: from.height});"
    "const context = c.getContext('2d', {willReadFrequently: true});"
    "context.drawImage(from, 0, 0);"
    "return [c.width, c.height, [...context.getImageData(0, 0, c.width, c.height).data]]"
)

TALL = 1440, 4200
"""A window with room for a whole table; drawing it takes half as long again."""


def visit(page, folder, where: str, ready: str) -> None:
    """Open a page afresh and wait for an element on it."""
    page.open("about:blank")
    page.open(f"file://{folder}/{where}")
    page.wait("return document.querySelector(arguments[0]) !== null", ready)


def open_index(page, report: Report, state: str = "") -> pd.DataFrame:
    """Open the index in a tall window; the table that it should show, with names of columns as the
    page has them."""
    page.resize(*TALL)
    visit(page, report.folder, f"index.html{state}", "#rows .row")
    page.wait("return document.querySelectorAll('#rows .row').length > 10")
    data = report.data("atlas")
    latents = data["latents"]
    table = pd.DataFrame(latents, index=latents["id"])
    names = (data["names"].get(str(latent), {}).get("name") for latent in latents["id"])
    pairs = zip(names, latents["classes"], strict=True)
    firsts = [name or (data["classes"][some[0]] if some else "") for name, some in pairs]
    table["what"] = [first.lower() for first in firsts]
    return table


def pixels(page, selector: str) -> np.ndarray:
    """A canvas as ``[row, column, rgba]``."""
    width, height, data = page.run(PIXELS, selector)
    return np.array(data, np.uint8).reshape(height, width, 4)


def in_order(table: pd.DataFrame, key: str, ascending: bool) -> list[int]:
    """Latents by a column: missing ones last, among equals the more frequent one first."""
    known = table[table[key].notna() & (table[key] != "")]
    known = known.sort_values(
        [key, "frequency", "id"], ascending=[ascending, False, True], kind="stable"
    )
    return [*known["id"], *table.drop(known.index)["id"]]
