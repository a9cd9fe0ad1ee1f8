"""Runs the snippets of a page from top to bottom, as a reader would, on small stand-ins."""

from __future__ import annotations

import argparse
import io
import re
import runpy
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image
from torch.distributed.run import get_args_parser

import vit_sae_cli
from tests.cli.command import vit_sae
from tests.docs.kit import Kit, folders_made
from tests.docs.pages import ROOT, Snippet
from tests.docs.printed import check_value, differences, values_in_comments
from tests.docs.stand_ins import exemption, smaller
from vit_sae_plugin.datasets.shape_drawing import COLORS, SHAPES

WORDS = {*COLORS, *SHAPES}
"""Words that an SAE of other weights may print in each other's place."""


class PageRun:
    """A page that is being read; the present folder is its own."""

    def __init__(self, kit: Kit, names: dict[str, Any]) -> None:
        self.kit, self.names = kit, names
        self.printed = ""
        """By the last snippet that ran."""
        self.as_written = True
        """Whether that one ran on what the page has, so that the page's numbers are expected."""
        self.others: set[str] = set()
        """Files and folders that aren't what the page would have made."""
        self.other_names = False
        """Whether Python's names hold any such thing."""
        self.sizes: dict[str, int] = {}

    def do(self, snippet: Snippet) -> None:
        """Run or compare one snippet."""
        if exemption(snippet) is not None:
            check_exempt(snippet)
        elif snippet.kind == "file":
            Path(snippet.title).write_text(snippet.text, encoding="utf-8")
        elif snippet.kind == "inline":
            check_inline(snippet.words)
        elif snippet.kind == "output":
            found = differences(
                snippet.text, self.printed, same_numbers=self.as_written, any_of=WORDS
            )
            assert not found, "\n".join([snippet.place, *found])
        elif snippet.kind in ("python", "command"):
            self._run(snippet)
        else:
            pytest.fail(f"{snippet.place}: neither run nor exempt: {snippet.text[:80]!r}")

    def _run(self, snippet: Snippet) -> None:
        less = smaller(snippet)
        for folder in folders_made(less):
            # several snippets of a page may be ways to the same folder, of which one takes one
            shutil.rmtree(folder, ignore_errors=True)
        self.others.update(
            name for name in self.kit.named_in(less) if self.kit.bring(name, Path.cwd())
        )
        self.as_written = less == snippet.text and not any(name in less for name in self.others)
        if snippet.kind == "python":
            self.as_written = self.as_written and not self.other_names
            self.other_names = not self.as_written
        if not self.as_written:
            self.others.update(re.findall(r"[\w.-]+(?:/[\w.-]+)+", less))
        run = self._python if snippet.kind == "python" else self._command
        run(snippet, less)

    def _python(self, snippet: Snippet, less: str) -> None:
        # as many lines above it as on the page, so that a traceback shows the page's line
        program = compile("\n" * (snippet.line - 1) + less, snippet.page, "exec")
        with redirect_stdout(io.StringIO()) as out:
            exec(program, self.names)
            values = [(eval(what, self.names), said) for what, said in values_in_comments(less)]
        self.printed = out.getvalue()
        for value, said in values:
            check_value(value, said, self.sizes)
        for picture in re.findall(r"(?:savefig|save)\(\"([\w/]+\.png)\"", less):
            with Image.open(picture) as drawn:
                assert drawn.width > 300, f"{snippet.place}: {picture} is {drawn.size}"

    def _command(self, snippet: Snippet, less: str) -> None:
        words = shlex.split(less.replace("$(which vit-sae)", "vit-sae"))
        if words[0] == "torchrun":
            words = without_launcher(words)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
            status = vit_sae(*words[1:]) if words[0] == "vit-sae" else run_script(words)
        self.printed = out.getvalue()
        told = "\n".join(errors.getvalue().splitlines()[-3:])
        assert status == 0, f"{snippet.place}: {shlex.join(words)} ends with {status}:\n{told}"


def without_launcher(words: list[str]) -> list[str]:
    """What ``torchrun`` starts in each process, once its own arguments are found to be right."""
    read = get_args_parser().parse_args(words[1:])
    return [read.training_script, *read.training_script_args]


def run_script(words: list[str]) -> int:
    """``python examples/….py …``, in this process."""
    assert words[0] == "python", f"want a command that is known, not {words[0]}"
    assert words[1].startswith("examples/"), f"{words[1]} is neither an example nor exempt"
    with patch.object(sys, "argv", words[1:]):
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    return 0


def check_exempt(snippet: Snippet) -> None:
    """What can be known of a command that isn't run: that it exists and takes its arguments."""
    if snippet.kind == "command":
        check_arguments(snippet.words)


def check_inline(words: list[str]) -> None:
    """A command within the text, which may leave out what the text says: its options exist."""
    if words[0] == "torchrun":
        words = words[words.index("vit-sae") :]
    if words[0] != "vit-sae":
        check_arguments(words)
        return
    commands = vit_sae_cli.build_parser()._subparsers._group_actions[0].choices
    assert words[1] in commands, words
    known = commands[words[1]]._option_string_actions
    assert not [word for word in words if word.startswith("--") and word not in known], words


class StoppedError(Exception):
    """A script has read its arguments, and goes no further."""


def check_arguments(words: list[str]) -> None:
    """Raises if the program doesn't exist, or doesn't take these arguments."""
    if words[0] == "vit-sae":
        vit_sae_cli.build_parser().parse_args(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif words[:2] == ["python", "-m"] and words[2] not in STANDARD_MODULES:
        check_script(ROOT / (words[2].replace(".", "/") + ".py"), words[3:])
    elif words[0] == "python" and words[1] != "-m":
        check_script(ROOT / words[1], words[2:])


STANDARD_MODULES = ("http.server",)
"""What ``python -m`` runs on some page and isn't of this project."""


def check_script(path: Path, arguments: list[str]) -> None:
    """Raises if a script's own parser doesn't take the arguments; it is run no further."""
    if "parse_args(" not in path.read_text(encoding="utf-8"):
        assert not arguments, f"{path.name} reads no arguments"
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, given: Any = None) -> None:
        parse(parser, given)
        raise StoppedError

    with (
        patch.object(sys, "argv", [str(path), *arguments]),
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        pytest.raises(StoppedError),
    ):
        runpy.run_path(str(path), run_name="__main__")
