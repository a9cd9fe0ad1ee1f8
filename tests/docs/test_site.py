"""The site has every page, what is written by code is up to date, and the help's examples exist."""

import re
import shlex

import vit_sae_cli
from scripts import list_snippets, write_hook_names
from tests.docs.pages import PAGES, ROOT, snippets
from vit_sae_plugin import HookedViT


def test_the_site_has_every_page_once():
    nav = re.findall(r": ([\w/]+\.md)$|- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    named = sorted(one or other for one, other in nav)
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(named) == len(set(named))
    assert written <= set(named)


def test_the_page_of_hook_names_is_what_the_code_writes():
    page = write_hook_names.page(HookedViT.from_pretrained("shapes-clip"))
    assert page == write_hook_names.PAGE.read_text(encoding="utf-8")


def test_every_example_in_the_help_is_a_command():
    parser = vit_sae_cli.build_parser()
    subparsers = next(action.choices for action in parser._actions if action.dest == "command")
    for name, command in subparsers.items():
        examples = re.findall(r"^  vit-sae (.*)$", command.format_help(), re.M)
        assert examples, name
        for example in examples:
            assert parser.parse_args(shlex.split(example)).command == name


def test_the_list_names_every_snippet(capsys):
    list_snippets.main()
    said = capsys.readouterr().out
    assert all(f"{one.place} " in said for page in PAGES for one in snippets(page))
    totals = re.findall(r"^ *(\d+) \w+, ", said, re.M)
    assert sum(map(int, totals)) == sum(len(snippets(page)) for page in PAGES)
