"""Released SAEs by name: what `zoo.yaml` says of each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from vit_sae_plugin.near_names import near_names

STATUSES = {
    "opened": "opened and checked here",
    "layout": "layout known, not opened for want of a network",
}
_TEXTS = ("name", "kind", "status")
_TEXTS_OR_NONE = ("hub", "file", "model", "hook_name", "tokens", "licence", "note")


@dataclass(frozen=True)
class ZooEntry:
    """A released SAE."""

    name: str
    """What it is opened by."""
    kind: str
    """Whose layout it has, as ``load_pretrained_sae`` calls it."""
    hub: str | None
    """``ORG/REPO`` on the Hugging Face hub; None: it is elsewhere, and ``note`` says where."""
    file: str | None
    """The file to open; None: there are several, or their list isn't known."""
    model: str | None
    """The model that it reads, as ``HookedViT.from_pretrained`` calls it; None: not certain."""
    hook_name: str | None
    """Where it reads; None: not certain."""
    tokens: str | None
    """Which tokens it reads: "all", "patches" or "cls"; None: not certain, or not tokens."""
    licence: str | None
    """Of the weights; None: none is known."""
    wants: list[str]
    """Options that must be stated to open it."""
    measured: dict[str, float]
    """Figures that this package measured; empty for what wasn't opened."""
    status: str
    """A key of ``STATUSES``: whether it was opened and checked."""
    note: str | None
    """What else one must know."""

    def __post_init__(self) -> None:
        for name in (*_TEXTS, *_TEXTS_OR_NONE):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in _TEXTS):
                raise ValueError(f"{self.name}: {name} is {value!r}; want a text")
        if self.status not in STATUSES:
            raise ValueError(
                f"{self.name}: status is {self.status!r}; want {' or '.join(STATUSES)}"
            )
        if (self.status == "opened") != bool(self.measured):
            raise ValueError(
                f"{self.name}: status is {self.status!r} with {len(self.measured)} figures; want "
                "figures of what was opened, and of nothing else"
            )
        if self.hub is None and not self.note:
            raise ValueError(f"{self.name}: hub is None; want a note that says where it is")

    @property
    def status_in_words(self) -> str:
        """Whether it was opened here."""
        return STATUSES[self.status]

    def source(self, file: str = "") -> str:
        """``KIND:ORG/REPO[/FILE]``, as ``load_pretrained_sae`` takes it.

        Raises:
            ValueError: it isn't on the hub.
        """
        if self.hub is None:
            raise ValueError(f"{self.name} can't be opened by its name: {self.note}")
        place = file or self.file
        return f"{self.kind}:{self.hub}" + (f"/{place}" if place else "")


@cache
def zoo() -> dict[str, ZooEntry]:
    """All entries, by name.

    Raises:
        ValueError: one lacks a field, has one too many, or says what can't be.
    """
    import yaml

    text = resources.files("vit_sae_plugin.pretrained").joinpath("zoo.yaml").read_text("utf-8")
    return read_entries(yaml.safe_load(text))


def read_entries(listed: list[dict[str, Any]]) -> dict[str, ZooEntry]:
    """Entries as the file lists them.

    Raises:
        ValueError: one lacks a field, has one too many, says what can't be, or two have one name.
    """
    known = {field.name for field in fields(ZooEntry)}
    found: dict[str, ZooEntry] = {}
    for values in listed:
        if differing := known ^ set(values):
            raise ValueError(
                f"the entry {values.get('name')!r} lacks, or has too many: "
                f"{', '.join(sorted(differing))}; want {', '.join(sorted(known))}"
            )
        entry = ZooEntry(**values)
        if entry.name in found:
            raise ValueError(f"two entries are called {entry.name!r}; want another name for one")
        found[entry.name] = entry
    return found


def zoo_source(text: str) -> str:
    """``NAME`` or ``NAME/FILE`` of an entry, as ``KIND:ORG/REPO[/FILE]``.

    Raises:
        ValueError: there is no such entry, or it isn't on the hub.
    """
    name, _, file = text.partition("/")
    return zoo_entry(name).source(file)


def zoo_entry(name: str) -> ZooEntry:
    """The entry of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in zoo():
        near = near_names(name, zoo())
        raise ValueError(
            f"{name!r} is no kind of SAE, and no SAE of the zoo; want KIND:PATH, or a name that "
            "'vit-sae zoo' lists" + (f" (near: {', '.join(near)})" if near else "")
        )
    return zoo()[name]
