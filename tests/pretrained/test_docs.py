"""docs/pretrained.md names every kind of SAE that can be opened."""

import re
from pathlib import Path

import vit_sae_cli
from vit_sae_plugin.pretrained import FORMATS, load_pretrained_sae, options_of

PAGE = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text(encoding="utf-8")


def test_the_help_and_the_docstring_name_every_kind():
    subparsers = next(a.choices for a in vit_sae_cli.build_parser()._actions if a.dest == "command")
    for text in (subparsers["convert"].format_help(), load_pretrained_sae.__doc__):
        assert set(FORMATS) <= set(re.findall(r"\w+", text))


def test_the_tables_name_every_kind_and_option():
    kinds, options = (
        {line.split("|")[1].strip(" `"): line for line in table.splitlines() if line[:3] == "| `"}
        for table in re.findall(r"\| kind \|.*?\n\n", PAGE, re.DOTALL)
    )
    assert set(kinds) == set(FORMATS)
    for kind in FORMATS:
        for option in options_of(kind):
            assert f"`{option}" in options[kind], (kind, option)
