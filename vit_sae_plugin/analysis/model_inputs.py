"""From pictures to what an SAE reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from vit_sae_plugin.activations import EmbeddingStatistics
from vit_sae_plugin.activations.activation_source import ActivationSource

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT


def preprocess_of(model: HookedViT) -> Callable[[Image.Image], Tensor]:
    """The model's preprocessing: from a picture to pixels ``[3, height, width]``.

    Raises:
        ValueError: it has none.
    """
    if model.preprocess is None:
        raise ValueError(
            f"{model.cfg.model_name} has no preprocessing, so pictures can't be given to it; pass "
            "preprocess= to HookedViT.from_module"
        )
    return model.preprocess


def sae_inputs(model: HookedViT, sae: SAE[Any], source: ActivationSource, pixels: Tensor) -> Tensor:
    """What the SAE reads of some images, on the SAE's device.

    Standardised by the ``input_statistics`` in its metadata, if there are any.

    Raises:
        ValueError: the hook's width is not the SAE's; the statistics are not those of images.
    """
    acts_btd = source.activations(model, pixels)
    if acts_btd.shape[-1] != sae.cfg.d_in:
        raise ValueError(
            f"{source.hook_name} is {acts_btd.shape[-1]} wide, but the SAE reads {sae.cfg.d_in}; "
            "use the model and hook it was trained on"
        )
    acts_btd = acts_btd.to(sae.W_dec.device, sae.W_dec.dtype)
    statistics = sae.cfg.metadata.input_statistics
    if statistics is not None:
        if statistics["modality"] != "image":
            raise ValueError(
                f"this SAE reads standardised {statistics['modality']} embeddings, and its "
                "metadata hold no mean and scale of images"
            )
        acts_btd = EmbeddingStatistics.from_metadata(statistics).standardize(acts_btd)
    return acts_btd if source.input_scaling is None else acts_btd * source.input_scaling
