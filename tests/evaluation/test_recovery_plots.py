"""Plots of several SAEs side by side show what the tables say."""

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from vit_sae_plugin.evaluation import evaluate_embeddings
from vit_sae_plugin.report.recovery_plots import plot_frontier, plot_progressive_recovery


@pytest.fixture(scope="module")
def reports():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    saes = {f"topk k={k}": TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=k)) for k in (4, 2)}
    saes["one"] = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=8))
    return {name: evaluate_embeddings(sae, rows, k_list=[1, 4, 16]) for name, sae in saes.items()}


def test_frontier_joins_one_familys_points_by_sparsity(reports, tmp_path):
    figure = plot_frontier(reports, ["fvu", "cosine_similarity"])
    family, single = figure.axes[0].get_lines()
    assert family.get_label() == "topk"
    expected = [reports[f"topk k={k}"].embeddings.loc["image"] for k in (2, 4)]
    assert family.get_xdata().tolist() == [row["l0"] for row in expected]
    assert family.get_ydata().tolist() == [row["fvu"] for row in expected]
    assert len(single.get_xdata()) == 1
    assert figure.axes[1].get_title() == "cosine similarity"
    figure.savefig(tmp_path / "frontier.png")


def test_an_sae_for_any_k_is_a_curve(reports):
    figure = plot_frontier(reports, ["fvu"], curves=["one"])
    family, curve = figure.axes[0].get_lines()
    recovery = reports["one"].progressive_recovery.loc["image"]
    assert curve.get_label() == "one"
    assert curve.get_xdata().tolist() == sorted(recovery["l0"])
    assert curve.get_ydata().tolist() == recovery.sort_values("l0")["fvu"].to_list()
    assert len(family.get_xdata()) == 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["topk", "one"]


def test_members_of_a_family_share_a_colour_and_differ_in_dashes(reports):
    lines = plot_progressive_recovery(reports, ["fvu"]).axes[0].get_lines()
    colors, dashes = [line.get_color() for line in lines], [line.get_linestyle() for line in lines]
    assert colors[0] == colors[1] != colors[2]
    assert dashes[0] != dashes[1]


def test_progressive_recovery_has_a_line_for_each_sae(reports):
    figure = plot_progressive_recovery(reports, ["fvu"])
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.get_lines()] == list(reports)
    assert axes.get_lines()[0].get_xdata().tolist() == [1, 4, 16]
    assert plot_progressive_recovery(reports, ["fvu"], x="l0").axes[0].get_xlabel().endswith("(L0)")


def test_several_seeds_are_a_mean_and_a_range(reports):
    pair = [reports["topk k=4"], reports["topk k=2"]]
    figure = plot_progressive_recovery({"both": pair}, ["fvu"])
    tables = [report.progressive_recovery.loc["image", "fvu"] for report in pair]
    (axes,) = figure.axes
    mean = (tables[0] + tables[1]) / 2
    assert axes.get_lines()[0].get_ydata().tolist() == pytest.approx(mean.to_list())
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(table.max() for table in tables))
    assert band.min() == pytest.approx(min(table.min() for table in tables))
    points = plot_frontier({"both": pair}, ["fvu"]).axes[0]
    assert len(points.get_lines()[0].get_xdata()) == 1
    (bar,) = points.collections[0].get_segments()
    values = sorted(report.embeddings.loc["image", "fvu"] for report in pair)
    assert bar[:, 1].tolist() == pytest.approx(values)


def test_what_cannot_be_plotted_is_said(reports):
    with pytest.raises(ValueError, match="no 'text' rows"):
        plot_frontier(reports, modality="text")
    with pytest.raises(ValueError, match=r"no column \['beauty'\]"):
        plot_frontier(reports, ["beauty"])
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_frontier({})
