"""From images to rows: which tokens, from which hook, in which order."""

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.token_selection import TOKEN_KINDS, TokenKind, token_positions

__all__ = ["TOKEN_KINDS", "ActivationSource", "TokenKind", "token_positions"]
