"""open_clip's names, and ``shapes-clip``, the small model that ships with this package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from vit_sae_plugin.hooked_vit.errors import ModelNameError
from vit_sae_plugin.hooked_vit.loaded_model import LoadedModel, near_models

SHAPES_CLIP = "shapes-clip"


def load_open_clip(
    model_name: str, *, pretrained: str | bool | None, cache_dir: str | None, **kwargs: Any
) -> LoadedModel:
    """A model of open_clip's factory, with its evaluation transform and tokenizer.

    Where the weights of a tag were trained with QuickGELU (all of OpenAI's), the model is built
    with it: open_clip itself only warns, and the activations would be wrong.

    Raises:
        ModelNameError: open_clip knows no such model, or no such weight tag.
        FileNotFoundError: the packaged model is not where it should be.
    """
    import open_clip

    path = _shapes_clip_folder() if model_name == SHAPES_CLIP else model_name
    if path.startswith(("local-dir:", "hf-hub:")):
        if pretrained is not None:
            raise ModelNameError(
                f"pretrained={pretrained!r} has no meaning for {model_name!r}, which comes with "
                "its weights. Leave it out."
            )
    else:
        _check_names(model_name, pretrained)
        tag = open_clip.get_pretrained_cfg(model_name, pretrained) if pretrained else {}
        if (tag or {}).get("quick_gelu"):
            kwargs.setdefault("force_quick_gelu", True)
    module, _, preprocess = open_clip.create_model_and_transforms(
        path, pretrained=pretrained or None, cache_dir=cache_dir, **kwargs
    )
    return LoadedModel(module, preprocess, open_clip.get_tokenizer(path, cache_dir=cache_dir))


def _check_names(model_name: str, pretrained: str | bool | None) -> None:
    import open_clip
    from open_clip.pretrained import list_pretrained_tags_by_model

    names = open_clip.list_models()
    if model_name not in names:
        raise ModelNameError(
            f"There is no open_clip model named {model_name!r}. Near names: "
            f"{near_models(model_name, [*names, SHAPES_CLIP])}. All: open_clip.list_models(). "
            f"Other kinds: {SHAPES_CLIP!r} (ships with this package), 'local-dir:folder', "
            "'hf-hub:org/name' (open_clip), 'hf:org/name' (transformers), 'timm:name'."
        )
    tags = list_pretrained_tags_by_model(model_name)
    if isinstance(pretrained, bool):
        raise ModelNameError(
            f"pretrained={pretrained!r}: open_clip models need a weight tag, or None for random "
            f"weights. Tags of {model_name}: {', '.join(tags) or 'none'}."
        )
    if (
        pretrained
        and pretrained.lower().replace("-", "_") not in tags
        and not Path(pretrained).is_file()
    ):
        raise ModelNameError(
            f"{model_name} has no weights tagged {pretrained!r} (and there is no such file). "
            f"Near tags: {near_models(pretrained, tags)}. All: {', '.join(tags) or 'none'}."
        )


def _shapes_clip_folder() -> str:
    folder = files("vit_sae_plugin") / "shapes_clip"
    if not (folder / "open_clip_config.json").is_file():
        raise FileNotFoundError(
            f"The packaged model {SHAPES_CLIP!r} is missing: {folder} has no "
            "open_clip_config.json. The installation is incomplete; install the package again."
        )
    return f"local-dir:{folder}"
