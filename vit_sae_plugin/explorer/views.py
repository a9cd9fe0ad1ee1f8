"""The parts of the page as HTML. Whatever comes from data or from a visitor is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from vit_sae_plugin.analysis.html_pieces import data_uri, text
from vit_sae_plugin.explorer.explorer import Explorer
from vit_sae_plugin.explorer.page_state import MAX_FACTOR
from vit_sae_plugin.explorer.predictions import Prediction
from vit_sae_plugin.explorer.visit import MAX_UPLOAD_BYTES, ListedLatent, Visit

SHELF = 12
"""Pictures offered at a time."""
_SHELF_SIZE = 64


def head_view(explorer: Explorer) -> str:
    """What the page is about."""
    adapted = explorer.sides.get("adapted")
    beside = "" if adapted is None else f", beside {Path(adapted.model.model_name).name}"
    seen = f"seen on {explorer.atlas.info.n_images:,} images of {explorer.images.name}"
    return (
        '<header><div class="buttons"><label class="drop">Drop a photograph anywhere, or '
        f'<b>choose a file</b><input type="file" accept="image/*" data-act="file" '
        f'data-most="{MAX_UPLOAD_BYTES}"></label><button data-act="link">Copy link</button></div>'
        "<h1>Explore</h1>"
        f"<p>{text(explorer.title + beside)}; what they respond to {text(seen)}</p></header>"
    )


def notice_view(visit: Visit) -> str:
    """What went wrong, if anything did."""
    return "".join(f'<p class="notice" role="status">{text(one)}</p>' for one in visit.notices)


def picture_view(visit: Visit) -> str:
    """The picture on each side, and where to click."""
    if not visit.sides:
        return '<div class="empty">Drop a photograph, or pick one below.</div>'
    figures = []
    many = len(visit.sides) > 1
    for side, picture in visit.pictures().items():
        name = f"<figcaption>{text(side)}</figcaption>" if many else ""
        figures.append(f"<figure>{_photo(visit, picture)}{name}</figure>")
    return f'<div class="photos">{"".join(figures)}</div>{_caption(visit)}'


def shelf_view(visit: Visit) -> str:
    """Some of the pictures on offer, and the way to others."""
    explorer, chosen = visit.explorer, visit.state.image
    start = visit.shelf // SHELF * SHELF
    stop = min(start + SHELF, explorer.n_images)
    buttons = []
    for index, picture in explorer.small_pictures(range(start, stop), _SHELF_SIZE).items():
        pressed = "true" if index == chosen else "false"
        shown = "–" if picture is None else f'<img src="{_jpeg(picture)}" alt="image {index}">'
        buttons.append(
            f'<button data-act="open" data-index="{index}" aria-pressed="{pressed}" '
            f'title="image {index}">{shown}</button>'
        )
    earlier = f'data-start="{start - SHELF}" {"disabled" if start == 0 else ""}'
    later = f'data-start="{stop}" {"disabled" if stop >= explorer.n_images else ""}'
    return (
        f'<div class="shelf">{"".join(buttons)}</div>'
        f'<div class="turn"><button data-act="shelf" {earlier} aria-label="earlier">←</button>'
        f"<span>{start}–{stop - 1} of {explorer.n_images:,}, "
        f"{text(explorer.images.name)}</span>"
        f'<button data-act="shelf" {later} aria-label="later">→</button></div>'
    )


def answer_view(visit: Visit) -> str:
    """What each model answers, before and after."""
    predictions = visit.predictions()
    n = visit.state.n_changes
    likeness = visit.likeness() if n else {}
    undo = (
        f'<button data-act="undo">Undo {n} change{"s" if n > 1 else ""}</button>'
        if n
        else '<span class="hint">Move a slider of a latent to see this change.</span>'
    )
    parts = []
    for side in visit.sides:
        title = f"<h3>{text(side)}</h3>" if len(visit.sides) > 1 else ""
        found = predictions.get(side)
        if found is not None:
            shown = _prediction(found, bool(n))
        elif visit.explorer.classifiers[side].can_answer:
            shown = "<p>This model can’t tell these classes apart.</p>"
        else:
            shown = "<p>This model reads no class names, and the pictures have no labels.</p>"
        turned = (
            f'<p class="hint">The model’s output is turned to a cosine of '
            f"{likeness[side]:.3f} with what it was.</p>"
            if side in likeness
            else ""
        )
        parts.append(f'<div class="side">{title}{shown}{turned}</div>')
    pinned = " · ".join(_verdict(found) for found in predictions.values()) if n else ""
    return (
        f'<div class="answers{" two" if len(parts) > 1 else ""}">{"".join(parts)}</div>'
        f'<div class="under">{undo}</div>'
        f'<p class="verdict pinned">{pinned}</p>'
    )


def latents_view(visit: Visit) -> str:
    """The list of latents, each with what it responds to and how to change it."""
    if not visit.sides:
        return ""
    explorer, state = visit.explorer, visit.state
    listed = visit.listed()
    thumbs = explorer.thumbs([one.latent for one in listed])
    by_answer = state.ranking == "answer" and state.patch is None
    largest = max((abs(value) for one in listed for value in one.values), default=0.0) or 1.0
    rows = "".join(_row(visit, one, thumbs[one.latent], largest, by_answer) for one in listed)
    if state.patch is not None:
        where = f"at row {state.patch[0]}, column {state.patch[1]}"
        where += ' <button data-act="whole">whole picture</button>'
    else:
        where = (
            "by how far they put the leading class ahead of the next"
            if by_answer
            else "by their strongest patch"
        )
    can_answer = all(one.can_answer for one in explorer.classifiers.values())
    orders = (("strength", "strongest"), ("answer", "that move the answer"))
    choice = "".join(
        f'<button data-act="rank" data-rank="{name}" '
        f'aria-pressed="{str(state.ranking == name and state.patch is None).lower()}">{said}'
        "</button>"
        for name, said in orders
        if can_answer or name == "strength"
    )
    find = (
        '<input type="search" data-act="find" placeholder="Find: number or name" '
        'aria-label="find a latent by number or name">'
    )
    return (
        f'<div class="tools"><div class="choice">{choice}</div>{find}</div>'
        f'<p class="hint">Latents {where}</p><div class="list">{rows}</div>'
    )


def _photo(visit: Visit, picture: Image.Image) -> str:
    width, height = picture.size
    grid, marker = visit.grid, ""
    if grid is None:
        return f'<div class="photo"><img src="{data_uri(picture)}" alt="the picture"></div>'
    if visit.state.patch is not None:
        row, column = visit.state.patch
        place = (
            f"left:{100 * column / grid[1]:.3f}%;top:{100 * row / grid[0]:.3f}%;"
            f"width:{100 / grid[1]:.3f}%;height:{100 / grid[0]:.3f}%"
        )
        marker = f'<i class="patch" style="{place}"></i>'
    return (
        f'<div class="photo" data-act="patch" data-rows="{grid[0]}" data-columns="{grid[1]}" '
        f'tabindex="0" role="application" aria-label="the picture: choose a patch by a click, or '
        f'with the arrow keys"><img src="{data_uri(picture)}" width="{width}" height="{height}" '
        f'alt="the picture">{marker}</div>'
    )


def _caption(visit: Visit) -> str:
    explorer, index = visit.explorer, visit.state.image
    if index is None:
        own = "your picture: it stays in this page’s memory, and isn’t in the link"
        return f'<p class="caption">{own}</p>'
    record = explorer.images.record(index)
    names = explorer.images.class_names or []
    label = f", labelled {names[record.label]}" if record.label is not None and names else ""
    return f'<p class="caption">image {index}: {text(record.id + label)}</p>'


def _prediction(found: Prediction, is_changed: bool) -> str:
    rows = "".join(
        f'<tr><th>{text(one.name)}</th><td class="bars">'
        f'<i class="before" style="width:{100 * one.before:.2f}%"></i>'
        f'<i class="after" style="width:{100 * one.after:.2f}%"></i></td>'
        f"<td>{one.after:.1%}</td><td>{_change(one.after - one.before) if is_changed else ''}</td>"
        "</tr>"
        for one in found.answers
    )
    return f'<p class="verdict">{_verdict(found, is_changed)}</p><table>{rows}</table>'


def _verdict(found: Prediction, is_changed: bool = True) -> str:
    values = {one.name: one for one in found.answers}
    before, after = values[found.before], values[found.after]
    said = f"<b>{text(before.name)}</b> {before.before:.1%}"
    if not is_changed:
        return said
    flipped = ' class="flipped"' if after.name != before.name else ""
    return f"{said} → <b{flipped}>{text(after.name)}</b> {after.after:.1%}"


def _change(by: float) -> str:
    if abs(by) < 0.0005:
        return ""
    kind = "up" if by > 0 else "down"
    return f'<span class="{kind}">{"+" if by > 0 else "−"}{100 * abs(by):.1f}</span>'


def _row(
    visit: Visit,
    one: ListedLatent,
    thumbs: Sequence[Image.Image],
    largest: float,
    is_signed: bool,
) -> str:
    explorer, latent = visit.explorer, one.latent
    name, leading = explorer.name_of(latent), explorer.leading_class(latent)
    said = text(name) or (
        f'<i title="the class that leads among the images that activate it most, by its share of '
        f'their activation">{leading[1]:.0%} {text(leading[0])}</i>'
        if leading is not None
        else ""
    )
    pictures = "".join(f'<img src="{_jpeg(picture)}" alt="">' for picture in thumbs)
    bars = "".join(
        f'<span class="bar"><i class="{"minus" if value < 0 else ""}" '
        f'style="width:{100 * abs(value) / largest:.1f}%"></i></span>'
        for value in one.values
    )
    numbers = "<br>".join(f"{value:+.2f}" if is_signed else f"{value:.2f}" for value in one.values)
    numbers = numbers.replace("-", "−")
    color = f"--color:{one.color}" if one.color else ""
    can_color = (
        f'<button class="tick" data-act="color" aria-pressed="{str(bool(one.color)).lower()}" '
        f'style="{color}" aria-label="colour latent {latent}" title="colour it on the picture">'
        "</button>"
        if explorer.has_patches
        else "<span></span>"
    )
    is_open = visit.state.opened == latent
    changed = " changed" if one.added or one.factor != 1 else ""
    changed = " removed" if one.factor == 0 else changed
    silent = "" if any(one.values) else " silent"
    return (
        f'<div class="latent{changed}{silent}" data-latent="{latent}">{can_color}'
        f'<span class="thumbs" data-act="references">{pictures}</span>'
        f'<button class="name" data-act="references" aria-expanded="{str(is_open).lower()}">'
        f"<b>{latent}</b> {said}</button>"
        f'<span class="values"><span class="bars">{bars}</span><span>{numbers}</span></span>'
        f"{_change_of(one)}</div>{_references(visit, latent) if is_open else ''}"
    )


def _change_of(one: ListedLatent) -> str:
    """A slider and a button: to multiply a latent that is active, or to add one that isn't."""
    if one.added is None:
        value, sign, action, hint = one.factor, "×", "factor", "what it is multiplied by"
        is_out = one.factor == 0
        button = (
            f'data-act="remove" data-factor="{int(is_out)}">{"Put back" if is_out else "Remove"}'
        )
    else:
        value, sign, action = one.added, "+", "add"
        hint = "silent here: added to every patch, in times its usual strength"
        is_in = one.added > 0
        button = f'data-act="put" data-factor="{int(not is_in)}">{"Take out" if is_in else "Add"}'
    return (
        f'<span class="change" title="{hint}"><input type="range" data-act="{action}" '
        f'data-sign="{sign}" min="0" max="{MAX_FACTOR:g}" step="0.25" value="{value:g}" '
        f'aria-label="strength of latent {one.latent}"><output>{sign}{value:g}</output>'
        f"<button {button}</button></span>"
    )


def _references(visit: Visit, latent: int) -> str:
    explorer = visit.explorer
    shown = "".join(
        f'<figure><img src="{_jpeg(one.picture)}" alt=""><figcaption title="{text(one.id)}">'
        f"{text(one.class_name or one.id)}</figcaption></figure>"
        for one in explorer.references(latent)
    )
    row = explorer.atlas.latents.loc[latent]
    facts = [f"active on {row['frequency']:.1%} of images"] if pd.notna(row["frequency"]) else []
    if pd.notna(row["mean_activation"]):
        facts.append(f"mean activation {row['mean_activation']:.2f}")
    if pd.notna(row["label_entropy"]):
        facts.append(f"label entropy {row['label_entropy']:.2f}")
    shown = shown or "<p>No image activates it.</p>"
    return (
        f'<div class="references"><p>Images that activate latent {latent} most, bright where it is '
        f"active: {', '.join(facts)}.</p><div>{shown}</div></div>"
    )


def _jpeg(picture: Image.Image) -> str:
    return data_uri(picture, "JPEG")
