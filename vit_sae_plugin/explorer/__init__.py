"""A live page on one SAE: its latents in any picture, and what changes when they are changed.

`open_explorer` makes what all visitors share, a `Visit` is one browser tab's work on it, and both
are plain Python. Only `page` and `server` know Gradio, which is in the extra ``app``.
"""

from __future__ import annotations

from vit_sae_plugin.explorer.explorer import Explorer, open_explorer
from vit_sae_plugin.explorer.page_state import PageState
from vit_sae_plugin.explorer.visit import Visit

__all__ = ["Explorer", "PageState", "Visit", "open_explorer"]
