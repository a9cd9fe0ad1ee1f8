"""`docs/explorer.md`: its Python runs as written."""

from pathlib import Path

from tests.explorer.conftest import shapes_sae
from tests.test_docs import blocks
from vit_sae_plugin.datasets import ShapeScenes

PAGE = Path(__file__).parents[2] / "docs" / "explorer.md"


def test_the_pages_python_runs(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    scenes = ShapeScenes(6, split="test")
    for index in range(6):
        scenes.scene(index).image.save(tmp_path / "photos" / f"{index}.png")
    names = {"model": clip, "sae": shapes_sae(clip)}
    (python,) = blocks(PAGE, "python")
    known = python.replace("cat, dog", "red star, blue ring")  # words of this model
    exec(compile(known, "explorer.md", "exec"), names)
    (found,) = names["visit"].predictions().values()
    assert {one.name for one in found.answers} == {"red star", "blue ring"}
    assert [one.after for one in found.answers] != [one.before for one in found.answers]
