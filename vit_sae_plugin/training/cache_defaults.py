"""What a run's settings need not say when its rows come from a cache."""

from __future__ import annotations

from typing import Any

from vit_sae_plugin.activations.cache.cache_names import is_cache_text, plan_of
from vit_sae_plugin.model_loaders import full_name


def cache_defaults(
    dataset_path: str, model_name: str | None, model_kwargs: dict[str, Any], auto: str
) -> dict[str, Any]:
    """Settings that a cache decides: its model, with the weights it was made with, and its hook.

    Args:
        dataset_path: the run's; anything but a cache decides nothing.
        model_name, model_kwargs: the run's, as they were given.
        auto: what a model's name is that wasn't given.

    Returns:
        `model_name` and `hook_name`, for where they weren't given; and, where the run names the
        cache's model and says no more, `model_from_pretrained_kwargs`.
    """
    if not is_cache_text(dataset_path):
        return {}
    try:
        plan = plan_of(dataset_path)
    except (FileNotFoundError, ValueError):
        return {}  # settings can be read where the cache isn't; the run itself says what is wrong
    described = plan.model
    defaults: dict[str, Any] = {"model_name": described["model_name"]}
    if len(plan.hooks) == 1:
        defaults["hook_name"] = next(iter(plan.hooks))
    same = model_name == auto or (
        model_name is not None and full_name(model_name) == described["model_name"]
    )
    if same and not model_kwargs:
        defaults["model_from_pretrained_kwargs"] = dict(described["model_from_pretrained_kwargs"])
    return defaults
