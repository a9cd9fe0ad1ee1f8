"""From patches to images, classes and data sets: the levels of description of PatchSAE.

Lim et al., ICLR 2025 (arXiv 2412.05276), Eq. 3 and 4.
"""

from vit_sae_plugin.aggregation.class_aggregation import ClassAggregation, ClassMean, ClassSum
from vit_sae_plugin.aggregation.image_aggregation import ImageAggregation
from vit_sae_plugin.aggregation.registry import (
    AggregationRule,
    aggregation_names,
    make_aggregation,
    make_class_aggregation,
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
    "ClassAggregation",
    "ClassMean",
    "ClassSum",
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
    "make_class_aggregation",
    "register_aggregation",
]
