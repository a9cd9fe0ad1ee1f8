"""Models by name: loaded, rebuilt from what is recorded, and wrong names answered."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny_models import (
    OPEN_CLIP_TEXT,
    OPEN_CLIP_VISION,
    tiny_open_clip,
    tiny_transformers_clip,
    tiny_transformers_dinov2,
)
from vit_sae_plugin.hooked_vit import (
    HookedViT,
    ModelNameError,
    WeightsError,
    describe_weights,
)

PICTURE = Image.radial_gradient("L").convert("RGB").resize((80, 50))


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {"embed_dim": 24, "vision_cfg": OPEN_CLIP_VISION, "text_cfg": OPEN_CLIP_TEXT}
    config["vision_cfg"] = {**OPEN_CLIP_VISION, "layers": 3}
    preprocess = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    weights = {k: v.contiguous() for k, v in tiny_open_clip(seed=5).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def test_open_clip_from_a_folder(open_clip_folder: Path):
    model = HookedViT.from_pretrained(f"local-dir:{open_clip_folder}")
    bare = tiny_open_clip(seed=5)
    pixels = model.preprocess(PICTURE).unsqueeze(0)
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(model(pixels), bare.encode_image(pixels))
    assert model.cfg.model_name == model.model_name == f"local-dir:{open_clip_folder}"
    assert not model.training
    assert model.tokenizer is not None


def test_what_is_recorded_rebuilds_the_model(open_clip_folder: Path):
    name = f"local-dir:{open_clip_folder}"
    model = HookedViT.from_pretrained(
        name, dtype=torch.bfloat16, device="cpu", force_quick_gelu=True
    )
    recorded = json.loads(json.dumps(model.from_pretrained_kwargs))
    assert recorded == {"dtype": "bfloat16", "force_quick_gelu": True}
    again = HookedViT.from_pretrained(model.model_name, **recorded)
    assert again.cfg == model.cfg
    assert again.cfg.dtype is torch.bfloat16
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(pixels), model(pixels))


def test_shapes_clip_ships_with_the_package():
    model = HookedViT.from_pretrained("shapes-clip")
    assert model.model_name == "shapes-clip"
    assert model.from_pretrained_kwargs == {}
    assert model.cfg.image_size == (64, 64)
    assert model.cfg.grid == (8, 8)
    pixels = model.preprocess(PICTURE).unsqueeze(0)
    assert model.encode_image(pixels).shape == (1, model.cfg.d_embed)
    assert model.encode_text(["a red circle"]).shape == (1, model.cfg.d_embed)


def test_random_weights_are_the_same_at_every_load():
    kwargs = {"pretrained": False, "img_size": 32, "patch_size": 8}
    torch.manual_seed(1)
    first = HookedViT.from_pretrained("timm:test_vit", **kwargs)
    state = torch.get_rng_state()
    second = HookedViT.from_pretrained("timm:test_vit", **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    other = HookedViT.from_pretrained("timm:test_vit", init_seed=1, **kwargs)
    assert other.from_pretrained_kwargs == {**kwargs, "init_seed": 1}
    pixels = first.preprocess(PICTURE).unsqueeze(0)
    assert pixels.shape == (1, 3, 32, 32)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    torch.testing.assert_close(first(pixels), second(pixels))
    assert (first(pixels) - other(pixels)).abs().max() > 1e-3


def test_openai_weights_get_the_activation_they_were_trained_with(monkeypatch):
    import open_clip

    seen = {}

    def create(name, **kwargs):
        seen.update(kwargs)
        return tiny_open_clip(), None, lambda image: torch.zeros(3, 32, 32)

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    HookedViT.from_pretrained("ViT-B-16", pretrained="openai")
    assert seen["force_quick_gelu"] is True
    seen.clear()
    HookedViT.from_pretrained("ViT-B-16", pretrained="datacomp_xl_s13b_b90k")
    assert "force_quick_gelu" not in seen


def test_a_name_alone_stands_for_pretrained_weights(monkeypatch):
    import open_clip

    asked: list = []

    def create(name, **kwargs):
        asked.append((kwargs["pretrained"], kwargs.get("load_weights", True)))
        return tiny_open_clip(), None, lambda image: torch.zeros(3, 32, 32)

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    for name, pretrained, tag in [
        ("ViT-B-16", None, "openai"),
        ("ViT-B-16", True, "openai"),
        ("ViT-B-16-SigLIP", None, "webli"),
        ("ViT-B-16", "datacomp_xl_s13b_b90k", "datacomp_xl_s13b_b90k"),
        ("ViT-B-16", False, False),
    ]:
        monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_, **__: None)
        model = HookedViT.from_pretrained(name, pretrained=pretrained)
        assert asked[-1] == (tag or None, tag is not False)
        assert model.from_pretrained_kwargs["pretrained"] == tag
        assert model.has_pretrained_weights is (tag is not False)
        words = f"{tag} weights" if tag else "random weights"
        assert describe_weights(name, model.from_pretrained_kwargs) == words


def test_random_weights_on_request_from_every_library(open_clip_folder: Path, tmp_path: Path):
    tiny_transformers_dinov2().save_pretrained(tmp_path / "dinov2")
    for name in (f"local-dir:{open_clip_folder}", f"hf:{tmp_path / 'dinov2'}", "shapes-clip"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            random = HookedViT.from_pretrained(name, pretrained=False)
            again = HookedViT.from_pretrained(name, **random.from_pretrained_kwargs)
            trained = HookedViT.from_pretrained(name)
        assert random.from_pretrained_kwargs == {"pretrained": False}
        assert (random.has_pretrained_weights, trained.has_pretrained_weights) == (False, True)
        assert trained.from_pretrained_kwargs == {}
        assert describe_weights(name, trained.from_pretrained_kwargs) == "pretrained weights"
        weights = [model.blocks[0].mlp.W_in for model in (random, again, trained)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.allclose(weights[0], weights[2])
    assert HookedViT.from_module(tiny_open_clip()).has_pretrained_weights is None


def test_a_folder_without_weights_is_no_random_model(open_clip_folder: Path):
    (open_clip_folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"can't load 'local-dir:.*pretrained=False gives"):
        HookedViT.from_pretrained(f"local-dir:{open_clip_folder}")


@pytest.mark.parametrize("name", ["ViT-B-32", "timm:vit_tiny_patch16_224"])
def test_weights_that_cannot_be_fetched(name: str, monkeypatch, tmp_path: Path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="can't load") as caught:
        HookedViT.from_pretrained(name, cache_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert "needs a network" in str(caught.value)


def save_transformers(folder: Path, model, size: int) -> str:
    from transformers import CLIPImageProcessor

    model.save_pretrained(folder)
    crop = {"height": size, "width": size}
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=crop).save_pretrained(folder)
    return f"hf:{folder}"


def test_transformers_from_a_folder(tmp_path: Path):
    bare = tiny_transformers_clip()
    with pytest.warns(UserWarning, match="no tokenizer"):
        model = HookedViT.from_pretrained(save_transformers(tmp_path, bare, size=32))
    pixels = model.preprocess(PICTURE).unsqueeze(0)
    # The weights are the same, but lie elsewhere in memory, so products may differ in the last bit.
    torch.testing.assert_close(model(pixels), bare.get_image_features(pixels).pooler_output)
    assert pickle.loads(pickle.dumps(model)).preprocess(PICTURE).equal(pixels[0])
    assert "image_mean" in str(model.preprocess)


def test_transformers_images_of_another_size_than_the_config(tmp_path: Path):
    model = HookedViT.from_pretrained(save_transformers(tmp_path, tiny_transformers_dinov2(), 48))
    assert model.cfg.grid == (6, 6)
    pixels = model.preprocess(PICTURE.convert("L")).unsqueeze(0)
    cache = model.run_with_cache(pixels)[1]
    assert cache["hook_full_embed"].shape[1] == model.cfg.n_tokens == 37


def test_transformers_without_image_processor_warns(tmp_path: Path):
    tiny_transformers_dinov2().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no image processor"):
        model = HookedViT.from_pretrained(f"hf:{tmp_path}")
    assert model.preprocess is None


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ViT-B16", {}, r"no open_clip model 'ViT-B16'; near names: ViT-B-16"),
        ("shapes_clip", {}, "shapes-clip"),
        ("ViT-B-16", {"pretrained": "openia"}, "no weights tagged 'openia'.*near tags: openai"),
        ("ViT-bigG-14", {}, "2 weights .* want one of: laion2b.*, a file; or pretrained=False"),
        ("ViT-bigG-14", {"pretrained": True}, "pretrained is True, and open_clip has 2 weights"),
        ("ViT-S-16", {}, "has no weights for 'ViT-S-16'; want one of: a file"),
        ("timm:vit_base_patch17_224", {}, "near names: vit_base_patch16_224"),
        ("timm:test_vit", {"pretrained": "in1k"}, r"'timm:test_vit\.in1k'"),
        ("hf:org/model", {"pretrained": "laion"}, "weights of 'hf:org/model' are part of the name"),
        ("local-dir:x", {"pretrained": "laion"}, "'local-dir:x' comes with its weights"),
    ],
)
def test_wrong_names(name: str, kwargs: dict, message: str):
    with pytest.raises(ModelNameError, match=message):
        HookedViT.from_pretrained(name, **kwargs)


def test_a_folder_that_is_not_there(tmp_path: Path):
    tiny_transformers_dinov2().save_pretrained(tmp_path / "dinov2-tiny")
    with pytest.raises(ModelNameError, match="models beside it: dinov2-tiny"):
        HookedViT.from_pretrained(f"hf:{tmp_path / 'dinov2-tyni'}")


def test_arguments_that_cannot_be_recorded(open_clip_folder: Path):
    with pytest.raises(TypeError, match="want plain JSON data"):
        HookedViT.from_pretrained(f"local-dir:{open_clip_folder}", image_mean=torch.ones(3))
    with pytest.raises(ValueError, match="dtype is 'float12'; want"):
        HookedViT.from_pretrained(f"local-dir:{open_clip_folder}", dtype="float12")
