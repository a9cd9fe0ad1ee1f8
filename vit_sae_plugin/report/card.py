"""An SAE's card: the ``README.md`` of its folder, as the Hugging Face hub shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.fingerprints import renew_in_manifest

if TYPE_CHECKING:
    import pandas as pd
    from sae_lens import SAE

    from vit_sae_plugin.evaluation import EvaluationReport

CARD_FILE = "README.md"
PICTURE_FILE = "card.png"
_RUNNER_CFG = "runner_cfg.json"
_MEASURES = {
    "explained_variance": "explained variance",
    "cosine_similarity": "cosine similarity",
    "mse": "mean squared error",
    "l0": "active latents a token (L0)",
    "dead_share": "latents that never fired",
    "dense_share": "latents on more than a tenth of the tokens",
}
_SPLICED = {
    "zero_shot_accuracy": "zero-shot accuracy with the reconstruction in place",
    "contrastive_loss": "contrastive loss with it in place",
    "output_cosine": "cosine of the output with the untouched one",
}
_TRAINING = (
    "model_name dataset_path training_tokens train_batch_size_tokens lr lr_scheduler_name "
    "lr_warm_up_steps lr_decay_steps optimizer clip_grad_norm dead_feature_window seed"
).split()
_NO_CHANGE = 1e-6
_LEFT_OUT = ("metadata", "device", "dtype", "architecture", "d_in", "d_sae")


@dataclass
class CardFigures:
    """What was measured, and how."""

    measured: EvaluationReport
    """Of the SAE."""
    control: EvaluationReport
    """Of the random control, on the same images."""
    command: str
    """What to type to measure it again."""
    control_k: int
    """Active latents of the control."""
    picture_rule: str | None = None
    """What ``card.png`` shows and how it was chosen; None: there is no picture."""


def write_card(folder: str | Path, sae: SAE[Any], figures: CardFigures | None = None) -> Path:
    """Write the card of an SAE into its folder; an older card is replaced.

    Where the folder has a manifest, the hashes of the card and its picture in it are renewed; those
    of all other files stay as they are.

    Args:
        folder: the SAE's folder. ``runner_cfg.json`` in it tells how it was trained.
        sae: the SAE.
        figures: what was measured. None: the card says that nothing was.

    Returns:
        The card's path.
    """
    folder = Path(folder)
    text = card_text(sae, folder, figures)
    write_text_atomically(folder / CARD_FILE, text)
    renew_in_manifest(folder, (CARD_FILE, PICTURE_FILE))
    return folder / CARD_FILE


def card_text(sae: SAE[Any], folder: Path, figures: CardFigures | None = None) -> str:
    """The card, in Markdown with the hub's front matter."""
    metadata = sae.cfg.metadata.to_dict()
    parts = [
        _front_matter(sae, metadata),
        _introduction(sae, metadata),
        _what_it_reads(metadata),
        _how_to_load(metadata),
        _training(sae, metadata, folder),
        _measured(figures),
        _picture(figures),
        _origin(metadata),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(sae: SAE[Any], metadata: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: saelens", "tags:"]
    tags = ["sparse-autoencoder", "interpretability", "vision", sae.cfg.architecture()]
    lines += [f"- {tag}" for tag in tags]
    if metadata.get("licence"):
        lines.append(f"license: {json.dumps(str(metadata['licence']).lower())}")
    base = _hub_name(metadata.get("model_name"))
    if base:
        lines.append(f"base_model: {base}")
    return "\n".join([*lines, "---"])


def _hub_name(model_name: Any) -> str | None:
    for prefix in ("hf:", "hf-hub:"):
        if isinstance(model_name, str) and model_name.startswith(prefix):
            return model_name.removeprefix(prefix)
    return None


def _introduction(sae: SAE[Any], metadata: Mapping[str, Any]) -> str:
    where = metadata.get("hook_name") or "a hook that its file doesn't name"
    model = metadata.get("model_name") or "a model that its file doesn't name"
    k = getattr(sae.cfg, "k", None)
    kept = f", {k} of them kept for each row" if k else ""
    return (
        f"# A sparse autoencoder of {model}\n\n"
        f"`{sae.cfg.architecture()}`, {sae.cfg.d_in:,} → {sae.cfg.d_sae:,} latents{kept}, "
        f"reading `{where}`."
    )


def _what_it_reads(metadata: Mapping[str, Any]) -> str:
    statistics = metadata.get("input_statistics")
    scaling = "rows as they are"
    if statistics:
        scaling = (
            f"rows centred by a mean and multiplied by {statistics['scale']:.6g} "
            f"({statistics['modality']} statistics, in `cfg.json`)"
        )
    elif metadata.get("input_scaling"):
        scaling = f"rows multiplied by {metadata['input_scaling']:.6g}"
    grid = metadata.get("grid")
    loaded_with = metadata.get("model_from_pretrained_kwargs")
    rows = {
        "model": metadata.get("model_name"),
        **({"loaded with": loaded_with} if loaded_with else {}),
        "hook": metadata.get("hook_name"),
        "tokens": metadata.get("token_kind"),
        "tokens before the patches": metadata.get("n_prefix_tokens"),
        "grid of patches": f"{grid[0]} × {grid[1]}" if grid else None,
        "input": scaling,
        "preprocessing": metadata.get("preprocessing"),
    }
    return "## What it reads\n\n" + _table(rows, "not stated")


def _how_to_load(metadata: Mapping[str, Any]) -> str:
    lines = [
        "import vit_sae_plugin  # registers its architectures with SAELens",
        "from sae_lens import SAE",
        "",
        'sae = SAE.load_from_disk("FOLDER")  # or SAE.from_pretrained("ORG/REPO", "SAE_ID")',
    ]
    if metadata.get("model_name"):
        kwargs = metadata.get("model_from_pretrained_kwargs") or {}
        given = "".join(f", {name}={value!r}" for name, value in kwargs.items())
        call = f"HookedViT.from_pretrained({metadata['model_name']!r}{given})"
        lines += [
            "",
            "from vit_sae_plugin import AttachedSAE, HookedViT",
            "",
            f"attached = AttachedSAE({call}, sae)",
            "latents = attached.latents(pixels)  # [batch, token, latent]",
        ]
    return "## How to use it\n\n```python\n" + "\n".join(lines) + "\n```"


def _training(sae: SAE[Any], metadata: Mapping[str, Any], folder: Path) -> str:
    settings: dict[str, Any] = {}
    runner = folder / _RUNNER_CFG
    if runner.is_file():
        config = json.loads(runner.read_text(encoding="utf-8"))
        settings |= {name: config[name] for name in _TRAINING if config.get(name) is not None}
        settings |= {
            f"sae.{name}": value
            for name, value in (config.get("sae") or {}).items()
            if name not in _LEFT_OUT and value is not None
        }
    else:
        settings |= metadata.get("training_architecture_details") or {}
    settings |= metadata.get("source_settings") or {}
    shown = {
        name: _without_folders(value)
        for name, value in settings.items()
        if value not in (None, "", [], {}) and name not in _LEFT_OUT
    }
    if not shown:
        return "## Training\n\nIts folder doesn't say how it was trained."
    return "## Training\n\n" + _table(shown)


def _without_folders(value: Any) -> Any:
    """A path of the machine it was trained on, cut to its last part."""
    if isinstance(value, str) and value.startswith(("/", "~", "\\")):
        return Path(value).name
    return value


def _measured(figures: CardFigures | None) -> str:
    if figures is None:
        return (
            "## Measured\n\nNothing yet. `vit-sae card FOLDER --images SOURCE` measures it beside "
            "a random control, and writes this card anew."
        )
    settings = figures.measured.settings
    text = [
        "## Measured",
        f"On {settings['n_images']:,} images of {settings['images']}, by",
        f"```shell\n{figures.command}\n```",
        _comparison(figures),
        f"The random control has as many latents, in random directions, of which the "
        f"{figures.control_k} largest are kept for each token, and knows only the rows' mean and "
        "spread: what is better than it, the SAE's directions do.",
    ]
    if "splicing" in figures.measured.tables and not _reaches_output(figures.measured):
        text.append(
            "Putting reconstructions in place of these tokens, or zeros, leaves the model's output "
            "as it is: at this hook nothing reads them any more."
        )
    text += [f"*{note}*" for note in figures.measured.notes]
    return "\n\n".join(text)


def _comparison(figures: CardFigures) -> str:
    rows = [("", "this SAE", "random control")]
    ours, theirs = (
        report.tables["reconstruction"].loc["all"] for report in (figures.measured, figures.control)
    )
    for name, words in _MEASURES.items():
        if name in ours.index:
            rows.append((words, _number(ours[name]), _number(theirs[name])))
    if "splicing" in figures.measured.tables and _reaches_output(figures.measured):
        rows += _spliced(figures.measured.tables["splicing"], figures.control.tables["splicing"])
    width = [" | ".join(row) for row in rows]
    return "\n".join([f"| {width[0]} |", "|---|---:|---:|", *(f"| {line} |" for line in width[1:])])


def _spliced(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[tuple[str, str, str]]:
    rows = []
    for column, words in _SPLICED.items():
        if column not in ours.columns:
            continue
        values = [ours.at["original", column], *(t.at["spliced", column] for t in (ours, theirs))]
        if all(math.isfinite(value) for value in values):
            untouched = "" if column == "output_cosine" else f" (untouched: {_number(values[0])})"
            rows.append((words + untouched, _number(values[1]), _number(values[2])))
    return rows


def _reaches_output(report: EvaluationReport) -> bool:
    """Whether the model's output depends on the tokens that the SAE reads."""
    table = report.tables["splicing"]
    if "output_cosine" not in table.columns:
        return True
    return not table.at["zeros", "output_cosine"] > 1 - _NO_CHANGE


def _picture(figures: CardFigures | None) -> str:
    if figures is None or figures.picture_rule is None:
        return ""
    return f"## Latents\n\n![Latents and the images they fire on]({PICTURE_FILE})\n\n" + (
        figures.picture_rule
    )


def _origin(metadata: Mapping[str, Any]) -> str:
    rows = {
        "converted from": metadata.get("source"),
        "of": metadata.get("source_project"),
        "at": metadata.get("source_url"),
        "SHA-256 of that file": metadata.get("source_sha256"),
        "licence": metadata.get("licence") or "not stated",
        "SAELens": metadata.get("sae_lens_version"),
    }
    return "## Source and licence\n\n" + _table(rows)


def _table(rows: Mapping[str, Any], missing: str | None = None) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in rows.items():
        shown = missing if value is None else _cell(value)
        if shown is not None:
            lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}={item!r}" for name, item in value.items())
    text = _number(value) if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _number(value: Any) -> str:
    number = float(value)
    if not math.isfinite(number):
        return "–"
    return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"
