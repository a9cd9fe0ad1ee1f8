"""``hf:…`` names: transformers models, from the Hub or from a folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vit_sae_plugin.hooked_vit.errors import ModelNameError
from vit_sae_plugin.hooked_vit.loaded_model import LoadedModel, near_models


class ImageProcessorTransform:
    """A transformers image processor as a function from image to pixels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels ``[3, height, width]`` of a PIL image."""
        return self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    def __repr__(self) -> str:
        settings = self.processor.to_dict()
        return f"{type(self.processor).__name__}({dict(sorted(settings.items()))})"


class TextTokenizer:
    """A transformers tokenizer as a function from texts to what the text tower takes."""

    def __init__(self, tokenizer: Any, max_length: int, pad_to_max_length: bool) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_to_max_length = pad_to_max_length

    def __call__(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Token ids (and a mask, where the tokenizer gives one) ``[text, token]``."""
        return self.tokenizer(
            list(texts),
            padding="max_length" if self.pad_to_max_length else True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )


def load_transformers(name: str, *, cache_dir: str | None, **kwargs: Any) -> LoadedModel:
    """A transformers model with its image processor, and its tokenizer if it has a text tower.

    Args:
        name: a name on the Hub, or a folder.
        cache_dir: where downloads are kept.
        kwargs: go to ``AutoModel.from_pretrained``.

    Raises:
        ModelNameError: neither a folder nor a model on the Hub (or the Hub cannot be reached).
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    try:
        module = AutoModel.from_pretrained(name, cache_dir=cache_dir, **kwargs)
    except OSError as error:
        folder = Path(name).expanduser()
        beside = [path.name for path in folder.parent.glob("*") if (path / "config.json").exists()]
        near = f" Models beside it: {near_models(folder.name, beside)}." if beside else ""
        raise ModelNameError(
            f"transformers cannot load {name!r}: {str(error).splitlines()[0]}{near} "
            "Give 'hf:org/name' as on the Hugging Face Hub, or 'hf:' and a folder made by "
            "save_pretrained."
        ) from error
    revision = {key: kwargs[key] for key in ("revision", "token") if key in kwargs}
    try:
        processor = AutoImageProcessor.from_pretrained(name, cache_dir=cache_dir, **revision)
        preprocess = ImageProcessorTransform(processor)
    except (OSError, ValueError) as error:
        preprocess = None
        warnings.warn(
            f"'hf:{name}' has no image processor ({str(error).splitlines()[0]}), so "
            "model.preprocess is None; set it before using images.",
            stacklevel=4,
        )
    text_config = getattr(module.config, "text_config", None)
    tokenizer = None
    if text_config is not None:
        try:
            found = AutoTokenizer.from_pretrained(name, cache_dir=cache_dir, **revision)
            if len(found) <= len(set(found.all_special_tokens)):
                # Without files of its own, transformers makes one that knows no words.
                raise ValueError("its vocabulary is empty")
            tokenizer = TextTokenizer(
                found,
                max_length=text_config.max_position_embeddings,
                # SigLIP was trained on texts padded to full length, without a mask.
                pad_to_max_length="siglip" in module.config.model_type,
            )
        except (OSError, ValueError) as error:
            warnings.warn(
                f"'hf:{name}' has no tokenizer ({str(error).splitlines()[0]}), so model.tokenizer "
                "is None; encode_text then needs token ids.",
                stacklevel=4,
            )
    return LoadedModel(module, preprocess, tokenizer, image_size=_size_after(preprocess))


def _size_after(preprocess: ImageProcessorTransform | None) -> tuple[int, int] | None:
    """Height and width of preprocessed images: DINOv2's are smaller than its config says."""
    if preprocess is None:
        return None
    height, width = preprocess(Image.new("RGB", (640, 480))).shape[-2:]
    return height, width
