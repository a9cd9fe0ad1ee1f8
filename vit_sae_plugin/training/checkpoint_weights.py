"""The weights in a checkpoint: to go on training with, and for whoever opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activation_scaler import ActivationWhitening
from safetensors.torch import load_file, save_file

TRAINING_WEIGHTS_FILE = "training_weights.safetensors"


def save_weights(
    sae: TrainingSAE[Any], whitening: ActivationWhitening | None, folder: Path
) -> None:
    """Write an SAE in training so that ``SAE.load_from_disk`` opens it, and ``load_weights``.

    Whoever opens a checkpoint has the rows and not their whitening, which is too large for the
    metadata. So the SAE that opens is then the one that would be saved if training ended here,
    with the whitening in its weights, and the weights in training lie beside it.
    """
    if whitening is None:
        sae.save_model(folder)
        return
    whitened_copy(sae, whitening).save_inference_model(folder)
    weights = sae.state_dict()
    sae.process_state_dict_for_saving(weights)
    save_file(weights, folder / TRAINING_WEIGHTS_FILE)


def load_weights(sae: TrainingSAE[Any], checkpoint: Path) -> None:
    """Copy a checkpoint's weights into the SAE's own parameters.

    They stay where they are in memory: with parameters that lie at other alignments, as those of a
    mapped file do, matrix products differ in the last bit on some processors.
    """
    if not (checkpoint / TRAINING_WEIGHTS_FILE).is_file():
        sae.load_weights_from_checkpoint(checkpoint)
        return
    weights = load_file(checkpoint / TRAINING_WEIGHTS_FILE)
    sae.process_state_dict_for_loading(weights)
    sae.load_state_dict(weights)


def whitened_copy(sae: TrainingSAE[Any], whitening: ActivationWhitening) -> TrainingSAE[Any]:
    """A copy of an SAE with the whitening of its input in its weights, as a finished one has it."""
    cfg = type(sae.cfg).from_dict({**sae.cfg.to_dict(), "device": "meta"})
    copy = type(sae)(cfg)  # without memory: the weights follow
    weights = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    copy.to(sae.cfg.device)
    copy.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
    return copy
