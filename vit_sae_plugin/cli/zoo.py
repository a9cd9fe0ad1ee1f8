"""``vit-sae zoo``: released SAEs that this package has readers for."""

from __future__ import annotations

import argparse

from vit_sae_plugin.pretrained.zoo import STATUSES, ZooEntry, zoo, zoo_entry


def run(args: argparse.Namespace) -> int:
    """List all entries, or tell all about one."""
    if args.name is not None:
        _describe(zoo_entry(args.name))
        return 0
    entries = zoo().values()
    width = max(len(entry.name) for entry in entries)
    for status, words in STATUSES.items():
        some = [entry for entry in entries if entry.status == status]
        print(f"{words} ({len(some)}):")
        for entry in some:
            place = entry.hub or "not on the hub"
            print(f"  {entry.name:{width}}  {place}, {entry.licence or 'no licence known'}")
        print()
    print("'vit-sae zoo NAME' tells more of one; 'vit-sae convert NAME FOLDER' opens it")
    return 0


def _describe(entry: ZooEntry) -> None:
    facts = {
        "layout": entry.kind,
        "hub": entry.hub and f"https://huggingface.co/{entry.hub}",
        "file": entry.file,
        "model": entry.model,
        "hook": entry.hook_name,
        "tokens": entry.tokens,
        "licence": entry.licence or "none is known",
        "status": entry.status_in_words,
        "to be stated": ", ".join(entry.wants),
        "note": entry.note,
        **{name.replace("_", " "): f"{value:g}" for name, value in entry.measured.items()},
    }
    print(entry.name)
    for name, value in facts.items():
        if value:
            print(f"  {name}: {value}")
