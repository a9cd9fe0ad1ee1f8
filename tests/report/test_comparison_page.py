"""The page of two models: what it says comes from the comparison, and names can't break it."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.analysis.remapping.compare import compare_models
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.report.comparison_page import (
    comparison_facts,
    paper_table,
    write_comparison_page,
)
from vit_sae_plugin.report.comparison_pictures import GROUPS, choose_images, compare_images
from vit_sae_plugin.report.page_pieces import html_table

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def comparison():
    plain = tiny_hooked_vit()
    module = copy.deepcopy(plain.bare_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for block in module.visual.transformer.resblocks:
            block.mlp.c_proj.bias += torch.randn(32)
    adapted = HookedViT.from_module(
        module, preprocess=plain.preprocess, tokenizer=plain.tokenizer, model_name="adapted"
    )
    images = Pictures(16, class_names=("<b>cat</b>", "dog & fox"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a random SAE describes nothing
        return compare_models(
            plain, adapted, tiny_sae(plain, HOOK), images, templates=["{}"], threshold=3.0
        )


def test_the_page_shows_every_section_and_is_one_file(comparison, tmp_path):
    page = write_comparison_page(tmp_path / "page.html", comparison, n_images=2).read_text()
    assert page.index("Does the SAE still describe") < page.index("Which latents rise and fall")
    assert "describes the adapted model less well" in page
    assert page.count('<article class="compared">') == 2
    assert page.count("<svg") == 4
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "<b>cat</b>" not in page
    for fact in comparison_facts(comparison).values():
        assert f"<dd>{fact}</dd>" in page


def test_images_of_one_model_alone_come_first(comparison):
    effects = comparison.effects
    plain, adapted = effects.own("plain"), effects.own("adapted")
    chosen = choose_images(comparison, 8)
    assert len({int(effects.label[at]) for at in chosen}) == len(chosen)
    gained = adapted & ~plain
    if gained.any():
        assert gained[chosen[0]]


def test_groups_hold_the_latents_above_the_threshold_in_both_or_one(comparison):
    at = choose_images(comparison, 1)[0]
    (shown,) = compare_images(comparison, [at], n_latents=3)
    picture = comparison.images.record(int(comparison.effects.index[at])).load()
    pair = comparison.pair
    pixels = pair.plain.model.preprocess(picture)[None]
    with torch.no_grad():
        on = [
            (one.latents(pixels)[0] > comparison.levels.threshold).any(0).numpy()
            for one in (pair.plain, pair.adapted)
        ]
    members = dict(zip(GROUPS, (on[0] & on[1], on[0] & ~on[1], on[1] & ~on[0]), strict=True))
    for group, member in members.items():
        latents = [latent for latent, _ in shown.latents[group]]
        assert shown.n_latents[group] == member.sum()
        assert len(latents) == min(3, member.sum())
        assert member[latents].all()
        assert all(len(p) == (2 if group == GROUPS[0] else 1) for _, p in shown.latents[group])


def test_tables_name_their_rows():
    frame = pd.DataFrame({"a_b": [1234.0, np.nan]}, index=pd.Index(["<x>", "y"], name="of_what"))
    table = html_table(frame)
    assert "<th>of what</th><th>a b</th>" in table
    assert "<th>&lt;x&gt;</th><td>1,234</td>" in table
    assert "<td>–</td>" in table
    summary = pd.DataFrame(
        {
            "high": [1.25],
            "high_to_low": [2.0],
            "low_to_high": [3.0],
            "low_to_high_by_chance": [0.5],
            "accuracy_plain": [0.5],
            "accuracy_adapted": [0.75],
            "delta": [0.25],
            "delta_low": [-0.01],
            "delta_high": [0.4],
            "n_images": [40],
        }
    )
    row = paper_table(summary).iloc[0].tolist()
    assert row == ["1.2", "2.0", "3.0", "0.5", "50.0%", "75.0%", "+25.0 (-1.0 to +40.0)", "40"]
