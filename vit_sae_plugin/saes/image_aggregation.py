"""From patch latents to image latents, by a rule that is saved with the SAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from vit_sae_plugin.aggregation import AggregationRule, ImageAggregation, make_aggregation

COUNT_RULE: dict[str, Any] = {"name": "count", "threshold": 0.2}
"""PatchSAE's: how many of the image's tokens are above 0.2 (Eq. 3)."""

MEAN_RULE: dict[str, Any] = {"name": "mean"}
"""The mean over the image's tokens; of a pooled embedding, the latents themselves."""

_UNKNOWN_PREFIX_TOKENS = 1  # for checking a rule before the model is known


class ImageAggregationMixin:
    """Gives an inference SAE ``encode_image``, under ``cfg.aggregation``."""

    cfg: Any

    def image_aggregation(self) -> ImageAggregation:
        """The module that the saved rule names, for the tokens this SAE reads."""
        return make_aggregation(
            plain_rule(self.cfg.aggregation, n_prefix_tokens=_prefix_tokens(self.cfg.metadata))
        )

    def encode_image(
        self,
        x: Float[Tensor, "batch token d_in"],
        token_mask: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch d_sae"]:
        """Image latents: the patch latents of ``encode``, aggregated over each image's tokens.

        Args:
            x: what the SAE reads, all tokens of each image.
            token_mask: True where a token is valid. None: all are.

        Raises:
            ValueError: ``x`` is not ``[batch, token, d_in]``; the rule asks for the class token
                and this SAE reads none.
        """
        latents = self.encode(x)  # type: ignore[attr-defined]
        return self.image_aggregation()(latents, token_mask)


def plain_rule(rule: AggregationRule, n_prefix_tokens: int | None = None) -> dict[str, Any]:
    """A rule as a mapping that can be written as JSON.

    Args:
        rule: a name, a mapping, or a module.
        n_prefix_tokens: tokens in front of the patches, where the rule doesn't say so itself.

    Raises:
        ValueError: the name is unknown or its settings are wrong.
    """
    if isinstance(rule, ImageAggregation):
        return rule.config()
    mapping: dict[str, Any] = dict(rule) if isinstance(rule, Mapping) else {"name": rule}
    needs_prefix = mapping.get("name") == "cls" or mapping.get("tokens", "all") != "all"
    if needs_prefix and n_prefix_tokens is not None:
        mapping.setdefault("n_prefix_tokens", n_prefix_tokens)
    return mapping


def check_rule(rule: AggregationRule) -> dict[str, Any]:
    """The rule as a mapping, once it is known that it can be built.

    Raises:
        ValueError: the name is unknown or its settings are wrong.
    """
    make_aggregation(plain_rule(rule, n_prefix_tokens=_UNKNOWN_PREFIX_TOKENS))
    return plain_rule(rule)


def _prefix_tokens(metadata: Any) -> int | None:
    kind = metadata.token_kind
    if kind == "patches":
        return 0
    return 1 if kind == "cls" else metadata.n_prefix_tokens
