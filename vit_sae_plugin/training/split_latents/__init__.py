"""Training of SAEs so wide that each of several processes holds a range of their latents."""

from .latent_split import LATENTS, LatentSplit
from .shared_checkpoints import SharedCheckpoints
from .split_checkpoint import load_split, save_split
from .split_trainer import SplitLatentsTrainer
from .splittable import check_splittable, split_training_sae
from .whole_sae import save_whole_sae

__all__ = [
    "LATENTS",
    "LatentSplit",
    "SharedCheckpoints",
    "SplitLatentsTrainer",
    "check_splittable",
    "load_split",
    "save_split",
    "save_whole_sae",
    "split_training_sae",
]
