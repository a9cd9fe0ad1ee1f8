"""Which names a cache holds, and what a wrong name is answered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.hooked_vit.conftest import Case, build_case
from vit_sae_plugin.hooked_vit import HookNameError
from vit_sae_plugin.hooked_vit.hook_names import select_names

WANTED = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_post"]


@pytest.mark.parametrize(
    "names_filter",
    [
        WANTED,
        tuple(WANTED),
        set(WANTED),
        dict.fromkeys(WANTED),
        iter(WANTED),
        lambda name: name in WANTED,
    ],
)
def test_the_cache_holds_exactly_the_names_asked_for(open_clip_case: Case, names_filter):
    cache = open_clip_case.hooked.run_with_cache(open_clip_case.pixels, names_filter=names_filter)[
        1
    ]
    assert list(cache) == WANTED


def test_one_name_and_all_names(open_clip_case: Case):
    model, pixels = open_clip_case.hooked, open_clip_case.pixels
    assert list(model.run_with_cache(pixels, names_filter=WANTED[0])[1]) == WANTED[:1]
    assert list(model.run_with_cache(pixels, names_filter=lambda _: True)[1]) == list(
        model.hook_dict
    )
    assert list(model.run_with_cache(pixels, names_filter=[])[1]) == []


def test_a_wrong_name_lists_near_names(open_clip_case: Case):
    model, pixels = open_clip_case.hooked, open_clip_case.pixels
    near = r"no hook 'blocks.1.hook_resid_pots'.*near names: blocks.1.hook_resid_post"
    with pytest.raises(HookNameError, match=near):
        model.run_with_cache(pixels, names_filter="blocks.1.hook_resid_pots")
    with pytest.raises(HookNameError, match=near):
        model.run_with_hooks(pixels, fwd_hooks=[("blocks.1.hook_resid_pots", print)])
    with pytest.raises(HookNameError, match=near):
        model.add_hook("blocks.1.hook_resid_pots", print)
    with (
        pytest.raises(HookNameError, match=near),
        model.hooks(bwd_hooks=[("blocks.1.hook_resid_pots", print)]),
    ):
        pass
    with pytest.raises(HookNameError, match=near):
        model.hook_width("blocks.1.hook_resid_pots")
    with pytest.raises(HookNameError, match="near names: hook_resid"):
        select_names("resid", ["hook_resid", "other"])
    with pytest.raises(TypeError, match="names_filter is 7; want"):
        model.run_with_cache(pixels, names_filter=7)
    assert torch.equal(model(pixels), model(pixels))


@given(st.sets(st.sampled_from(sorted(build_case("open_clip").hooked.hook_dict))))
def test_any_set_of_names_comes_in_firing_order(names: set[str]):
    existing = list(build_case("open_clip").hooked.hook_dict)
    assert select_names(names, existing) == [name for name in existing if name in names]


def test_a_dict_instead_of_a_cache_and_no_batch_axis(open_clip_case: Case):
    model, pixels = open_clip_case.hooked, open_clip_case.pixels[:1]
    cache = model.run_with_cache(
        pixels, names_filter=WANTED, return_cache_object=False, remove_batch_dim=True
    )[1]
    assert type(cache) is dict
    assert cache["blocks.1.hook_resid_post"].shape == (17, 32)
    whole = model.run_with_cache(pixels, names_filter=WANTED, remove_batch_dim=True)[1]
    assert not whole.has_batch_dim


def test_a_part_of_the_tokens(open_clip_case: Case):
    cache = open_clip_case.hooked.run_with_cache(
        open_clip_case.pixels, names_filter=WANTED, pos_slice=0
    )[1]
    assert cache["blocks.1.hook_resid_post"].shape == (2, 1, 32)
    assert cache["blocks.0.attn.hook_z"].shape == (2, 1, 4, 8)


def test_hook_width_is_the_last_axis_with_heads_flattened(case: Case):
    cache = case.hooked.run_with_cache(case.pixels)[1]
    for name, value in cache.items():
        if name.endswith(("hook_scale", "hook_attn_scores", "hook_pattern")):
            with pytest.raises(ValueError, match="want vectors of one width"):
                case.hooked.hook_width(name)
        else:
            width = value.flatten(2).shape[-1] if value.ndim == 4 else value.shape[-1]
            assert case.hooked.hook_width(name) == width, name
