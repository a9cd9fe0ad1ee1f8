"""``shapes-clip``: loads offline through open_clip's factory, and knows what scenes show."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

import vit_sae_plugin.shapes_clip
from benchmarks.shapes_clip_probe import (
    embed,
    probe_table,
    scenes_of,
    zero_shot_accuracy,
)
from vit_sae_plugin import HookedViT
from vit_sae_plugin.datasets.shape_scenes import SCENE_CLASS_NAMES, ShapeScenes
from vit_sae_plugin.shapes_clip import SHAPES_CLIP_HOOK

FOLDER = Path(vit_sae_plugin.shapes_clip.__file__).parent


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT.from_pretrained("shapes-clip")


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.get_tokenizer(f"local-dir:{FOLDER}")


def test_open_clips_own_factory_loads_the_folder(model):
    bare, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    bare.eval()
    assert {p.dtype for p in bare.parameters()} == {torch.float32}
    image = ShapeScenes(1).scene(0).image
    pixels = preprocess(image)[None]
    assert pixels.shape == (1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(bare.encode_image(pixels), model(model.preprocess(image)[None]))
        assert bare.encode_image(pixels).shape == (1, 128)


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 8e6


def test_the_saes_hook_exists(model):
    assert SHAPES_CLIP_HOOK in model.hook_dict
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.grid) == (4, 128, (8, 8))
    assert model.cfg.n_prefix_tokens == 1


def test_the_tokenizer_knows_every_caption_and_template(tokenizer):
    source = ShapeScenes(300)
    texts = [source.scene(index).caption for index in range(300)] + list(SCENE_CLASS_NAMES)
    texts += [template("red circle") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), 40)
    inner = tokenizer.tokenizer
    assert not (ids == inner.unk_token_id).any()
    # open_clip reads the text at its highest id: that must be the end token, in every text.
    assert (ids.max(dim=1).values == inner.eos_token_id).all()


def test_tokens_by_hand(tokenizer):
    inner = tokenizer.tokenizer
    ids = tokenizer("A Red  circle, unheard.")[0]
    words = inner.convert_ids_to_tokens(ids[ids != inner.pad_token_id].tolist())
    assert words == ["<start>", "a", "red", "circle", "<unk>", "<unk>", ".", "<end>"]


def test_zero_shot_accuracy_on_held_out_scenes_of_one_object(model):
    scenes = scenes_of(400, seed=21, n_objects=1)
    embeds = embed(model, scenes)
    assert zero_shot_accuracy(model, embeds, scenes, ["a photo of a {}."])[0] >= 0.9
    assert zero_shot_accuracy(model, embeds, scenes, ["{}"])[0] >= 0.9


def test_with_three_objects_the_nearest_name_is_one_of_theirs(model):
    scenes = scenes_of(200, seed=24, n_objects=3)
    _, names_one_of_them = zero_shot_accuracy(model, embed(model, scenes), scenes, ["{}"])
    assert names_one_of_them >= 0.8


def test_a_linear_probe_reads_shape_and_colour_from_a_patch(model):
    """Break-it check in the same breath: from a tower with random weights it can't read shapes."""
    fit_on, measure_on = scenes_of(600, 22, (1, 3)), scenes_of(150, 23, (1, 3))
    table = probe_table(model, fit_on, measure_on, SHAPES_CLIP_HOOK, ("shape", "color"))
    assert list(table.index) == ["shape", "color"]
    assert table.loc["shape", "probe_accuracy"] >= 0.75
    assert table.loc["color", "probe_accuracy"] >= 0.97
    assert table.loc["shape", "majority_accuracy"] <= 0.3
    torch.manual_seed(0)
    bare, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{FOLDER}", load_weights=False
    )
    untrained = HookedViT.from_module(bare, preprocess=preprocess)
    random_table = probe_table(untrained, fit_on[:250], measure_on, SHAPES_CLIP_HOOK, ("shape",))
    assert random_table.loc["shape", "probe_accuracy"] <= 0.5
