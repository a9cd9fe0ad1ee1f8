"""SAEs on adapted models: with the error term and nothing edited, the output stays the same."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.adaptation.conftest import tiny_clip
from tests.evaluation.tiny_setup import tiny_sae
from tests.hooked_vit.conftest import build_case
from vit_sae_plugin.adaptation import AdaptationConfig, adapt
from vit_sae_plugin.attached_sae import AttachedSAE, HookedSAEViT, UpperRun, remove
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.hooked_vit import HookedViT

FAMILIES = ("open_clip", "transformers_clip", "timm")
N_PROMPTS = 2


def prompted(family: str) -> HookedViT:
    """Prompt tokens behind the patches, other ones at each block's input, as in deep prompting."""
    case = build_case(family)
    bare = copy.deepcopy(case.bare)
    tower = dataclasses.replace(case.hooked.tower, suffix_roles=("prompt",) * N_PROMPTS)
    generator = torch.Generator().manual_seed(3)
    shape = (case.hooked.cfg.n_layers, 1, N_PROMPTS, case.hooked.cfg.d_model)
    prompts = torch.randn(shape, generator=generator)

    def put(layer: int, block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stream, *others = args
        kept = stream if layer == 0 else stream[:, :-N_PROMPTS]
        new = torch.cat([kept, prompts[layer].expand(len(stream), -1, -1)], dim=1)
        return (new, *others), kwargs

    for layer, block in enumerate(bare.get_submodule(tower.blocks).children()):
        block.register_forward_pre_hook(partial(put, layer), with_kwargs=True)
    return HookedViT.from_module(bare, tower=tower)


def low_rank(family: str) -> HookedViT:
    """LoRA in the attention of the last two blocks, through peft."""
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(build_case(family).hooked)
    inside = {
        "open_clip": ("visual.transformer.resblocks.{}.attn",),
        "timm": ("blocks.{}.attn.qkv", "blocks.{}.mlp.fc1"),
        "transformers_clip": ("vision_model.encoder.layers.{}.self_attn.v_proj",),
    }[family]
    layers = range(model.cfg.n_layers - 2, model.cfg.n_layers)
    targets = [path.format(layer) for path in inside for layer in layers]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    get_peft_model(model.bare_model, config).eval()
    return model


@pytest.mark.parametrize("adapted", [prompted, low_rank])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_unedited_an_adapted_model_answers_as_before(
    family: str, adapted: Callable[[str], HookedViT]
) -> None:
    case, model = build_case(family), adapted(family)
    difference = model(case.pixels) - case.hooked(case.pixels)
    assert difference.abs().max() > 1e-3, "it is adapted"
    check_unedited(model, case.pixels)


def check_unedited(model: HookedViT, pixels: Tensor) -> None:
    """Unedited latents leave the output as it is; edits above go the way of a whole pass."""
    plain = model(pixels)
    for hook, token_kind in (
        ("blocks.0.hook_resid_post", "all"),
        ("blocks.0.hook_resid_post", "patches"),
        ("blocks.1.hook_mlp_out", "cls"),
    ):
        sae = tiny_sae(model, hook, token_kind)
        attached = AttachedSAE(model, sae)
        run = UpperRun(attached, pixels)

        def same(latents: Tensor) -> Tensor:
            return latents.clone()

        reconstructed = attached.reconstruct(run.acts_btd, same, use_error_term=True)
        with HookedSAEViT.from_hooked_vit(model).edited({sae: None}) as hooked:
            answers = [hooked(pixels)]
        answers += [
            attached.splice(pixels, use_error_term=True),
            attached.splice(pixels, same, use_error_term=True),
            run.output(run.target_btd),
            run.output(reconstructed),
        ]
        for answer in answers:
            assert (answer - plain).norm() <= 1e-5 * plain.norm()
        # an edit goes the same way whether the blocks below run again or not
        edit = remove(range(24))
        edited = attached.splice(pixels, edit, use_error_term=True)
        assert (edited - plain).norm() > 1e-4 * plain.norm()
        above = run.output(attached.reconstruct(run.acts_btd, edit, use_error_term=True))
        torch.testing.assert_close(above, edited, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prompt_tokens_are_read_as_tokens_and_never_as_patches() -> None:
    model, pixels = prompted("open_clip"), build_case("open_clip").pixels
    n_patches = model.cfg.grid[0] * model.cfg.grid[1]
    of_all = AttachedSAE(model, tiny_sae(model, "blocks.0.hook_resid_post"))
    assert of_all.n_tokens == 1 + n_patches + N_PROMPTS
    patches = AttachedSAE(model, tiny_sae(model, "blocks.0.hook_resid_post", "patches"))
    torch.testing.assert_close(
        patches.activations(pixels), of_all.activations(pixels)[:, 1:-N_PROMPTS]
    )


@pytest.mark.parametrize("method", ["maple", "vpt", "lora"])
def test_unedited_this_packages_adapted_models_answer_as_before(method, tmp_path) -> None:
    draws = np.random.default_rng(0).integers(0, 255, (8, 40, 40, 3)).astype(np.uint8)
    images = ArrayImages(draws, labels=np.arange(8) % 4, class_names=["red", "blue", "green", "an"])
    clip = tiny_clip()
    settings = {"templates": ["a photo of a {}."]} if method != "maple" else {}
    config = AdaptationConfig(
        method, preset="shapes", shots=1, epochs=1, batch_size_images=2, half="base", **settings
    )
    model = adapt(clip, images, config, tmp_path / "adapted", progress=False)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():  # further than few shots take it
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        check_unedited(model, pixels)
