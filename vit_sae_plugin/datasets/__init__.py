"""Image sources, and the loader that turns them into batches of pixels."""

from vit_sae_plugin.datasets.image_decoding import DecodingLimits, UnreadableImageError
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    NoReadableImagesError,
)

__all__ = [
    "DecodingLimits",
    "ImageRecord",
    "ImageSource",
    "NoReadableImagesError",
    "UnreadableImageError",
]
