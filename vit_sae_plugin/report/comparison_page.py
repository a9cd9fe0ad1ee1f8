"""The page of a comparison: does the SAE still describe the model, what its latents do, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from vit_sae_plugin.analysis.remapping.comparison import ModelComparison
from vit_sae_plugin.report.comparison_pictures import (
    choose_images,
    compare_images,
    compared_image_html,
)
from vit_sae_plugin.report.comparison_plots import (
    plot_changes,
    plot_classes,
    plot_effects,
    plot_overlap,
)
from vit_sae_plugin.report.page_pieces import html_table, inline_svg
from vit_sae_plugin.report.study_page import Section, write_study_page

_QUALITY = ["l0", "explained_variance", "cosine_similarity", "mse", "dead_share"]
_OVERLAP_K = 10


def write_comparison_page(
    path: str | Path, comparison: ModelComparison, *, title: str | None = None, n_images: int = 6
) -> Path:
    """Write a comparison as one self-contained HTML page.

    Args:
        path: of the file.
        comparison: made by ``compare_models``.
        title: of the page.
        n_images: images to show side by side.

    Returns:
        The page.
    """
    settings = comparison.settings
    return write_study_page(
        path,
        title=title or "Before and after adaptation",
        lead=[comparison_lead(comparison)],
        facts=comparison_facts(comparison),
        sections=comparison_sections(comparison, n_images=n_images),
        warnings=comparison.notes,
        commands=[f"{name}: {settings[name]}" for name in settings if "sha256" not in name],
    )


def comparison_lead(comparison: ModelComparison) -> str:
    """One paragraph that says what was compared, and how."""
    row = comparison.summary().iloc[0]
    return (
        f"Two models see the same {row['n_images']:,.0f} images of {row['n_classes']:.0f} classes, "
        "and one SAE, trained on the plain model, reads both. Which latents of a class stay high, "
        "rise or fall was found on other images than those scored. Intervals are 95 %, by "
        "bootstrap."
    )


def comparison_facts(comparison: ModelComparison) -> dict[str, str]:
    """The figures that count."""
    row = comparison.summary().iloc[0]
    effects = comparison.effects.table()
    before, after = row["accuracy_plain"], row["accuracy_adapted"]
    changes = (row["high"], row["low_to_high"], row["high_to_low"])
    facts = {
        "accuracy, plain → adapted": f"{before:.1%} → {after:.1%}",
        "a class's latents: stay, rise, fall": " / ".join(f"{one:.1f}" for one in changes),
    }
    for name, key in (
        ("of the gain, risen latents held", ("adapted", "held", "risen", True)),
        ("of it, only latents used before", ("adapted", "only", "used", True)),
    ):
        share = effects.loc[key, "share_of_gain"]
        facts[name] = "–" if np.isnan(share) else f"{share:.0%}"
    return facts


def comparison_sections(comparison: ModelComparison, *, n_images: int = 6) -> list[Section]:
    """The sections of a page about a comparison, the SAE's quality first."""
    quality = comparison.quality[[name for name in _QUALITY if name in comparison.quality]]
    overlap = comparison.overlap()
    effects = comparison.effects.table()
    most_changed = np.argsort(
        -(comparison.changes_by_class()[["rises", "falls"]].sum(axis=1).to_numpy()), kind="stable"
    )
    low, high = comparison.low, comparison.high
    return [
        Section(
            "Does the SAE still describe the adapted model?",
            "It was trained on the plain one. Where its explained variance falls, its latents tell "
            "less of what the adapted model does.",
            f'<div class="tables">{html_table(quality.dropna(how="all"))}</div>',
        ),
        Section(
            "Which latents rise and fall",
            f"A latent is high in a class if any token is above {_short(comparison)} in {high:.0%} "
            f"of the class's images or more, and low below {low:.0%}. Left: where each "
            "latent was and where it went. Right: how many change in each class, beside how many "
            "seem to where nothing but the images differ.",
            inline_svg(plot_changes(comparison))
            + "<details open><summary>The classes that change most</summary>"
            + inline_svg(plot_classes(comparison, [int(at) for at in most_changed[:12]]))
            + "</details>",
        ),
        Section(
            "How far a class's first latents are the same",
            "Latents ordered by how many tokens of a class's mean image they are active in. Two "
            "halves of the plain model's own images say how much of a difference is only that of "
            "images.",
            inline_svg(plot_overlap(overlap)),
        ),
        Section(
            "How much of the gain hangs on which latents",
            "Latents are exchanged between the models, image by image and token by token; what the "
            "SAE doesn't describe stays as it is. Grey: the same done to as many random latents "
            "that are active in as many of the class's images.",
            inline_svg(plot_effects(effects)) + f"<details><summary>The numbers</summary>"
            f'<div class="tables">{html_table(_readable_effects(effects))}</div></details>',
        ),
        Section(
            "How much of the change the SAE describes",
            "Squared length of the change of the stream, and its parts. Span: what lies in that of "
            "a token's active latents, beside that of as many random ones. Reconstruction and "
            "error need not be at right angles, so the two don't add up to 1.",
            f'<div class="tables">{html_table(_readable_shares(comparison.stream_change()))}</div>',
        ),
        *_images_section(comparison, n_images),
        Section(
            "In the form of the paper's tables",
            "Latents of a mean class, and accuracy.",
            f'<div class="tables">{html_table(paper_table(comparison.summary()))}</div>',
        ),
    ]


