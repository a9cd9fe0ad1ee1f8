"""From patches to images, by rules with names (PatchSAE: Lim et al., ICLR 2025, Eq. 3).

From images on to classes and data sets: ``LatentAtlas``.
"""

from vit_sae_plugin.aggregation.image_aggregation import ImageAggregation
from vit_sae_plugin.aggregation.registry import (
    AggregationRule,
    aggregation_names,
    make_aggregation,
    register_aggregation,
)
from vit_sae_plugin.aggregation.token_reductions import (
    ClassToken,
    CountAboveThreshold,
    KthLargest,
    MaxOverTokens,
    MeanOverTokens,
    ShareAboveThreshold,
    SumOverTokens,
)

__all__ = [
    "AggregationRule",
    "ClassToken",
    "CountAboveThreshold",
    "ImageAggregation",
    "KthLargest",
    "MaxOverTokens",
    "MeanOverTokens",
    "ShareAboveThreshold",
    "SumOverTokens",
    "aggregation_names",
    "make_aggregation",
    "register_aggregation",
]
