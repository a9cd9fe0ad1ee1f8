"""``HookedSAEViT``: SAEs spliced into a vision transformer, as SAELens does in a language model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from sae_lens import SAE, HookedSAETransformer
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_sae_plugin.attached_sae.attached_sae import AttachedSAE
from vit_sae_plugin.attached_sae.interventions import AnyEdit, EditsInOrder, LatentEdit
from vit_sae_plugin.hooked_vit.hooked_vit import HookedViT


class HookedSAEViT(HookedViT):
    """A ``HookedViT`` in which SAEs can take the place of hook points.

    The methods are those of SAELens's ``HookedSAETransformer`` (``add_sae``, ``reset_saes``,
    ``saes``, ``run_with_saes``, ``run_with_cache_with_saes``, ``run_with_hooks_with_saes``) and
    mean the same, ``use_error_term`` included. What an SAE reads is what its metadata say: hook,
    tokens, centring and scaling. The tokens that it doesn't read stay as they are. Its own hooks
    appear below the hook, as ``blocks.10.hook_resid_post.hook_sae_acts_post``, and hold the
    tokens that it reads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acts_to_saes: dict[str, SplicedSAE] = {}
        self._transcoder_output_hooks: dict[str, str] = {}

    @classmethod
    def from_hooked_vit(cls, model: HookedViT) -> Self:
        """The same wrapped model, with hook points of its own."""
        same = cls(
            model.bare_model,
            model.tower,
            preprocess=model.preprocess,
            tokenizer=model.tokenizer,
            model_name=model.model_name,
            from_pretrained_kwargs=model.from_pretrained_kwargs,
        )
        same.has_pretrained_weights = model.has_pretrained_weights
        return same

    def add_sae(
        self,
        sae: SAE[Any],
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> None:
        """Splice an SAE in at its hook, until ``reset_saes``.

        Args:
            sae: its ``cfg.metadata`` say where, and what it reads.
            use_error_term: add what the SAE fails to reconstruct, so that the model's output stays
                the same until a latent is edited (None: as ``sae.use_error_term`` says).
            exclude_special_tokens: must be False: images have no token ids.

        Raises:
            HookNameError: there is no such hook.
            ValueError: the SAE names no hook, or its width is not the hook's.
        """
        if exclude_special_tokens is not False:
            raise ValueError(
                f"exclude_special_tokens is {exclude_special_tokens!r}; want False: images have no "
                "token ids. What an SAE reads is its token_kind"
            )
        attached = AttachedSAE(self, sae)
        hook_in, hook_out = attached.source.hook_name, attached.hook_name_out
        spliced = SplicedSAE(
            attached, sae.use_error_term if use_error_term is None else use_error_term
        )
        if attached.is_transcoder:
            if hook_in not in self.hook_dict:
                raise ValueError(
                    f"an SAE stands at {hook_in}, which this transcoder reads; call "
                    f"reset_saes({hook_in!r}) first"
                )
            point: Any = self.hook_dict[hook_in]
            point.add_hook(spliced.capture_input, is_permanent=True)
            self._transcoder_output_hooks[hook_in] = hook_out
        self._acts_to_saes[hook_in] = spliced
        parent = self.get_submodule(hook_out.rpartition(".")[0])
        setattr(parent, hook_out.rpartition(".")[2], spliced)
        self.setup()

    def hook_width(self, hook_name: str) -> int:
        """As in ``HookedViT``, also for a hook whose place an SAE has taken."""
        for spliced in self._acts_to_saes.values():
            if hook_name == spliced.attached.hook_name_out:
                return spliced.attached.rows.d_out
        return super().hook_width(hook_name)

    @contextmanager
    def edited(
        self,
        edits: Mapping[SAE[Any], AnyEdit | None],
        *,
        use_error_term: bool = True,
    ) -> Iterator[Self]:
        """Within it, SAEs are spliced in and their latents changed.

            with model.edited({sae: remove([625])}):
                logits = model(pixels)

        Args:
            edits: SAE → ``remove([3], "patches")`` and the like, a function of latents
                ``[batch, token, d_sae]``, or None to leave them as they are.
            use_error_term: add what the SAEs fail to reconstruct, so that only the edits count.

        Raises:
            ValueError: a latent or a token isn't there, or an SAE doesn't fit.
        """
        attached = {sae: AttachedSAE(self, sae) for sae in edits}
        hooks: list[tuple[Any, Any]] = []
        for sae, edit in edits.items():
            on = attached[sae]
            if isinstance(edit, (LatentEdit, EditsInOrder)):
                edit = edit.on(on.layout, on.d_sae)
            if edit is not None:
                name = f"{on.hook_name_out}.hook_sae_acts_post"
                hooks.append((name, lambda latents, hook, edit=edit: edit(latents)))
        with self.saes(list(edits), use_error_term=use_error_term), self.hooks(fwd_hooks=hooks):
            yield self

    acts_to_saes = HookedSAETransformer.acts_to_saes
    _reset_sae = HookedSAETransformer._reset_sae
    reset_saes = HookedSAETransformer.reset_saes
    saes = HookedSAETransformer.saes
    run_with_saes = HookedSAETransformer.run_with_saes
    run_with_cache_with_saes = HookedSAETransformer.run_with_cache_with_saes
    run_with_hooks_with_saes = HookedSAETransformer.run_with_hooks_with_saes


class SplicedSAE(nn.Module):
    """An SAE in the place of a hook point.

    As SAELens's own wrapper does, it keeps what it wraps out of its sub-modules and shows the
    SAE's hook points as its own, so that their names stay short.
    """

    exclude_special_tokens = False  # read by SAELens's context manager

    def __init__(self, attached: AttachedSAE, use_error_term: bool) -> None:
        super().__init__()
        self.__dict__["_attached"] = attached
        self.use_error_term = use_error_term
        self._captured: Tensor | None = None
        for name, hook in self.sae.hook_dict.items():
            if name not in ("hook_sae_error", "hook_sae_output"):
                setattr(self, name, hook)
        # these two fire with what the splice puts in, which the SAE alone doesn't know
        self.hook_sae_error = HookPoint()
        self.hook_sae_output = HookPoint()

    @property
    def attached(self) -> AttachedSAE:
        """The SAE on its model."""
        return self.__dict__["_attached"]

    @property
    def sae(self) -> SAE[Any]:
        """The SAE."""
        return self.attached.sae

    def capture_input(self, value: Tensor, hook: Any = None) -> None:
        """Keep what a transcoder reads until its output's hook is reached."""
        self._captured = value

    def forward(self, value: Tensor) -> Tensor:
        """What the hook holds, with the tokens that the SAE reads replaced."""
        attached = self.attached
        cfg, source, rows = attached.model.cfg, attached.source, attached.rows
        target = source.select(cfg, value)
        read = target if self._captured is None else source.select(cfg, self._captured)
        self._captured = None
        inputs = rows.standardize(read)
        x_hat = rows.restore(self.sae.decode(self.sae.encode(inputs)) + rows.skip(inputs))
        x_hat = x_hat.to(target)
        if self.use_error_term:
            # without hooks, so that an edit of the latents isn't made up for by the error
            with torch.no_grad(), _silent_hooks(self.sae):
                clean = rows.restore(self.sae.decode(self.sae.encode(inputs)) + rows.skip(inputs))
                clean = clean.to(target)
            x_hat = x_hat + self.hook_sae_error(target - clean)
        return source.replace(cfg, value, self.hook_sae_output(x_hat))


@contextmanager
def _silent_hooks(sae: SAE[Any]) -> Iterator[None]:
    points = [module for module in sae.modules() if isinstance(module, HookPoint)]
    hooks = [(point, point._forward_hooks, point._backward_hooks) for point in points]
    try:
        for point in points:
            point._forward_hooks, point._backward_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for point, forward, backward in hooks:
            point._forward_hooks, point._backward_hooks = forward, backward
