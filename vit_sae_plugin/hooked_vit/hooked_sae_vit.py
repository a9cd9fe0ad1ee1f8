"""``HookedSAEViT``: SAEs spliced into a vision transformer, as SAELens does in a language model."""

from __future__ import annotations

from typing import Any, Self

from sae_lens import SAE, HookedSAETransformer
from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.hooked_vit import HookedViT

HOOKS_SPLIT_BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result")


class HookedSAEViT(HookedViT):
    """A ``HookedViT`` in which SAEs can take the place of hook points.

    The methods are those of SAELens's ``HookedSAETransformer`` (``add_sae``, ``reset_saes``,
    ``saes``, ``run_with_saes``, ``run_with_cache_with_saes``, ``run_with_hooks_with_saes``) and
    mean the same, ``use_error_term`` included. The hook is the one in ``sae.cfg.metadata``; the
    SAE's own hooks appear below it, as ``blocks.10.hook_resid_post.hook_sae_acts_post``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acts_to_saes: dict[str, Any] = {}
        self._transcoder_output_hooks: dict[str, str] = {}

    @classmethod
    def from_hooked_vit(cls, model: HookedViT) -> Self:
        """The same wrapped model, with hook points of its own."""
        return cls(
            model.bare_model,
            model.tower,
            preprocess=model.preprocess,
            tokenizer=model.tokenizer,
            model_name=model.model_name,
            from_pretrained_kwargs=model.from_pretrained_kwargs,
        )

    def add_sae(
        self,
        sae: SAE[Any],
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> None:
        """Splice an SAE in at its hook, until ``reset_saes``.

        Args:
            sae: its ``cfg.metadata.hook_name`` says where. Where that hook is split by head and
                the SAE was trained on flattened heads, they are flattened for it.
            use_error_term: add what the SAE fails to reconstruct, so that the model's output stays
                the same until a latent is edited (None: as ``sae.use_error_term`` says).
            exclude_special_tokens: must be False: images have no token ids.

        Raises:
            HookNameError: there is no such hook.
            ValueError: the SAE's ``d_in`` is not the hook's width.
        """
        if exclude_special_tokens is not False:
            raise ValueError(
                f"exclude_special_tokens={exclude_special_tokens!r} is for texts; images have no "
                "token ids. To leave tokens as they are, use run_with_hooks and edit the others."
            )
        metadata = sae.cfg.metadata
        hook_in, hook_out = metadata.hook_name, metadata.hook_name_out or metadata.hook_name
        for name in (hook_in, hook_out):
            if name not in self._acts_to_saes:
                self._check_hook_names([name])
        width = self.hook_width(hook_in)
        if sae.cfg.d_in != width:
            raise ValueError(
                f"The SAE has d_in={sae.cfg.d_in}, but {hook_in!r} of {self.model_name!r} is "
                f"{width} wide. Use the model that the SAE was trained on."
            )
        HookedSAETransformer.add_sae(self, sae, use_error_term)  # type: ignore[arg-type]
        short = hook_out.rsplit(".", 1)[-1]
        if short in HOOKS_SPLIT_BY_HEAD and sae.cfg.reshape_activations == "none":
            parent = self.get_submodule(hook_out.rpartition(".")[0])
            setattr(parent, short, FlattenedHeads(getattr(parent, short)))
            self.setup()

    def hook_width(self, hook_name: str) -> int:
        """As in ``HookedViT``, also for a hook whose place an SAE has taken."""
        if hook_name in self._acts_to_saes:
            return self._acts_to_saes[hook_name].sae.cfg.d_in
        return super().hook_width(hook_name)

    acts_to_saes = HookedSAETransformer.acts_to_saes
    _reset_sae = HookedSAETransformer._reset_sae
    reset_saes = HookedSAETransformer.reset_saes
    saes = HookedSAETransformer.saes
    run_with_saes = HookedSAETransformer.run_with_saes
    run_with_cache_with_saes = HookedSAETransformer.run_with_cache_with_saes
    run_with_hooks_with_saes = HookedSAETransformer.run_with_hooks_with_saes


class FlattenedHeads(nn.Module):
    """A spliced SAE that sees ``[..., head, d_head]`` as ``[..., head * d_head]``.

    As SAELens's own wrapper does, it keeps what it wraps out of its sub-modules and shows the
    SAE's hook points as its own, so that their names stay short.
    """

    def __init__(self, spliced: nn.Module) -> None:
        super().__init__()
        self.__dict__["_spliced"] = spliced
        for name, hook in spliced.named_children():
            setattr(self, name, hook)

    def forward(self, acts: Tensor) -> Tensor:
        return self.__dict__["_spliced"](acts.flatten(-2)).view_as(acts)
