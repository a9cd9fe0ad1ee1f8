"""A description that is not true is found out: at the first pass with hooks, and by ``check``."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from tests.hooked_vit.conftest import Case, build_case
from vit_sae_plugin.hooked_vit import HookedViT, TowerDescription, UnsupportedTowerError


def changed(tower: TowerDescription, field: str, value: object) -> TowerDescription:
    """``field`` of the tower, of its block or of its attention."""
    if field in TowerDescription.__dataclass_fields__:
        return replace(tower, **{field: value})
    block = tower.block
    if field in block.__dataclass_fields__:
        return replace(tower, block=replace(block, **{field: value}))
    attention = replace(block.attention, **{field: value})
    return replace(tower, block=replace(block, attention=attention))


@pytest.mark.parametrize(
    ("family", "field", "value", "message"),
    [
        ("open_clip", "n_prefix_tokens", 0, r"see \(1, 17, 32\).* 16 tokens .*n_prefix_tokens=0"),
        ("open_clip", "n_prefix_tokens", 2, "says 18 tokens"),
        ("open_clip", "suffix_roles", ("prompt",), "says 18 tokens .* 1 suffix_roles"),
        ("open_clip", "patch_size", (16, 16), "5 tokens .* 2 x 2 patches"),
        ("open_clip_custom_text", "mlp_out", "mlp", "hook_mlp_out added differs .*mlp_out='mlp'"),
        (
            "open_clip",
            "mlp_out",
            "mlp.c_fc",
            "hook_mlp_out added differs from hook_resid_post by i",
        ),
        ("open_clip", "mlp_out", "attn", "hook_mlp_out added .*mlp_out='attn'"),
        ("open_clip_custom_text", "attn_out", "attn", "hook_attn_out added .*attn_out='attn'"),
        ("timm", "ln2", "norm1", "hook_attn_out added differs from hook_resid_mid.*ln2='norm1'"),
        ("open_clip", "n_heads", 2, "attention computed from its parts differs .*n_heads=2"),
        ("timm", "scale", 1.0, "attention computed from its parts differs"),
        ("transformers_clip", "q", "self_attn.v_proj", "attention computed from its parts differs"),
    ],
)
def test_the_first_pass_with_hooks_refuses_a_false_description(family, field, value, message):
    case = build_case(family)
    false = changed(case.hooked.tower, field, value)
    model = HookedViT.from_module(case.bare, tower=false)
    for first_pass in (
        lambda: model(case.pixels, stop_at_layer=1),
        lambda: model.run_with_cache(case.pixels, names_filter="blocks.1.hook_resid_post"),
    ):
        with pytest.raises(UnsupportedTowerError, match=message):
            first_pass()
    assert torch.equal(model(case.pixels), case.hooked(case.pixels)), "without hooks all is as ever"


def test_it_is_checked_once_and_not_where_it_cannot_be_judged(open_clip_case: Case):
    bare, pixels = copy.deepcopy(open_clip_case.bare), open_clip_case.pixels
    model = HookedViT.from_module(bare)
    runs: list[int] = []
    handle = bare.visual.conv1.register_forward_hook(lambda *_: runs.append(1))
    try:
        model.train()
        model(pixels, stop_at_layer=1)
        assert len(runs) == 1, "dropout would hide or feign mistakes"
        model.eval()
        model(pixels, stop_at_layer=1)
        assert len(runs) == 4
        model(pixels, stop_at_layer=1)
        assert len(runs) == 5
    finally:
        handle.remove()


def test_check_finds_every_hook_of_every_family_fine(case: Case):
    table = case.hooked.check(case.pixels, layers=[1])
    names = [n for n in case.hooked.hook_dict if not n.startswith("blocks.") or ".1." in n[:9]]
    assert list(table.index) == names
    assert table["fine"].all(), table
    assert table.loc["blocks.1.hook_resid_mid", "added_off"] < 1e-6
    assert table["copied_off"].max() < 1e-4


def test_check_shows_what_is_wrong(open_clip_case: Case):
    case = build_case("open_clip_custom_text")
    model = HookedViT.from_module(case.bare, tower=changed(case.hooked.tower, "mlp_out", "mlp"))
    model._is_checked = True
    table = model.check(layers=[0])
    assert not table.loc["blocks.0.hook_resid_mid", "fine"]
    assert table.loc["blocks.0.hook_resid_mid", "copied_off"] > 0.003
    assert table.loc["blocks.0.hook_resid_post", "added_off"] > 0.003
    assert table.loc["blocks.0.hook_resid_pre", "fine"]
    model.train()
    with pytest.raises(ValueError, match=r"want eval\(\)"):
        model.check()
    model.eval()
