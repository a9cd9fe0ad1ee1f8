"""Captions of shape scenes, in the small vocabulary that ``shapes-clip`` knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vit_sae_plugin.datasets.scene_object import SceneObject

OPENINGS = ("", "", "a photo of ", "a picture of ", "a drawing of ", "an image of ")


def article(phrase: str) -> str:
    """``"orange star"`` → ``"an orange star"``."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def describe(thing: SceneObject, *, with_size: bool, with_texture: bool) -> str:
    """``"small striped red circle"``, with the words asked for."""
    words = [thing.size] if with_size else []
    if with_texture:
        words.append(thing.texture)
    return " ".join([*words, thing.color, thing.shape])


def relation(first: SceneObject, second: SceneObject) -> str:
    """Where the first object lies, seen from the second; the longer of the two offsets decides."""
    dx = first.centre[0] - second.centre[0]
    dy = first.centre[1] - second.centre[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def write_caption(
    objects: Sequence[SceneObject], background: str, below: Callable[[int], int]
) -> str:
    """A caption that names every object, the largest first.

    Sizes, textures, the opening, the relation of the first two objects and the background are
    each mentioned in some captions only.

    Args:
        objects: the scene's objects, largest first.
        background: ``"light"`` or ``"dark"``.
        below: ``below(n)`` gives the next random integer in ``0 … n − 1``.
    """
    phrases = [
        article(describe(thing, with_size=below(2) == 0, with_texture=below(2) == 0))
        for thing in objects
    ]
    caption = OPENINGS[below(len(OPENINGS))] + phrases[0]
    if len(phrases) > 1:
        joined = relation(objects[0], objects[1]) if below(2) == 0 else "and"
        caption += f" {joined} {phrases[1]}"
    for phrase in phrases[2:]:
        caption += f" and {phrase}"
    if below(4) == 0:
        caption += f" on a {background} background"
    return caption
