"""Images that are run once up to the SAE, from where any number of conditions go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.hooked_vit.hook_names import Reach, layer_of

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae.attached_sae import AttachedSAE

_CONDITION_VALUES = {"cpu": 2**22, "cuda": 2**26}
"""Numbers of the residual stream that run at a time, over all conditions together: on a CPU few
enough to stay in its cache."""


class UpperRun:
    """A batch of images at the SAE's place in the model.

    The blocks below the SAE run once, when this is made. Each `output` then runs only what lies
    above, and of that only what the output depends on. Where the SAE stands inside a block
    (``hook_attn_out``, ``hook_z``, …) that block runs again; where it stands before the blocks, or
    in the embedding, the whole model does.

    Args:
        attached: the SAE on its model.
        pixels: preprocessed images.

    Attributes:
        acts_btd: what the SAE reads, ``[batch, token, d_in]``.
        target_btd: what it reconstructs; the same, but for a transcoder.
    """

    def __init__(self, attached: AttachedSAE, pixels: Float[Tensor, "batch 3 height width"]):
        self.attached = attached
        model, source = attached.model, attached.source
        self._hook = attached.hook_name_out
        self._start, self._base_name = where_to_start(self._hook, model.cfg.n_layers)
        names = {source.hook_name, self._hook}
        if self._base_name is not None:
            names.add(self._base_name)
        kept: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            kept[hook.name] = value.clone()

        layers = range(model.cfg.n_layers + 1)
        stop = next((at for at in layers if all(map(Reach(None, at).reaches, names))), None)
        with torch.no_grad():
            model.run_with_hooks(
                pixels, stop_at_layer=stop, fwd_hooks=[(name, keep) for name in names]
            )
        self.acts_btd = source.select(model.cfg, kept[source.hook_name])
        self._value = kept[self._hook]
        self.target_btd = source.select(model.cfg, self._value)
        self._base = pixels if self._base_name is None else kept[self._base_name]

    @property
    def n_images(self) -> int:
        """Images in the batch."""
        return len(self._value)

    def output(self, acts_btd: Float[Tensor, "n token d_out"]) -> Float[Tensor, "n d_embed"]:
        """The model's output with these activations where the SAE writes.

        Args:
            acts_btd: for each image in order; or for all images under one condition after
                another: ``n`` is a multiple of the number of images.
        """
        times, rest = divmod(len(acts_btd), self.n_images)
        if rest:
            raise ValueError(
                f"acts_btd is for {len(acts_btd)} images; want a multiple of {self.n_images}"
            )
        model, cfg = self.attached.model, self.attached.model.cfg
        value = _repeated(self._value, times)
        new = self.attached.source.replace(cfg, value, acts_btd)
        if self._base_name == self._hook:
            return model(new, start_at_layer=self._start, output_only=True)

        def put(value: Tensor, hook: Any = None) -> Tensor:
            return new

        return model.run_with_hooks(
            _repeated(self._base, times),
            start_at_layer=self._start,
            output_only=True,
            fwd_hooks=[(self._hook, put)],
        )

    def outputs(
        self, conditions: Iterable[Float[Tensor, "batch token d_out"]]
    ) -> Iterator[Float[Tensor, "batch d_embed"]]:
        """The model's output under one condition after another, as many at a time as fit.

        Args:
            conditions: what stands where the SAE writes, for each image in order.
        """
        values = _CONDITION_VALUES["cuda" if self.target_btd.device.type == "cuda" else "cpu"]
        at_once = max(1, values // self.target_btd.numel())
        rest = iter(conditions)
        while some := list(islice(rest, at_once)):
            yield from self.output(torch.cat(some)).split(self.n_images)


def where_to_start(hook_name: str, n_layers: int) -> tuple[int | None, str | None]:
    """The block from which to go on, and the hook that holds the residual stream in front of it."""
    layer = layer_of(hook_name)
    if hook_name == "hook_full_embed":
        return 0, hook_name
    if hook_name.startswith("ln_final.") or hook_name == "hook_image_embed":
        return n_layers, f"blocks.{n_layers - 1}.hook_resid_post"
    if layer is None:
        return None, None
    if hook_name.endswith(".hook_resid_post"):
        return layer + 1, hook_name
    return layer, f"blocks.{layer}.hook_resid_pre"


def _repeated(value: Tensor, times: int) -> Tensor:
    return value if times == 1 else value.repeat(times, *(1,) * (value.ndim - 1))
