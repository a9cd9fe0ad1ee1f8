"""Bias: find the concepts that differ between groups, prove that they decide, suppress them."""

from vit_sae_plugin.concepts.bias.bias_study import bias_study
from vit_sae_plugin.concepts.bias.group_differences import GroupMoments, group_differences
from vit_sae_plugin.concepts.bias.groups import Groups

__all__ = ["GroupMoments", "Groups", "bias_study", "group_differences"]