def _images_section(comparison: ModelComparison, n_images: int) -> list[Section]:
    if n_images < 1 or not comparison.pair.plain.layout.has("patch"):
        return []
    chosen = compare_images(comparison, choose_images(comparison, n_images))
    pictures = "".join(compared_image_html(one, comparison) for one in chosen)
    return [
        Section(
            "Image by image",
            "The latents active in both models (where: plain, then adapted), and those of one of "
            "them alone; first those that are strong here and seldom active elsewhere. Below its "
            "number, the class in which a latent is active most. First come images that only the "
            "adapted model names.",
            pictures,
        )
    ]


def paper_table(summary: pd.DataFrame) -> pd.DataFrame:
    """``ModelComparison.summary()``, of one comparison or several, for people to read."""
    counts = {
        "high": "stays high",
        "high_to_low": "high → low",
        "low_to_high": "low → high",
        "low_to_high_by_chance": "by chance",
    }
    table = summary[list(counts)].map(lambda value: f"{value:.1f}").rename(columns=counts)
    for model in ("plain", "adapted"):
        table[f"{model} accuracy"] = [f"{value:.1%}" for value in summary[f"accuracy_{model}"]]
    table["Δ"] = [
        f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        for mean, low, high in summary[["delta", "delta_low", "delta_high"]].to_numpy(float)
    ]
    table["images"] = [f"{value:,.0f}" for value in summary["n_images"]]
    return table


def _short(comparison: ModelComparison) -> str:
    return f"{comparison.levels.threshold:.3g}"


def _readable_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """Percent with intervals in one cell."""
    return pd.DataFrame(
        {
            "accuracy": _cells(effects, "accuracy", "low", "high"),
            "share of the gain": _cells(effects, "share_of_gain", "share_low", "share_high"),
            "minus random": _cells(effects, "minus_random", "minus_low", "minus_high"),
        },
        index=effects.index,
    )


def _readable_shares(shares: pd.DataFrame) -> pd.DataFrame:
    names = {
        "described": "the reconstruction's change",
        "error": "the error's change",
        "span": "in the span of active latents",
        "random_span": "in the span of as many random ones",
    }
    cells = _cells(shares, "share", "low", "high")
    return pd.DataFrame({"share of the change": cells}, index=shares.index).rename(index=names)


def _cells(table: pd.DataFrame, mean: str, low: str, high: str) -> list[str]:
    return [
        "–" if np.isnan(m) else f"{100 * m:.1f} % ({100 * a:.1f} to {100 * b:.1f})"
        for m, a, b in table[[mean, low, high]].to_numpy(float)
    ]
