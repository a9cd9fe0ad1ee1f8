"""The readers as loaders of SAELens, so that ``SAE.from_pretrained`` finds these SAEs.

SAELens looks its loaders up by name, in two tables, for releases that its directory knows.
Importing ``vit_sae_plugin`` puts the readers into the tables under ``vit_sae_plugin.KIND``;
``register_release`` puts a repository into the directory. Without a release,
``SAE.from_pretrained(repository, file, converter=hub_loader(KIND))`` does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sae_lens.loading.pretrained_sae_loaders import (
    NAMED_PRETRAINED_SAE_CONFIG_GETTERS,
    NAMED_PRETRAINED_SAE_LOADERS,
    PretrainedSaeConfigHuggingfaceLoader,
    PretrainedSaeDiskLoader,
    PretrainedSaeHuggingfaceLoader,
)

from vit_sae_plugin.pretrained.formats import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def hub_loader(kind: str, **options: Any) -> PretrainedSaeHuggingfaceLoader:
    """A loader for ``SAE.from_pretrained(repository, file, converter=…)``.

    Args:
        kind: the kind of file.
        **options: what to state, as for ``load_pretrained_sae``.
    """

    def load(
        repo_id: str,
        folder_name: str,
        device: str = "cpu",
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], Tensor | None]:
        from vit_sae_plugin.pretrained.load import WHAT_IT_READS, options_of, read_pretrained

        overrides = dict(cfg_overrides or {})
        stated = {
            name: overrides[name]
            for name in (*options_of(kind), *WHAT_IT_READS)
            if name in overrides
        }
        inside = "" if folder_name in ("", ".") else f"/{folder_name}"
        config, weights = read_pretrained(
            kind,
            f"{repo_id}{inside}",
            device=device,
            dtype=overrides.get("dtype") or "float32",
            force_download=force_download,
            **{**stated, **options},
        )
        return config, weights, None

    return load


def disk_loader(kind: str, **options: Any) -> PretrainedSaeDiskLoader:
    """A loader for ``SAE.load_from_disk(path, converter=…)``.

    Args:
        kind: the kind of file.
        **options: what to state, as for ``load_pretrained_sae``.
    """

    def load(
        path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        from vit_sae_plugin.pretrained.load import read_pretrained

        dtype = (cfg_overrides or {}).get("dtype") or "float32"
        return read_pretrained(kind, path, device=device, dtype=dtype, **options)

    return load


def register_loaders() -> None:
    """Put the readers into SAELens's tables of loaders; calling it again is harmless."""
    for kind in KINDS:
        loader = hub_loader(kind)
        NAMED_PRETRAINED_SAE_LOADERS[f"vit_sae_plugin.{kind}"] = loader
        NAMED_PRETRAINED_SAE_CONFIG_GETTERS[f"vit_sae_plugin.{kind}"] = _config_getter(loader)


def register_release(
    release: str,
    kind: str,
    repo_id: str,
    saes: Mapping[str, str],
    *,
    model: str = "",
    **options: Any,
) -> None:
    """Let ``SAE.from_pretrained(release, sae_id)`` find the SAEs of a repository.

    Args:
        release: the name to give the repository.
        kind: the kind of its files.
        repo_id: ``ORG/REPO`` on the Hugging Face hub.
        saes: SAE's id → path of its file or folder in the repository.
        model: the model's name, for SAELens's list.
        **options: what to state for all of them, as for ``load_pretrained_sae``.

    Raises:
        ValueError: the kind is unknown, or SAELens has a release of this name already.
    """
    from sae_lens.loading.pretrained_saes_directory import (
        PretrainedSAELookup,
        get_pretrained_saes_directory,
    )

    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of SAE; want one of {', '.join(KINDS)}")
    directory = get_pretrained_saes_directory()
    loader_name = f"vit_sae_plugin.{kind}"
    if release in directory and directory[release].conversion_func != loader_name:
        raise ValueError(f"SAELens has a release {release!r} already; choose another name")
    directory[release] = PretrainedSAELookup(
        release=release,
        repo_id=repo_id,
        model=model,
        conversion_func=loader_name,
        saes_map=dict(saes),
        expected_var_explained={},
        expected_l0={},
        neuronpedia_id={},
        norm_scaling_factor={},
        config_overrides=dict(options),
    )


def _config_getter(
    loader: PretrainedSaeHuggingfaceLoader,
) -> PretrainedSaeConfigHuggingfaceLoader:
    def get_config(
        repo_id: str,
        folder_name: str,
        device: str = "cpu",
        force_download: bool = False,
        cfg_overrides: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return loader(repo_id, folder_name, device, force_download, cfg_overrides)[0]

    return get_config
