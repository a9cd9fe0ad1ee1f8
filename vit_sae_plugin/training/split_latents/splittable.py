"""Which SAEs can be trained with their latents split over processes."""

from __future__ import annotations

from sae_lens.saes.sae import TrainingSAEConfig

from .latent_split import LatentSplit
from .split_matryoshka import SplitMatryoshkaTopKTrainingSAE
from .split_patch_sae import SplitPatchTrainingSAE
from .split_sae import SplitLatents
from .split_topk import SplitTopKTrainingSAE

_CLASSES: dict[str, type[SplitLatents]] = {
    "patchsae": SplitPatchTrainingSAE,
    "topk": SplitTopKTrainingSAE,
    "topk_ghost": SplitTopKTrainingSAE,
    "matryoshka_topk": SplitMatryoshkaTopKTrainingSAE,
}
_NORMALIZATIONS = ("none", "expected_average_only_in")
_DTYPES = ("float32", "bfloat16", "float16")


def check_splittable(cfg: TrainingSAEConfig, n_shards: int) -> None:
    """Raise a ValueError unless the SAE's latents can be shared by that many processes."""
    for name, value, wanted in (
        ("architecture", cfg.architecture(), tuple(_CLASSES)),
        ("normalize_activations", cfg.normalize_activations, _NORMALIZATIONS),
        ("dtype", cfg.dtype, _DTYPES),
    ):
        if value not in wanted:
            raise ValueError(
                f"sae.{name} is {value!r} with n_latent_shards={n_shards}; want one of "
                f"{', '.join(map(repr, wanted))}, or n_latent_shards=1"
            )
    if cfg.d_sae % n_shards:
        raise ValueError(
            f"sae.d_sae is {cfg.d_sae} with n_latent_shards={n_shards}; want a multiple of it: "
            "each process holds as many latents"
        )


def split_training_sae(
    cfg: TrainingSAEConfig, split: LatentSplit, device: str | None = None
) -> SplitLatents:
    """This process's part of a new SAE, with its part of the initial weights of the whole.

    Args:
        cfg: the whole SAE's, of which a copy is kept.
        split: which part.
        device: where to put it; None: where ``cfg`` says.

    Raises:
        ValueError: this SAE's latents can't be split.
    """
    check_splittable(cfg, split.n_shards)
    own_cfg = type(cfg).from_dict({**cfg.to_dict(), "device": device or cfg.device})
    return _CLASSES[cfg.architecture()](own_cfg, split)
