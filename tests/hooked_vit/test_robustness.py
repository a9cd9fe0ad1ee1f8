"""Hooks come off whatever happens; ambiguous or lossy situations are refused."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from tests.hooked_vit.conftest import Case
from tests.tiny_models import tiny_open_clip, tiny_timm, tiny_transformers_clip
from vit_sae_plugin.hooked_vit import HookedViT, UnsupportedTowerError


def module_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_an_exception(case: Case):
    before = module_hooks(case.bare)
    with torch.no_grad():
        wanted = case.hooked(case.pixels)

    def fail(value: Tensor, hook: object) -> None:
        raise ZeroDivisionError

    for hook in ("hook_embed", "blocks.0.attn.hook_pattern", "blocks.1.hook_resid_post"):
        with pytest.raises(ZeroDivisionError):
            case.hooked.run_with_hooks(case.pixels, fwd_hooks=[(hook, fail)])
        with pytest.raises(ZeroDivisionError):
            case.hooked.run_with_hooks(case.pixels, fwd_hooks=[(hook, fail)], stop_at_layer=2)
    assert module_hooks(case.bare) == before
    assert not case.hooked.list_hooks()
    with torch.no_grad():
        assert torch.equal(case.hooked(case.pixels), wanted)


def test_module_hooks_live_for_one_forward_only(case: Case):
    counts: list[int] = []
    case.hooked.add_hook(
        "blocks.0.hook_resid_post",
        lambda value, hook: counts.append(module_hooks(case.bare)),
    )
    try:
        before = module_hooks(case.bare)
        case.hooked(case.pixels)
        assert counts == [before + 1]
        assert module_hooks(case.bare) == before
    finally:
        case.hooked.reset_hooks()


def test_attention_is_taken_apart_only_where_a_hook_is_in_use(open_clip_case: Case):
    calls: list[int] = []
    softmax = Tensor.softmax

    def counted(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        return softmax(self, *args, **kwargs)

    model, pixels = open_clip_case.hooked, open_clip_case.pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "softmax", counted)
        model.run_with_cache(pixels, names_filter=lambda name: "hook_resid" in name)
        assert len(calls) == 0
        model.run_with_cache(pixels, names_filter="blocks.1.attn.hook_pattern")
        assert len(calls) == 1


def test_the_model_may_be_run_inside_a_hook(case: Case):
    inner: list[Tensor] = []

    def run_again(value: Tensor, hook: object) -> None:
        if not inner:
            inner.append(value)
            inner.append(case.hooked(case.pixels))

    hook = "blocks.0.hook_resid_post"
    with torch.no_grad():
        wanted = case.hooked(case.pixels)
        case.hooked.reset_hooks()
        output = case.hooked.run_with_hooks(case.pixels, fwd_hooks=[(hook, run_again)])
    assert torch.equal(output, wanted)
    assert torch.equal(inner[1], wanted)


def test_two_threads_do_not_see_each_others_passes(open_clip_case: Case):
    model = open_clip_case.hooked
    batches = [torch.randn(3, 3, 32, 32) for _ in range(2)]
    hook = "blocks.1.attn.hook_z"
    with torch.no_grad():
        wanted = [model(batch, stop_at_layer=2) for batch in batches]
    found: list[list[bool]] = [[], []]

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(30):
                output = model(batches[index], stop_at_layer=2)
                found[index].append(torch.equal(output, wanted[index]))

    model.add_hook(hook, lambda value, hook: None)
    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        model.reset_hooks()
    assert found == [[True] * 30] * 2


def test_a_block_used_twice_is_refused():
    bare = tiny_open_clip()
    blocks = bare.visual.transformer.resblocks
    blocks[2] = blocks[0]
    with pytest.raises(UnsupportedTowerError, match=r"resblocks\.2' is the same module as .*\.0'"):
        HookedViT.from_module(bare)


def test_a_part_shared_between_blocks_is_refused():
    bare = tiny_timm()
    bare.blocks[1].mlp = bare.blocks[0].mlp
    with pytest.raises(UnsupportedTowerError, match=r"blocks\.1\.mlp\.fc1' is the same module"):
        HookedViT.from_module(bare)


def test_a_block_called_twice_is_noticed():
    bare = tiny_timm()
    model = HookedViT.from_module(bare)
    inner = bare.blocks[1]
    bare.forward_features = lambda x, **_: bare.norm(
        bare.blocks[1](inner(bare.blocks[0](bare._pos_embed(bare.patch_embed(x)))))
    )
    pixels = torch.randn(1, 3, 32, 32)
    model(pixels)
    with pytest.raises(RuntimeError, match=r"'blocks\.1\.hook_resid_post' fires a second time"):
        model.run_with_cache(pixels, names_filter="blocks.1.hook_resid_post")


def test_a_module_that_is_never_called_is_noticed():
    bare = tiny_timm()
    model = HookedViT.from_module(bare)
    bare.blocks[1].forward = lambda x, **_: x
    pixels = torch.randn(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"never reached blocks\.1\.hook_mlp_out"):
        model.run_with_cache(pixels, names_filter="blocks.1.hook_mlp_out")


def test_another_shape_is_refused(open_clip_case: Case):
    with pytest.raises(
        ValueError, match=r"'blocks.0.hook_resid_pre' returned \(2, 32\).*2, 17, 32"
    ):
        open_clip_case.hooked.run_with_hooks(
            open_clip_case.pixels,
            fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: value[:, 0])],
        )


@pytest.mark.parametrize("factory", [tiny_open_clip, tiny_timm, tiny_transformers_clip])
def test_gradient_checkpointing_with_hooks_is_refused(factory):
    bare = factory()
    model = HookedViT.from_module(bare)
    if hasattr(bare, "gradient_checkpointing_enable"):
        bare.gradient_checkpointing_enable()
    else:
        bare.set_grad_checkpointing(True)
    pixels = torch.randn(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match="gradient checkpointing is on"):
        model.run_with_cache(pixels)
    with torch.no_grad():
        model.run_with_cache(pixels)


@pytest.mark.parametrize("where", ["visual", "block"])
def test_compiled_parts_run_uncompiled_while_hooks_are_in_use(where: str):
    bare = tiny_open_clip()
    model = HookedViT.from_module(bare)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(pixels)
        if where == "visual":
            bare.visual.compile(backend="eager")
        else:
            blocks = bare.visual.transformer.resblocks
            blocks[1] = torch.compile(blocks[1], backend="eager")
        torch.testing.assert_close(model(pixels), wanted)
        output, cache = model.run_with_cache(pixels, names_filter=lambda _: True)
        assert list(cache) == list(model.hook_dict)
        assert torch.equal(output, wanted)
        zeroed = model.run_with_hooks(
            pixels, fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 0)]
        )
        assert not torch.allclose(zeroed, wanted)
        torch.testing.assert_close(model(pixels), wanted)


def test_the_bare_model_still_compiles_in_one_graph():
    bare = tiny_open_clip()
    model = HookedViT.from_module(bare)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model.run_with_cache(pixels)
        compiled = torch.compile(bare.visual, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pixels), model(pixels))
        whole = HookedViT.from_module(torch.compile(bare, backend="eager"))
        assert torch.equal(whole.run_with_cache(pixels)[0], model(pixels))


def test_training_mode_with_stochastic_depth_carries_an_edited_resid_mid():
    bare = tiny_timm(drop_path_rate=0.5)
    bare.train()
    model = HookedViT.from_module(bare)
    pixels = torch.randn(64, 3, 32, 32)
    hook = "blocks.1.hook_resid_mid"
    torch.manual_seed(0)
    plain = model.run_with_cache(pixels)[1]
    torch.manual_seed(0)
    edited: list[Tensor] = []
    twin = copy.deepcopy(model)
    twin.add_hook(hook, lambda value, hook: value + 1)
    twin.add_hook("blocks.1.hook_resid_post", lambda value, hook: edited.append(value))
    twin(pixels)
    # A block whose MLP was dropped adds nothing; its stream moves by the edit alone.
    dropped = plain["blocks.1.hook_mlp_out"].flatten(1).abs().sum(1) == 0
    assert 0 < dropped.sum() < 64
    moved = edited[0] - plain["blocks.1.hook_resid_post"]
    torch.testing.assert_close(moved[dropped], torch.ones_like(moved[dropped]))
