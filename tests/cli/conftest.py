"""Pictures for the tests of all commands."""

import pytest

from vit_sae_plugin.datasets import ShapeScenes


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twelve scenes in two class folders; the first file is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = ShapeScenes(12, seed=5)
    for index in range(12):
        place = folder / f"class {index % 2}"
        place.mkdir(exist_ok=True)
        scenes.scene(index).image.save(place / f"{index:02d}.png")
    (folder / "class 0" / "000broken.jpg").write_bytes(b"no picture")
    return folder
