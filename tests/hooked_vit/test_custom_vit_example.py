"""The example with a vision transformer of one's own runs, and its hooks are right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from tests.hooked_vit.hand_made import Block, HandMade, linear, thirds
from vit_sae_plugin.hooked_vit import HookedViT

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_vit.py"
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("custom_vit", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_vit"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["custom_vit"]


def by_hand(bare) -> HandMade:
    blocks = []
    for layer in bare.layers:
        q, k, v = thirds(layer.attention.to_qkv.weight, layer.attention.to_qkv.bias)
        blocks.append(
            Block(
                ln1=layer.norm_a,
                q=q,
                k=k,
                v=v,
                o=linear(layer.attention.to_out),
                ln2=layer.norm_b,
                fc1=linear(layer.mlp[0]),
                act=relu,
                fc2=linear(layer.mlp[2]),
            )
        )
    return HandMade(
        n_heads=4,
        patch_embed=bare.patchify,
        prefix=[bare.class_token],
        positions=bare.positions,
        blocks=blocks,
        ln_final=bare.norm,
        head=lambda x, ln, edit: bare.head(edit("hook_image_embed", ln(x)[:, 0])),
    )


def test_it_runs(example, capsys: pytest.CaptureFixture[str]):
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "63 hooks; output unchanged: True"
    assert lines[1].split() == ["blocks.1.hook_resid_post", "(4,", "17,", "48)"]
    assert lines[-1] == "stopped in front of block 2: (4, 17, 48)"


@torch.no_grad()
def test_reading_and_editing_every_hook_agree_with_a_forward_by_hand(example):
    torch.manual_seed(1)
    bare = example.MyViT().eval()
    model = HookedViT.from_module(bare, tower=example.TOWER)
    hand = by_hand(bare)
    values: dict[str, Tensor] = {}

    def read(name: str, value: Tensor) -> Tensor:
        values[name] = value.clone()
        return value

    hand(PIXELS, read)
    output, cache = model.run_with_cache(PIXELS, names_filter=lambda _: True)
    assert torch.equal(output, bare(PIXELS))
    # The activation function works in place here, and hook_pre is still what went into it.
    assert cache["blocks.0.mlp.hook_pre"].min() < 0
    for name, value in cache.items():
        torch.testing.assert_close(value, values[name], rtol=1e-4, atol=1e-4)
        wanted = hand(PIXELS, lambda n, v, name=name: v * 1.5 if n == name else v)
        edited = model.run_with_hooks(PIXELS, fwd_hooks=[(name, lambda v, hook: v * 1.5)])
        torch.testing.assert_close(edited, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.equal(edited, output)
