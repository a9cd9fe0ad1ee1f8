"""What the page's one event may ask for, and which of its parts then look different."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vit_sae_plugin.explorer.visit import Visit

PARTS = ("picture", "shelf", "answer", "latents")
FIELDS = frozenset(
    "kind index content start row column rows columns latent words ranking factor list".split()
)
"""What the page says of an action."""
_ALL = frozenset(PARTS)

_Action = Callable[[Visit, Mapping[str, Any]], object]

_ACTIONS: dict[str, tuple[_Action, frozenset[str]]] = {
    "open": (lambda visit, said: visit.open_image(said.get("index")), _ALL),
    "upload": (lambda visit, said: visit.open_upload(said.get("content")), _ALL),
    "too_large": (lambda visit, said: visit.refuse_upload(), _ALL),
    "shelf": (lambda visit, said: visit.turn_shelf(said.get("start")), frozenset({"shelf"})),
    "patch": (
        lambda visit, said: visit.choose_patch(said.get("row"), said.get("column")),
        frozenset({"picture", "latents"}),
    ),
    "step": (
        lambda visit, said: visit.step(said.get("rows"), said.get("columns")),
        frozenset({"picture", "latents"}),
    ),
    "whole": (lambda visit, said: visit.choose_whole(), frozenset({"picture", "latents"})),
    "color": (
        lambda visit, said: visit.toggle_color(said.get("latent")),
        frozenset({"picture", "latents"}),
    ),
    "references": (
        lambda visit, said: visit.toggle_references(said.get("latent")),
        frozenset({"latents"}),
    ),
    "find": (lambda visit, said: visit.find(said.get("words")), frozenset({"latents"})),
    "rank": (
        lambda visit, said: visit.rank_by(said.get("ranking")),
        frozenset({"picture", "latents"}),
    ),
    "factor": (
        lambda visit, said: visit.set_factor(said.get("latent"), said.get("factor")),
        frozenset({"answer", "latents"}),
    ),
    "add": (
        lambda visit, said: visit.add_latent(said.get("latent"), said.get("factor")),
        frozenset({"answer", "latents"}),
    ),
    "undo": (lambda visit, said: visit.undo_changes(), frozenset({"answer", "latents"})),
    "ask": (
        lambda visit, said: visit.ask(said.get("classes"), said.get("template")),
        frozenset({"answer", "latents"}),
    ),
}


def act(visit: Visit, said: Any) -> frozenset[str]:
    """Do what the page asked for.

    Args:
        visit: whose page it is.
        said: what the browser sent: ``kind``, and what that kind needs. It may be anything.

    Returns:
        The parts of the page that look different now. What was wrong with the request is in
        ``visit.notices``; then nothing has changed.
    """
    visit.notices.clear()
    kind = said.get("kind") if isinstance(said, Mapping) else None
    if not isinstance(kind, str) or kind not in _ACTIONS:
        visit.notices.append(f"the page asked for something unknown; want {', '.join(_ACTIONS)}")
        return frozenset()
    action, parts = _ACTIONS[kind]
    try:
        action(visit, said)
    except ValueError as error:
        visit.notices.append(str(error))
        return frozenset()
    if said.get("list") is False:  # a slider that still moves must not be drawn anew
        return parts - {"latents"}
    return parts
