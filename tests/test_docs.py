"""README and docs: their Python runs as written on small stand-ins, and their commands exist."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vit_sae_cli
from scripts import write_hook_names
from tests.cli.command import vit_sae
from vit_sae_plugin import HookedViT
from vit_sae_plugin.analysis.atlas.latent_names import LatentName, write_names
from vit_sae_plugin.datasets import ShapeScenes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    '"ViT-B-16", pretrained="openai"': '"shapes-clip"',
    '"ViT-B-16"': '"shapes-clip"',
    "d_in=768, d_sae=768 * 8": "d_in=128, d_sae=640",
    "blocks.10.": "blocks.2.",
    "stop_at_layer=11": "stop_at_layer=3",
    'output_path="runs/photos"': 'output_path="runs/photos", training_tokens=4096, '
    "train_batch_size_tokens=512, verbose=False",
    "--model ViT-B-16 --pretrained openai": "--model shapes-clip --training-tokens 4096 "
    "--d-sae 640 --set train_batch_size_tokens=512",
    "n_images=2000": "n_images=4",
}
"""What is replaced by something smaller that needs no network."""


def blocks(page: Path, *kinds: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^```(?:{'|'.join(kinds)})\n(.*?)^```", text, re.S | re.M)
    return [block.replace("\\\n", " ") for block in found]


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of each ``vit-sae`` command."""
    for block in blocks(page, "sh", "shell", "bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["vit-sae"]:
                yield words[1:]


def small(text: str) -> str:
    text = re.sub(r'"ViT-B-16", pretrained="openai"\n', '"shapes-clip"\n', text)
    for whole, less in SMALL.items():
        text = text.replace(whole, less)
    return text


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder to work in, with ``photos/`` of two classes and single pictures."""
    monkeypatch.chdir(tmp_path)
    scenes = ShapeScenes(12, seed=5)
    for index in range(12):
        place = tmp_path / "photos" / ("cat", "dog")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        scenes.scene(index).image.save(place / f"{index:02d}.png")
    for name in ("photo.jpg", "cat.jpg"):
        scenes.scene(0).image.save(tmp_path / name)
    return tmp_path


def test_the_readmes_python_runs(photos):
    clip = HookedViT.from_pretrained("shapes-clip")
    names = {
        "my_clip": clip.bare_model,
        "my_transform": clip.preprocess,
        "pixels": torch.zeros(2, 3, 64, 64),
    }
    python = [small(block) for block in blocks(ROOT / "README.md", "python")]
    assert len(python) >= 4
    for block in python:
        exec(compile(block, "README.md", "exec"), names)
    assert (photos / "runs" / "photos" / "sae" / "cfg.json").is_file()
    assert names["cache"]["blocks.2.hook_resid_post"].shape == (2, 65, 128)
    assert (photos / "atlas" / "atlas.json").is_file()
    names["images"] = "photos/"
    sae_sha256 = names["atlas"].info.sae_sha256
    write_names("names.json", {7: LatentName("red rings")}, sae_sha256)  # what a browser saves
    for block in blocks(ROOT / "docs" / "report.md", "python"):
        exec(compile(block, "report.md", "exec"), names)
    assert (photos / "report" / "index.html").is_file()


def test_the_readmes_commands_run(photos):
    run = list(commands(ROOT / "README.md"))
    names = [words[0] for words in run]
    first_tour = run[: names.index("export") + 1]
    assert {"train", "eval", "analyze", "export"} <= {words[0] for words in first_tour}
    for words in first_tour:
        assert vit_sae(*shlex.split(small(shlex.join(words)))) == 0, words
        if words[0] == "train":  # which other commands set beside it
            shutil.copytree("runs/photos", "runs/wider")
    assert (photos / "exported" / "cfg.json").is_file()
    assert (photos / "report" / "index.html").is_file()


def test_the_site_has_every_page_once():
    nav = re.findall(r": ([\w/]+\.md)$|- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    named = sorted(one or other for one, other in nav)
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(named) == len(set(named))
    assert written <= set(named)


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(places) > 5
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_the_page_of_hook_names_is_what_the_code_writes():
    page = write_hook_names.page(HookedViT.from_pretrained("shapes-clip"))
    assert page == write_hook_names.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_one(page):
    parser = vit_sae_cli.build_parser()
    for words in commands(page):
        parser.parse_args(words)


def test_every_example_in_the_help_is_a_command(capsys):
    parser = vit_sae_cli.build_parser()
    subparsers = next(action.choices for action in parser._actions if action.dest == "command")
    for name, command in subparsers.items():
        examples = re.findall(r"^  vit-sae (.*)$", command.format_help(), re.M)
        assert examples, name
        for example in examples:
            assert parser.parse_args(shlex.split(example)).command == name
