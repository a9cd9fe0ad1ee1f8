"""Training by several processes, as ``torchrun`` starts them."""

from vit_sae_plugin.training.ranks.process_group import RankLostError, Ranks

__all__ = ["RankLostError", "Ranks"]
