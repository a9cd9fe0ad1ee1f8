"""A sweep's page: which members lie on the frontier, which share a line, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.small_run import sae_config, small_config
from vit_sae_plugin.report.sweep_page import on_frontier, write_sweep_page
from vit_sae_plugin.report.sweep_plots import families, fidelity, plot_sweep_frontier
from vit_sae_plugin.training import SweepResults
from vit_sae_plugin.training.sweep.sweep_folder import note_diverged, write_sweep


def _results(folder: Path, points: dict[str, tuple[dict, float, float]]) -> SweepResults:
    """Members with these settings, whose last lines say this L0 and explained variance."""
    members = {}
    for name, (changes, l0, explained) in points.items():
        sae = sae_config(changes.pop("architecture", "topk"), **changes.pop("sae", {}))
        members[name] = small_config(None, sae=sae, model_name="shapes-clip", **changes)
        (folder / name).mkdir()
        lines = [
            {"step": step, "n_tokens": 128 * step, "l0": l0 if step > 18 else 90.0}
            | {"explained_variance": explained if step > 18 else 0.1, "n_dead_latents": 24}
            for step in range(1, 21)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / "metrics.jsonl").write_text(text)
        (folder / name / "sae").mkdir()
        (folder / name / "sae" / "cfg.json").write_text("{}")
    write_sweep(folder, members)
    return SweepResults.load(folder)


@pytest.fixture
def results(tmp_path) -> SweepResults:
    return _results(
        tmp_path,
        {
            "few": ({"sae": {"k": 4}}, 4, 0.6),
            "many": ({"sae": {"k": 16}}, 16, 0.9),
            "slow": ({"sae": {"k": 16}, "lr": 1e-4}, 16, 0.8),
            "flat": ({"architecture": "patchsae"}, 40, 0.85),
            "deeper": ({"sae": {"k": 4}, "hook_name": "blocks.1.hook_resid_post"}, 5, 0.5),
        },
    )


def test_measures_are_means_over_the_last_tenth(results) -> None:
    few = results.members[0]
    expected = {"l0": 4, "explained_variance": 0.6, "n_dead_latents": 24, "dead_share": 0.25}
    assert few.measures() == pytest.approx(expected)
    assert fidelity(few) == pytest.approx((4, 0.4))
    few.metrics["held_out_l0"] = [np.nan] * 19 + [7.0]
    few.metrics["held_out_explained_variance"] = [np.nan] * 19 + [0.5]
    assert fidelity(few) == (7, 0.5)


def test_the_frontier_holds_those_that_no_other_at_the_hook_beats(results) -> None:
    # slow is beaten by many at the same L0, flat by many at a smaller one; deeper stands alone
    assert on_frontier(results) == {
        "few": True,
        "many": True,
        "slow": False,
        "flat": False,
        "deeper": True,
    }


def test_a_line_joins_members_that_differ_in_sparsity_alone(results) -> None:
    lines = families(results)
    assert [[member.name for member in line.members] for line in lines] == [
        ["few", "many"],
        ["slow"],
        ["flat"],
        ["deeper"],
    ]
    assert [line.label for line in lines] == [
        "topk at blocks.0, lr=0.002",
        "topk at blocks.0, lr=0.0001",
        "patchsae at blocks.0",
        "topk at blocks.1",
    ]
    assert [lines[0].label_of(member) for member in lines[0].members] == ["k=4", "k=16"]
    (axes,) = plot_sweep_frontier({"blocks.0": lines[:1]}).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[4, 0.4], [16, 0.1]])


def test_the_page_says_who_was_stopped_and_names_cannot_break_it(results) -> None:
    slow = results.folder / "slow"
    (slow / "sae" / "cfg.json").unlink()
    note_diverged(slow, 3, "the loss is <nan>")
    page = write_sweep_page(SweepResults.load(results.folder), title="a <sweep>")
    text = page.read_text(encoding="utf-8")
    assert page == results.folder / "index.html"
    assert (results.folder / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    assert "slow was stopped, the others went on: the loss is &lt;nan&gt;" in text
    assert "<h1>a &lt;sweep&gt;</h1>" in text
    assert "4 of 5" in text
    assert "many ●" in text
    assert "slow ●" not in text
    assert text.count("<svg") == 2 + 3  # a frontier for each hook, three curves


def test_a_sweep_that_has_hardly_begun_has_a_page(tmp_path) -> None:
    cfg = small_config(None, model_name="shapes-clip")
    write_sweep(tmp_path, {"one": cfg})
    text = write_sweep_page(SweepResults.load(tmp_path)).read_text(encoding="utf-8")
    assert "0 of 1" in text
    assert f"vit-sae train --resume {tmp_path}" in text
