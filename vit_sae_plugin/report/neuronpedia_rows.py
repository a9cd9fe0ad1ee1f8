"""The rows of Neuronpedia's bulk import, as far as a vision SAE can fill them.

Field names are those of its tables (``SourceRelease``, ``Model``, ``SourceSet``, ``Source``,
``Neuron``, ``Activation``, ``Explanation``). What an SAE of images has nothing for is left at the
table's own default, an empty list or null; ``NO_PLACE`` says what of an atlas is left behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NO_PLACE = """\
# What is not in these files

Compatible rows, pictures stay here. Neuronpedia's tables are made for text: a feature fires on
tokens that are words. Of an atlas of images they can hold the following, and no more.

- **Pictures**: nowhere. An activation row names its image (`dataIndex`: the id in the data set
  `dataSource`), and whoever shows the row needs that data set.
- **Patches** are pseudo-tokens: `tokens` holds `"row,column"` (and `class`, `register`, `prompt`
  for other tokens), so a patch map can be drawn again from `tokens` and `values`.
- **Classes**: counts and shares by class, label entropy and label deviation have no field.
- **Co-activation** is a Jaccard index over images; `correlated_features_pearson` wants a Pearson
  correlation over tokens, so it is empty. `correlated_neurons_*` likewise.
- **Logits**: {logits}
- **`logits_hist_*` and `decoder_weights_dist`** are about a vocabulary of output tokens: empty.
- **Activation intervals** (`binMin`, `binMax`, `binContains`): each feature has only the images
  that activate it most, so all are null.
- **Histogram**: `freq_hist_data_*` are the atlas's bins, an eighth of a decade wide; a bar's value
  is its bin's middle on the logarithmic scale. Bins at either end without a token are left out.
- **Which tokens the SAE reads, the grid, the input's mean and scale, preprocessing**: in `notes`
  of `source.jsonl`, as JSON.
"""
NO_LOGITS = (
    "`pos_str` and `neg_str` are empty: from this hook no direct path leads to class names, and a "
    "latent's effect on them depends on the image."
)
CLASS_LOGITS = (
    "`pos_str` and `neg_str` are the class names whose text embeddings have the largest and the "
    "smallest cosine with the decoder row, and `pos_values` and `neg_values` these cosines times "
    "the model's logit scale."
)


@dataclass(frozen=True)
class ExportNames:
    """Whose rows these are."""

    model_id: str
    source_id: str
    source_set: str
    release: str
    creator_id: str
    creator_name: str
    created_at: str


def feature_row(
    names: ExportNames,
    latent: int,
    *,
    hook_name: str,
    vector: Sequence[float],
    max_activation: float,
    token_frequency: float,
    similar: Mapping[str, list[Any]],
    aligned: Mapping[str, list[Any]],
    histogram: tuple[list[int], list[float]],
    logits: Mapping[str, list[Any]],
) -> dict[str, Any]:
    """A row of ``Neuron``."""
    return {
        "modelId": names.model_id,
        "layer": names.source_id,
        "index": str(latent),
        "creatorId": names.creator_id,
        "createdAt": names.created_at,
        "maxActApprox": max_activation,
        "hasVector": True,
        "vector": list(vector),
        "vectorLabel": None,
        "vectorDefaultSteerStrength": max_activation,
        "hookName": hook_name,
        "topkCosSimIndices": similar["indices"],
        "topkCosSimValues": similar["values"],
        "neuron_alignment_indices": aligned["indices"],
        "neuron_alignment_values": aligned["values"],
        "neuron_alignment_l1": aligned["l1"],
        **{name: [] for name in _OF_TEXT},
        "neg_str": logits.get("neg_str", []),
        "neg_values": logits.get("neg_values", []),
        "pos_str": logits.get("pos_str", []),
        "pos_values": logits.get("pos_values", []),
        "frac_nonzero": token_frequency,
        "freq_hist_data_bar_heights": histogram[0],
        "freq_hist_data_bar_values": histogram[1],
        "sourceSetName": names.source_set,
    }


_OF_TEXT = (
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
)


def activation_row(
    names: ExportNames,
    latent: int,
    rank: int,
    *,
    tokens: Sequence[str],
    values: Sequence[float],
    data_source: str,
    image_id: str,
) -> dict[str, Any]:
    """A row of ``Activation``: one image, its patches in the place of words."""
    highest = max(range(len(values)), key=values.__getitem__)
    return {
        "id": f"{names.model_id}-{names.source_id}-{latent}-{rank}",
        "tokens": list(tokens),
        "index": str(latent),
        "layer": names.source_id,
        "modelId": names.model_id,
        "maxValue": values[highest],
        "maxValueTokenIndex": highest,
        "minValue": min(values),
        "values": list(values),
        "creatorId": names.creator_id,
        "dataSource": data_source,
        "dataIndex": image_id,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "createdAt": names.created_at,
        "lossValues": [],
        "logitContributions": None,
        "binMin": None,
        "binMax": None,
        "binContains": None,
        "qualifyingTokenIndex": highest,
        "zIndices": None,
        "zValues": None,
    }


def explanation_row(
    names: ExportNames, latent: int, description: str, *, type_name: str, notes: str
) -> dict[str, Any]:
    """A row of ``Explanation``."""
    return {
        "id": f"{names.model_id}-{names.source_id}-{latent}-name",
        "modelId": names.model_id,
        "layer": names.source_id,
        "index": str(latent),
        "description": description,
        "authorId": names.creator_id,
        "typeName": type_name,
        "explanationModelName": None,
        "notes": notes,
        "createdAt": names.created_at,
    }


def table_rows(
    names: ExportNames,
    *,
    n_layers: int,
    data_name: str,
    n_images: int,
    n_tokens: int,
    description: str,
    notes: str,
) -> dict[str, dict[str, Any]]:
    """File name → the only row of ``release.jsonl``, ``model.jsonl`` and so on."""
    common = {"creatorId": names.creator_id, "createdAt": names.created_at}
    return {
        "release.jsonl": common
        | {
            "name": names.release,
            "description": description,
            "descriptionShort": description,
            "creatorName": names.creator_name,
            "creatorNameShort": names.creator_name,
            "visibility": "PRIVATE",
            "isNewUi": False,
            "featured": False,
            "urls": [],
        },
        "model.jsonl": common
        | {
            "id": names.model_id,
            "instruct": False,
            "displayName": names.model_id,
            "displayNameShort": names.model_id,
            "visibility": "PRIVATE",
            "inferenceEnabled": False,
            "layers": n_layers,
            "owner": "",
            "updatedAt": names.created_at,
        },
        "sourceset.jsonl": common
        | {
            "modelId": names.model_id,
            "name": names.source_set,
            "description": description,
            "creatorName": names.creator_name,
            "releaseName": names.release,
            "hasDashboards": True,
            "visibility": "PRIVATE",
            "urls": [],
        },
        "source.jsonl": common
        | {
            "id": names.source_id,
            "modelId": names.model_id,
            "setName": names.source_set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "visibility": "PRIVATE",
            "dataset": data_name,
            "num_prompts": n_images,
            "num_tokens_in_prompt": n_tokens,
            "notes": notes,
        },
    }
