"""``hf:…`` names: transformers models, from the Hub or from a folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vit_sae_plugin.hooked_vit.errors import ModelNameError, UnsafeSettingError
from vit_sae_plugin.hooked_vit.loading.loaded_model import LoadedModel, in_one_line
from vit_sae_plugin.near_names import near_names


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


def load_transformers(
    name: str,
    *,
    pretrained: str | bool | None,
    cache_dir: str | None,
    trusted: bool,
    **kwargs: Any,
) -> LoadedModel:
    """A transformers model with its image processor, and its tokenizer if it has a text tower.

    Args:
        name: a name on the Hub, or a folder.
        pretrained: load weights (None: yes); False builds the same model with random ones.
        cache_dir: where downloads are kept.
        trusted: False: run no code that comes with the model.
        kwargs: go to ``AutoModel.from_pretrained``.

    Raises:
        ModelNameError: neither a folder nor a model on the Hub (or the Hub cannot be reached).
        UnsafeSettingError: not trusted, and the model's configuration names code to be fetched.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    if isinstance(pretrained, str):
        raise ModelNameError(
            f"pretrained is {pretrained!r}, but the weights of 'hf:{name}' are part of the name "
            "(revision= chooses a version); want True (or nothing), or False for random weights"
        )
    no_code: dict[str, Any] = {} if trusted else {"trust_remote_code": False}
    try:
        if not trusted:
            config = AutoConfig.from_pretrained(name, cache_dir=cache_dir, **no_code, **kwargs)
            _refuse_fetched_kernels(name, config)
        if pretrained is False:
            config = AutoConfig.from_pretrained(name, cache_dir=cache_dir, **no_code, **kwargs)
            module = AutoModel.from_config(config, **no_code)
        else:
            only = {} if trusted else {"weights_only": True}
            module = AutoModel.from_pretrained(
                name, cache_dir=cache_dir, **no_code, **only, **kwargs
            )
    except OSError as error:
        folder = Path(name).expanduser()
        beside = [path.name for path in folder.parent.glob("*") if (path / "config.json").exists()]
        likely = ", ".join(near_names(folder.name, beside, n=6, cutoff=0.4)) or "none is similar"
        near = f" (models beside it: {likely})" if beside else ""
        raise ModelNameError(
            f"transformers can't load {name!r}: {str(error).splitlines()[0]}{near}; want "
            "'hf:org/name' as on the Hugging Face Hub, or 'hf:' and a folder made by "
            "save_pretrained"
        ) from error
    if module.config.model_type == "vit_mae":
        # Else it leaves out most patches of every image, at random.
        module.config.mask_ratio = 0.0
    revision = {key: value for key, value in kwargs.items() if key in ("revision", "token")}
    revision |= no_code
    try:
        processor = AutoImageProcessor.from_pretrained(name, cache_dir=cache_dir, **revision)
        preprocess = ImageProcessorTransform(processor)
    except (OSError, ValueError) as error:
        preprocess = None
        warnings.warn(
            f"'hf:{name}' has no image processor ({in_one_line(error, 120)}), so "
            "model.preprocess is None; set it before using images.",
            stacklevel=4,
        )
    text_config = getattr(module.config, "text_config", None)
    tokenizer = None
    if text_config is not None:
        try:
            found: Any = AutoTokenizer.from_pretrained(name, cache_dir=cache_dir, **revision)
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
                f"'hf:{name}' has no tokenizer ({in_one_line(error, 120)}), so model.tokenizer "
                "is None; encode_text then needs token ids.",
                stacklevel=4,
            )
    return LoadedModel(
        module,
        preprocess,
        tokenizer,
        image_size=_size_after(preprocess),
        pretrained=pretrained is not False,
    )


def _refuse_fetched_kernels(name: str, config: Any) -> None:
    """Attention implementations named as ``org/name`` are code on the Hub."""
    for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        implementation = getattr(part, "_attn_implementation", None)
        if isinstance(implementation, str) and "/" in implementation:
            raise UnsafeSettingError(
                f"the configuration of 'hf:{name}' wants the attention {implementation!r}, which "
                "is code to be fetched; want 'eager' or 'sdpa'. If you trust it, load the model by "
                f"hand with HookedViT.from_pretrained('hf:{name}') and pass it as the model"
            )


def _size_after(preprocess: ImageProcessorTransform | None) -> tuple[int, int] | None:
    """Height and width of preprocessed images: DINOv2's are smaller than its config says."""
    if preprocess is None:
        return None
    height, width = preprocess(Image.new("RGB", (640, 480))).shape[-2:]
    return height, width
