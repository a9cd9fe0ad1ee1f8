"""The families of towers, as the tests of hooked models have them."""

from tests.hooked_vit.conftest import case, open_clip_case

__all__ = ["case", "open_clip_case"]
