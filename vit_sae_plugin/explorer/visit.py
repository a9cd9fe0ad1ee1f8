"""One visitor's work: a picture, what was chosen on it, and what is to be seen."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vit_sae_plugin.analysis.pictures.overlays import COLORS, tint
from vit_sae_plugin.datasets.image_decoding import (
    DecodingLimits,
    UnreadableImageError,
    decode_image,
)
from vit_sae_plugin.explorer.explorer import Explorer
from vit_sae_plugin.explorer.opened_image import OpenedImage
from vit_sae_plugin.explorer.page_state import (
    PageState,
    checked_factor,
    checked_number,
    checked_ranking,
    checked_template,
    parse_classes,
)
from vit_sae_plugin.explorer.predictions import Classifier, Prediction

MAX_UPLOAD_BYTES = 20 * 2**20
"""Largest picture that can be dropped, as a file."""
UPLOAD_LIMITS = DecodingLimits(max_pixels=50_000_000, max_bytes=2**29)
"""Largest picture that can be dropped, as pixels and as memory while it is decoded."""

N_LISTED = 12
"""Latents listed at a time, besides those that were changed or coloured."""
N_ANSWERS = 6
_VISITS_KEPT = 16


@dataclass(frozen=True)
class ListedLatent:
    """A latent in the list beside the picture."""

    latent: int
    """Its index."""
    values: tuple[float, ...]
    """How strong it is, on each side; or its part in the answer."""
    factor: float
    """What it is multiplied by."""
    color: str | None
    """Its colour on the picture; None: not shown."""
    added: float | None
    """What is added to it, in times its usual strength; None: it is active here, and multiplied."""


class Visit:
    """What one visitor sees, and what each of their actions changes. Nothing is kept on disk.

    Args:
        explorer: what all visitors share.
        query: of the link that they came by.

    Attributes:
        state: what they have chosen.
        shelf: the first of the pictures on offer that they see.
        notices: what to tell them once, a line each.
    """

    def __init__(self, explorer: Explorer, query: Mapping[str, str] | None = None) -> None:
        self.explorer = explorer
        self.state, self.notices = PageState.from_query(query or {}, explorer.limits)
        self.sides: dict[str, OpenedImage] = {}
        self.shelf = self.state.image or 0
        if self.state.image is None and not query:
            self.state = replace(self.state, image=0)
        if self.state.image is not None:
            self._try_to_open(self.state.image)

    @property
    def classes(self) -> str:
        """The class list as typed."""
        return self.explorer.first_classes if self.state.classes is None else self.state.classes

    @property
    def template(self) -> str:
        """The prompt template, or the name of several."""
        return self.state.template or self.explorer.templates[0]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches that can be clicked on."""
        return self.explorer.limits.grid if self.sides else None

    def open_image(self, index: Any) -> None:
        """Look at one of the pictures on offer.

        Raises:
            ValueError: there is no such picture.
        """
        self._try_to_open(checked_number(index, self.explorer.n_images, "image"))

    def open_upload(self, content: Any) -> None:
        """Look at a picture of the visitor's own, which stays in memory.

        Args:
            content: the bytes of an image file, in base 64. Nothing else is looked at: no name,
                no path.

        Raises:
            ValueError: it is no picture, or too large.
        """
        if not isinstance(content, str):
            raise ValueError("that was no picture; want the contents of an image file")
        if len(content) > MAX_UPLOAD_BYTES * 4 // 3 + 4:
            self.refuse_upload()
        try:
            picture = decode_image(base64.b64decode(content, validate=True), UPLOAD_LIMITS)
        except binascii.Error:
            raise ValueError("that was no picture; want the contents of an image file") from None
        except UnreadableImageError as error:
            raise ValueError(f"that picture can't be read: {error.reason}") from None
        self._show(picture, None)

    def refuse_upload(self) -> None:
        """Say that a file is too large; the page asks for it instead of sending the file."""
        raise ValueError(f"that file is too large; want at most {MAX_UPLOAD_BYTES >> 20} MB")

    def choose_patch(self, row: Any, column: Any) -> None:
        """List the latents of one patch; of the whole picture when it is chosen already.

        Raises:
            ValueError: there is no such patch.
        """
        grid = self.grid
        if grid is None:
            raise ValueError("this SAE reads no patches; there is nothing to choose")
        row = checked_number(row, grid[0], "row")
        column = checked_number(column, grid[1], "column")
        patch = None if self.state.patch == (row, column) else (row, column)
        self.state = replace(self.state, patch=patch)

    def choose_whole(self) -> None:
        """List the latents of the whole picture."""
        self.state = replace(self.state, patch=None)

    def step(self, rows: Any, columns: Any) -> None:
        """Choose the patch beside the chosen one, or the middle one to begin with."""
        if self.grid is None or not all(isinstance(by, int) for by in (rows, columns)):
            raise ValueError("a step goes from patch to patch: want numbers of rows and columns")
        n_rows, n_columns = self.grid
        if self.state.patch is None:
            patch = n_rows // 2, n_columns // 2
        else:
            row, column = self.state.patch
            patch = (
                min(max(row + rows, 0), n_rows - 1),
                min(max(column + columns, 0), n_columns - 1),
            )
        self.state = replace(self.state, patch=patch)

    def turn_shelf(self, start: Any) -> None:
        """Offer other pictures.

        Raises:
            ValueError: there is no such picture.
        """
        self.shelf = checked_number(start, self.explorer.n_images, "image")

    def find(self, words: Any) -> None:
        """Open the latent of this number, or the first whose name or leading class has the words.

        Raises:
            ValueError: there is none.
        """
        if not isinstance(words, str) or not words.strip():
            raise ValueError("there is nothing to find; want a latent's number, or words of a name")
        words = " ".join(words.lower().split())[:100]
        if words.isascii() and words.isdecimal():
            latent = self._latent(int(words[:12]))
        else:
            found = self.explorer.latent_called(words)
            if found is None:
                raise ValueError(
                    f"no latent is called {words!r}; want a number, or words of a name"
                )
            latent = found
        self.state = replace(self.state, opened=latent)

    def rank_by(self, ranking: Any) -> None:
        """List the strongest latents first, or those that move the answer."""
        self.state = replace(self.state, ranking=checked_ranking(ranking), patch=None)

    def toggle_color(self, latent: Any) -> None:
        """Colour a latent on the picture, or stop colouring it. Beyond seven the first one goes."""
        latent = self._latent(latent)
        shown = [one for one in self.state.shown if one != latent]
        if len(shown) == len(self.state.shown):
            shown = [*shown, latent][-len(COLORS) :]
        self.state = replace(self.state, shown=tuple(shown))

    def set_factor(self, latent: Any, factor: Any) -> None:
        """Multiply a latent: 0 removes it, 1 leaves it as it is, 2 doubles it where it is active.

        Raises:
            ValueError: there is no such latent, or the factor isn't from 0 to 4.
        """
        factors = {**self.state.factors, self._latent(latent): checked_factor(factor)}
        kept = {one: by for one, by in factors.items() if by != 1}
        self.state = replace(self.state, factors=kept)

    def add_latent(self, latent: Any, times: Any) -> None:
        """Add to a latent in every token that the SAE reads, also where it is silent.

        Args:
            latent: which.
            times: how many times its usual strength (``Explorer.usual_strength``); 0: nothing.

        Raises:
            ValueError: there is no such latent, or the number isn't from 0 to 4.
        """
        added = {**self.state.added, self._latent(latent): checked_factor(times)}
        kept = {one: by for one, by in added.items() if by != 0}
        self.state = replace(self.state, added=kept)

    def undo_changes(self) -> None:
        """Leave all latents as they are."""
        self.state = replace(self.state, factors={}, added={})

    def toggle_references(self, latent: Any) -> None:
        """Open a latent's reference images, or close them."""
        latent = self._latent(latent)
        self.state = replace(self.state, opened=None if self.state.opened == latent else latent)

    def ask(self, classes: Any, template: Any) -> None:
        """Choose class names and prompt template.

        Raises:
            ValueError: there is no class name, or the template is none; nothing changes.
        """
        if not isinstance(classes, str) or not isinstance(template, str):
            raise ValueError("class list and template are no texts; want one of each")
        names = parse_classes(classes)
        with self.explorer.lock:
            self._classifiers.get(names, checked_template(template))
        self.state = replace(
            self.state,
            classes=None if classes == self.explorer.first_classes else classes,
            template=None if template == self.explorer.templates[0] else template,
        )

    def listed(self) -> list[ListedLatent]:
        """Latents to list: those that lead, and in front of them others that were changed,
        coloured or opened."""
        if not self.sides:
            return []
        values = self._values()
        first, *others = values.values()
        both = dict.fromkeys((*first, *(one for some in others for one in some)))
        leading = sorted(
            both, key=lambda one: -max(abs(some.get(one, 0.0)) for some in values.values())
        )
        leading = leading[:N_LISTED]
        opened = () if self.state.opened is None else (self.state.opened,)
        changed = (*self.state.factors, *self.state.added)
        besides = dict.fromkeys((*opened, *changed, *self.state.shown))
        chosen = [*(one for one in besides if one not in leading), *leading]
        colors = dict(zip(self.state.shown, COLORS, strict=False))
        return [
            ListedLatent(
                latent,
                tuple(some.get(latent, 0.0) for some in values.values()),
                self.state.factors.get(latent, 1.0),
                colors.get(latent),
                self._added(latent),
            )
            for latent in chosen
        ]

    def pictures(self) -> dict[str, Image.Image]:
        """The picture on each side, with the latents that are to be shown in colours."""
        found = {}
        for side, opened in self.sides.items():
            if self.state.shown and opened.grid is not None:
                maps = [opened.heatmap(latent) for latent in self.state.shown]
                found[side] = tint(maps, size=opened.seen.size, smooth=True)
            else:
                found[side] = opened.seen
        return found

    def predictions(self) -> dict[str, Prediction]:
        """What each model answers before and after the changes; empty where nothing classifies."""
        found = {}
        with self.explorer.lock:
            for side, opened in self.sides.items():
                classifier = self._classifier(side)
                if classifier is not None:
                    after = self._output(opened)
                    found[side] = classifier.prediction(opened.plain_output, after, N_ANSWERS)
        return found

    def likeness(self) -> dict[str, float]:
        """Cosine of each model's output before and after the changes."""
        with self.explorer.lock:
            return {
                side: torch.nn.functional.cosine_similarity(
                    opened.plain_output.float(), self._output(opened).float()
                ).item()
                for side, opened in self.sides.items()
            }

    def _output(self, opened: OpenedImage) -> Tensor:
        """The model's output with the changes that were chosen."""
        strength = self.explorer.usual_strength
        added = {one: times * strength(one) for one, times in self.state.added.items()}
        return opened.output(self.state.factors, added)

    def _added(self, latent: int) -> float | None:
        """What is added to a latent that is silent in the picture, or was; None for another."""
        is_silent = all(latent not in opened.strengths for opened in self.sides.values())
        if latent in self.state.added or (is_silent and latent not in self.state.factors):
            return self.state.added.get(latent, 0.0)
        return None

    def _values(self) -> dict[str, dict[int, float]]:
        found = {}
        with self.explorer.lock:
            for side, opened in self.sides.items():
                if self.state.patch is not None:
                    found[side] = opened.at_patch(*self.state.patch)
                    continue
                by_answer = self.state.ranking == "answer"
                classifier = self._classifier(side) if by_answer else None
                found[side] = (
                    opened.strengths
                    if classifier is None
                    else opened.parts_in(classifier.lead(opened.plain_output))
                )
        return found

    @property
    def _classifiers(self) -> Any:
        return next(iter(self.explorer.classifiers.values()))

    def _classifier(self, side: str) -> Classifier | None:
        """The side's classifier of the chosen classes, or of the page's first ones if it has none
        of those; None, and a notice, if it has neither."""
        classifiers = self.explorer.classifiers[side]
        if not classifiers.can_answer:
            return None
        try:
            return classifiers.get(parse_classes(self.classes), self.template)
        except ValueError as error:
            if (said := f"{side}: {error}") not in self.notices:
                self.notices.append(said)
        if self.state.classes is None and self.state.template is None:
            return None
        self.state = replace(self.state, classes=None, template=None)
        return self._classifier(side)

    def _latent(self, latent: Any) -> int:
        return checked_number(latent, self.explorer.attached.d_sae, "latent")

    def _try_to_open(self, index: int) -> None:
        try:
            picture = self.explorer.images.record(index).load()
        except UnreadableImageError as error:
            self.notices.append(f"image {index} can't be read: {error.reason}")
            self.state = replace(self.state, image=None)
            return
        self._show(picture, index)

    def _show(self, picture: Image.Image, index: int | None) -> None:
        with self.explorer.lock:
            opened = {
                side: OpenedImage(attached, picture)
                for side, attached in self.explorer.sides.items()
            }
        self.sides = opened
        self.state = replace(self.state, image=index)


class Visits:
    """The visits of open browser tabs, each under its own key; the last ones are kept."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer
        self._kept: OrderedDict[str, Visit] = OrderedDict()
        self._lock = Lock()

    def begin(self, key: str, query: Mapping[str, str]) -> Visit:
        """A new visit, in place of one that had this key."""
        visit = Visit(self._explorer, query)
        with self._lock:
            self._kept[key] = visit
            self._kept.move_to_end(key)
            if len(self._kept) > _VISITS_KEPT:
                self._kept.popitem(last=False)
        return visit

    def get(self, key: str) -> Visit | None:
        """The visit under a key; None once it was forgotten."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def end(self, key: str) -> None:
        """Forget a visit, and the picture in it."""
        with self._lock:
            self._kept.pop(key, None)

    def __len__(self) -> int:
        return len(self._kept)
