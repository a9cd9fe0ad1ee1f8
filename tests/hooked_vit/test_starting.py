"""``start_at_layer`` and ``embed_residual``: going on from a residual stream."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.hooked_vit.conftest import Case
from tests.hooked_vit.test_stopping import refuse
from vit_sae_plugin.hooked_vit import HookedViT, HookNameError

NO_TOKEN_ALONE = (
    "transformers_siglip",
    "transformers_siglip_vision",
    "transformers_dinov2_classifier",
    "timm_siglip",
    "timm_distilled",
    "transformers_deit_taught",
    "open_clip_coca",
)


def blocks_of(case: Case) -> list[nn.Module]:
    return list(case.bare.get_submodule(case.hooked.tower.blocks).children())


def test_going_on_gives_what_the_whole_pass_gives(case: Case):
    model, n_layers = case.hooked, case.hooked.cfg.n_layers
    with torch.no_grad():
        wanted, cache = model.run_with_cache(case.pixels)
        for start in range(n_layers + 1):
            residual = model(case.pixels, stop_at_layer=start)
            for layer in {start, start - n_layers if start < n_layers else start}:
                assert torch.equal(model(residual, start_at_layer=layer), wanted)
            for stop in range(start, n_layers + 1):
                stopped = model(residual, start_at_layer=start, stop_at_layer=stop)
                assert torch.equal(stopped, model(case.pixels, stop_at_layer=stop))
            output, late = model.run_with_cache(residual, start_at_layer=start)
            assert torch.equal(output, wanted)
            left = [n for n in cache if n.split(".")[0] not in ("hook_embed", "hook_pos_embed")]
            left = [n for n in left if n != "hook_full_embed"]
            left = [n for n in left if not n.startswith("blocks") or int(n.split(".")[1]) >= start]
            assert list(late) == left
            assert all(torch.equal(late[name], cache[name]) for name in left)
        assert torch.equal(model(case.pixels), wanted), "afterwards all blocks run again"


def test_no_earlier_block_runs(case: Case):
    blocks = blocks_of(case)
    inside = [part for block in blocks[:-1] for part in block.modules() if part is not block]
    with torch.no_grad():
        last = case.hooked.cfg.n_layers - 1
        residual = case.hooked(case.pixels, stop_at_layer=last)
        wanted = case.hooked(case.pixels)
        handles = [part.register_forward_pre_hook(refuse) for part in inside]
        try:
            assert torch.equal(case.hooked(residual, start_at_layer=last), wanted)
        finally:
            for handle in handles:
                handle.remove()
    assert not any("forward" in block.__dict__ for block in blocks)


def test_edits_behind_the_start_count_and_gradients_reach_the_residual(case: Case):
    hook = "blocks.1.hook_resid_mid"
    hooks = [(hook, lambda value, hook: value * 1.5)]
    wanted = case.hooked.run_with_hooks(case.pixels, fwd_hooks=hooks)
    residual = case.hooked(case.pixels, stop_at_layer=1).detach().requires_grad_()
    output = case.hooked.run_with_hooks(residual, fwd_hooks=hooks, start_at_layer=1)
    assert torch.equal(output, wanted)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    (output * weights).sum().backward()

    kept: list[Tensor] = []

    def keep(value: Tensor, hook: object) -> None:
        value.retain_grad()
        kept.append(value)

    whole = case.hooked.run_with_hooks(
        case.pixels.clone().requires_grad_(),
        fwd_hooks=[("blocks.0.hook_resid_post", keep), *hooks],
    )
    (whole * weights).sum().backward()
    assert residual.grad is not None
    assert residual.grad.abs().max() > 0
    torch.testing.assert_close(residual.grad, kept[0].grad)
    case.bare.zero_grad()


def test_an_earlier_hook_is_an_error_when_named(open_clip_case: Case):
    model = open_clip_case.hooked
    residual = torch.zeros(1, 17, 32)
    with pytest.raises(
        HookNameError,
        match=r"in front of start_at_layer=2; want a lower .*blocks\.2\.hook_resid_p",
    ):
        model.run_with_cache(residual, names_filter="blocks.1.hook_resid_post", start_at_layer=2)
    with pytest.raises(HookNameError, match="in front of start_at_layer=0"):
        model.run_with_hooks(residual, fwd_hooks=[("hook_embed", refuse)], start_at_layer=0)


def test_what_is_no_residual_stream_is_refused(open_clip_case: Case):
    model, pixels = open_clip_case.hooked, open_clip_case.pixels
    with pytest.raises(ValueError, match=r"stream is \(2, 3, 32, 32\); want .*batch, token, 32"):
        model(pixels, start_at_layer=1)
    with pytest.raises(ValueError, match=r"\(1, 17, 31\)"):
        model.embed_residual(torch.zeros(1, 17, 31), per_token=True)
    with pytest.raises(ValueError, match="start_at_layer is 4, but the model has 3 blocks"):
        model(torch.zeros(1, 17, 32), start_at_layer=4)
    with pytest.raises(ValueError, match="stop_at_layer is 1 and start_at_layer 2"):
        model(torch.zeros(1, 17, 32), start_at_layer=2, stop_at_layer=1)


def test_after_an_error_all_blocks_run_again(open_clip_case: Case):
    model, pixels = copy.deepcopy(open_clip_case.hooked), open_clip_case.pixels
    before = model(pixels)

    def fail(*_: object, **__: object) -> None:
        raise KeyError("in a hook")

    residual = model(pixels, stop_at_layer=2)
    with pytest.raises(KeyError):
        model.run_with_hooks(
            residual, fwd_hooks=[("blocks.2.hook_resid_post", fail)], start_at_layer=2
        )
    assert torch.equal(model(pixels), before)


def test_a_hook_may_run_the_whole_model_meanwhile(open_clip_case: Case):
    model, pixels = open_clip_case.hooked, open_clip_case.pixels
    other = HookedViT.from_module(model.bare_model)
    inner: list[Tensor] = []
    with torch.no_grad():
        model.run_with_hooks(
            model(pixels, stop_at_layer=1),
            fwd_hooks=[("blocks.1.hook_attn_out", lambda *_, hook: inner.append(other(pixels)))],
            start_at_layer=1,
        )
        assert torch.equal(inner[0], model(pixels))


def test_the_head_alone(case: Case):
    model = case.hooked
    with torch.no_grad():
        wanted = model(case.pixels)
        residual = model(case.pixels, stop_at_layer=model.cfg.n_layers)
        assert torch.equal(model.embed_residual(residual), wanted)
        if case.family in NO_TOKEN_ALONE:
            with pytest.raises(ValueError, match=r"no single token .* has an embedding: its "):
                model.embed_residual(residual, per_token=True)
            return
        each = model.embed_residual(residual, per_token=True)
    assert each.shape == (*residual.shape[:2], wanted.shape[-1])
    if model.tower.pooling == "class":
        torch.testing.assert_close(each[:, 0], wanted)
    # A stream in which every token is this one is pooled to this one.
    for token in (0, 5):
        same = residual[:, token : token + 1].expand_as(residual)
        torch.testing.assert_close(each[:, token], model.embed_residual(same))


def test_a_clip_token_goes_through_norm_and_projection(open_clip_case: Case):
    model = open_clip_case.hooked
    visual = open_clip_case.bare.visual
    with torch.no_grad():
        residual = model(open_clip_case.pixels, stop_at_layer=3)
        each = model.embed_residual(residual, per_token=True)
        torch.testing.assert_close(each, visual.ln_post(residual) @ visual.proj)


def test_half_precision_and_no_embedding_description(open_clip_case: Case):
    bare = open_clip_case.bare
    tower = dataclasses.replace(open_clip_case.hooked.tower, embedding=None)
    model = HookedViT.from_module(bare, tower=tower)
    residual = model(open_clip_case.pixels, stop_at_layer=1)
    assert torch.equal(model(residual, start_at_layer=1), model(open_clip_case.pixels))
    half = copy.deepcopy(model).to(torch.bfloat16)
    output = half(residual, start_at_layer=1)
    assert output.dtype is torch.bfloat16


CLASS_ALONE_COUNTS = (
    "open_clip",
    "timm",
    "torchvision",
    "transformers_clip",
    "transformers_vit",
)


def test_only_what_the_output_depends_on_may_run(case: Case):
    """Of the last block's MLP, one token where the class token is pooled, else all; the output and
    the gradients are the same."""
    bare = copy.deepcopy(case.bare).double()  # where rounding hides no mistake
    model, pixels = HookedViT.from_module(bare), case.pixels.double()
    last = model.cfg.n_layers - 1
    seen: list[int] = []
    ln2 = bare.get_submodule(f"{model._block_paths[-1]}.{model.tower.block.ln2}")
    handle = ln2.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    weights = torch.linspace(-1, 1, model(pixels).numel())
    try:
        for start in (0, last):
            residual = model(pixels, stop_at_layer=start).detach()
            results = []
            for output_only in (False, True):
                leaf = residual.clone().requires_grad_()
                output = model(leaf, start_at_layer=start, output_only=output_only)
                (gradient,) = torch.autograd.grad((output.flatten() * weights).sum(), leaf)
                results.append((output.detach(), gradient))
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
        narrow = 1 if model.tower.pooling == "class" else model.cfg.n_tokens
        assert seen[-1] == narrow
        assert seen[-2] == model.cfg.n_tokens
        if case.family in CLASS_ALONE_COUNTS:
            assert narrow == 1
        model.run_with_cache(residual, start_at_layer=last, output_only=True)
        assert seen[-1] == model.cfg.n_tokens, "hooks in the last block see all tokens"
        whole = model(pixels, output_only=True)
    finally:
        handle.remove()
    torch.testing.assert_close(whole, model(pixels), rtol=1e-9, atol=1e-10)


def test_in_training_mode_nothing_is_left_out(open_clip_case: Case):
    model = HookedViT.from_module(copy.deepcopy(open_clip_case.bare).train())
    residual = model(open_clip_case.pixels, stop_at_layer=2)
    wanted = model(residual, start_at_layer=2)
    assert torch.equal(model(residual, start_at_layer=2, output_only=True), wanted)
