"""open_clip's names, and ``shapes-clip``, the small model that ships with this package."""

from __future__ import annotations

import json
import pickle
from importlib.resources import files
from pathlib import Path
from typing import Any

from vit_sae_plugin.hooked_vit.errors import ModelNameError, WeightsError
from vit_sae_plugin.hooked_vit.loading.loaded_model import LoadedModel, in_one_line
from vit_sae_plugin.near_names import near_names

SHAPES_CLIP = "shapes-clip"


def load_open_clip(
    model_name: str,
    *,
    pretrained: str | bool | None,
    cache_dir: str | None,
    trusted: bool,
    **kwargs: Any,
) -> LoadedModel:
    """A model of open_clip's factory, with its evaluation transform and tokenizer.

    Where the weights of a tag were trained with QuickGELU (all of OpenAI's), the model is built
    with it: open_clip itself only warns, and the activations would be wrong.

    Raises:
        ModelNameError: open_clip knows no such model or no such weight tag, or has several tags
            and none was chosen.
        WeightsError: the weights cannot be read, or fetched.
        FileNotFoundError: the packaged model is not where it should be.
    """
    import open_clip

    path = _shapes_clip_folder() if model_name == SHAPES_CLIP else model_name
    if path.startswith(("local-dir:", "hf-hub:")):
        if isinstance(pretrained, str):
            raise ModelNameError(
                f"pretrained is {pretrained!r}, but {model_name!r} comes with its weights; want "
                "True (or nothing), or False for random weights"
            )
        chosen: str | bool = pretrained is not False
    else:
        chosen = _choose_weights(model_name, pretrained)
        tag = open_clip.get_pretrained_cfg(model_name, chosen) if isinstance(chosen, str) else {}
        if (tag or {}).get("quick_gelu"):
            kwargs.setdefault("force_quick_gelu", True)
    if chosen is False:
        kwargs |= {"load_weights": False, "pretrained_text": False}
    else:
        # Else a folder without weights gives a random model and a line in a log.
        kwargs.setdefault("require_pretrained", True)
    if not trusted:
        kwargs["weights_only"] = True
    try:
        module, _, preprocess = open_clip.create_model_and_transforms(
            path,
            pretrained=chosen if isinstance(chosen, str) else None,
            cache_dir=cache_dir,
            **kwargs,
        )
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
        weights = "" if isinstance(chosen, bool) else f" with weights {chosen!r}"
        raise WeightsError(
            f"open_clip can't load {model_name!r}{weights}: {in_one_line(error)} (weights are "
            "downloaded once, which needs a network; pretrained= also takes a file, and "
            "pretrained=False gives random weights)"
        ) from error
    safe = {} if trusted else _no_code_from(path, cache_dir)
    tokenizer = open_clip.get_tokenizer(path, cache_dir=cache_dir, **safe)
    return LoadedModel(module, preprocess, tokenizer, pretrained=chosen)


def embedding_width(model_name: str) -> int | None:
    """How wide a model's embeddings are, by its name alone; None where only loading it would say.

    Args:
        model_name: as ``HookedViT.from_pretrained`` takes it.
    """
    if model_name == SHAPES_CLIP:
        folder = Path(_shapes_clip_folder().removeprefix("local-dir:"))
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    else:
        import open_clip

        config = open_clip.get_model_config(model_name)
    return None if config is None else int(config["embed_dim"])


def _choose_weights(model_name: str, pretrained: str | bool | None) -> str | bool:
    """A weight tag or file, or False: what was asked for, or else the weights that a name alone
    stands for (OpenAI's, or the only ones)."""
    import open_clip
    from open_clip.pretrained import list_pretrained_tags_by_model

    names = open_clip.list_models()
    if model_name not in names:
        near = near_names(model_name, [*names, SHAPES_CLIP], n=6, cutoff=0.4)
        raise ModelNameError(
            f"there is no open_clip model {model_name!r}; near names: "
            f"{', '.join(near) or 'none is similar'} (all: open_clip.list_models()); "
            f"other kinds: {SHAPES_CLIP!r} (ships with this package), 'local-dir:folder', "
            "'hf-hub:org/name' (open_clip), 'hf:org/name' (transformers), 'timm:name', or a folder "
            "that vit-sae adapt made"
        )
    if pretrained is False:
        return False
    tags = list_pretrained_tags_by_model(model_name)
    if not isinstance(pretrained, str):
        if "openai" in tags:
            return "openai"
        if len(tags) == 1:
            return tags[0]
        raise ModelNameError(
            f"pretrained is {pretrained!r}, and open_clip has {len(tags) or 'no'} weights for "
            f"{model_name!r}; want one of: {', '.join([*tags, 'a file'])}; or pretrained=False "
            "for random weights (--pretrained none)"
        )
    if pretrained.lower().replace("-", "_") not in tags and not Path(pretrained).is_file():
        near = near_names(pretrained, tags, n=6, cutoff=0.4)
        raise ModelNameError(
            f"{model_name} has no weights tagged {pretrained!r} (and there is no such file); "
            f"near tags: {', '.join(near) or 'none is similar'} "
            f"(all: {', '.join(tags) or 'none'}); for random weights pretrained=False"
        )
    return pretrained


def _no_code_from(path: str, cache_dir: str | None) -> dict[str, bool]:
    """Arguments that keep the tokenizer of a folder or repository from running its code: its
    configuration may say ``trust_remote_code`` to transformers."""
    import open_clip

    if path.startswith("hf-hub:"):
        repository = path.removeprefix("hf-hub:")
        config_path = open_clip.download_pretrained_from_hf(
            repository, filename="open_clip_config.json", cache_dir=cache_dir
        )
    elif path.startswith("local-dir:"):
        config_path = Path(path.removeprefix("local-dir:")) / "open_clip_config.json"
    else:
        return {}
    config = json.loads(Path(config_path).read_text(encoding="utf-8"))
    uses_transformers = config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name")
    return {"trust_remote_code": False} if uses_transformers else {}


def _shapes_clip_folder() -> str:
    folder = files("vit_sae_plugin") / "shapes_clip"
    if not (folder / "open_clip_config.json").is_file():
        raise FileNotFoundError(
            f"the packaged model {SHAPES_CLIP!r} is missing: {folder} has no "
            "open_clip_config.json; install the package again"
        )
    return f"local-dir:{folder}"
