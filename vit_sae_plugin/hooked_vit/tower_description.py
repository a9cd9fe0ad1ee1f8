"""Where a vision transformer keeps its parts: plain data, one instance per model.

Paths are module paths as in ``model.get_submodule``: those of a block are relative to the block,
all others to the wrapped model. Nothing here holds a module or a function, so a description can
be compared, printed and pickled, and modules are looked up anew at every forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.token_layout import TokenRole


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, of a size given as one number or as two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


@dataclass(frozen=True)
class AttentionDescription:
    """Where a block's attention computes queries, keys, values and the heads' outputs.

    Exactly one of three kinds is given: ``qkv`` (one projection of all three), ``q``, ``k`` and
    ``v`` (a projection each), or ``packed`` (weights of the attention module itself, as in
    ``torch.nn.MultiheadAttention``, which never calls a projection module).
    """

    out_proj: str
    """The projection of the concatenated heads back to the residual stream."""

    qkv: str | None = None
    """A projection whose output is ``[..., 3, head, d_head]`` flattened."""

    q: str | None = None
    """The query projection, output ``[..., head, d_head]`` flattened."""

    k: str | None = None
    """The key projection."""

    v: str | None = None
    """The value projection."""

    packed: str | None = None
    """The module that keeps ``in_proj_weight`` and ``in_proj_bias`` itself."""

    q_norm: str | None = None
    """A norm on each head's query, applied to ``[batch, head, token, d_head]``."""

    k_norm: str | None = None
    """A norm on each head's key."""

    z: str | None = None
    """A module between the concatenated heads and ``out_proj`` (None: there is none)."""

    scale: float | None = None
    """Factor on the scores (None: ``d_head ** -0.5``)."""

    intercepted: bool = False
    """Whether positions enter between the projections and the pattern (rotary embeddings, or biases
    on the scores). Then scores and pattern are taken where the attention module itself computes
    them, in ``softmax`` or ``scaled_dot_product_attention``."""

    added_biases: tuple[str, str] | None = None
    """Parameters that the attention module adds to queries and values itself, where it uses the
    weight of ``qkv`` without calling it (None: it calls ``qkv``)."""

    def __post_init__(self) -> None:
        separate = (self.q, self.k, self.v)
        kinds = [self.qkv is not None, self.packed is not None, None not in separate]
        if sum(kinds) != 1 or (any(separate) and None in separate):
            raise UnsupportedTowerError(
                f"the attention description has qkv={self.qkv!r}, packed={self.packed!r}, "
                f"q={self.q!r}, k={self.k!r}, v={self.v!r}; want exactly one of qkv, packed, or "
                "q, k and v together"
            )


@dataclass(frozen=True)
class BlockDescription:
    """Where one pre-norm block keeps its parts: ``x + attn(ln1(x))``, then ``x + mlp(ln2(x))``."""

    ln1: str
    """The norm in front of the attention; its input is the residual stream."""

    attn_out: str
    """The module whose output is added to the stream: the attention, or its LayerScale."""

    ln2: str
    """The norm in front of the MLP; its input is the residual stream between the two halves."""

    mlp_out: str
    """The module whose output is added to the stream: the MLP, or its LayerScale."""

    attn: str
    """The attention module."""

    attention: AttentionDescription | None = None
    """Attention's inside (None: no ``attn.*`` hooks, see ``attention_missing``)."""

    attention_missing: str = "the tower description names no projections"
    """Why there are no ``attn.*`` hooks, quoted when one is asked for."""

    mlp_in: str | None = None
    """The MLP's first linear layer: its output is ``mlp.hook_pre``."""

    mlp_proj: str | None = None
    """The MLP's last linear layer: its input is ``mlp.hook_post``."""

    returns_tuple: bool = False
    """Whether the block returns a tuple, with the residual stream as its first item."""

    summed: str = ""
    """The module inside the block whose output is the sum of the stream, where the block itself
    goes on from it by putting other prompt tokens in (empty: the block's output is the sum)."""


@dataclass(frozen=True)
class EmbeddingDescription:
    """How patches become the first residual stream."""

    patch_embed: str
    """The module that turns pixels into patch embeddings: ``[b, d, rows, columns]``,
    ``[b, rows, columns, d]`` or ``[b, patches, d]``."""

    embedded: str
    """The module at which patches, prefix tokens and positions are already summed."""

    embedded_side: Literal["input", "output"] = "input"
    """Whether the sum is that module's input or its output."""

    prefix: tuple[str, ...] = ()
    """Parameters in front of the patches, in order: class token, register tokens."""

    pos_embed: str | None = None
    """The position parameter, ``[..., n, d]``. Where it has fewer rows than there are tokens, its
    rows belong to the first prefix tokens and to all patches (None: no position embedding)."""


@dataclass(frozen=True)
class TowerDescription:
    """Where a vision transformer keeps its parts.

    Give one to ``HookedViT.from_module(model, tower=...)`` to hook a model of your own. Only the
    first group is needed; what is left out has no hooks, and asking for them says why.
    """

    blocks: str
    """The container of the transformer blocks, in order of use."""

    block: BlockDescription
    """The parts of one block."""

    n_heads: int
    """Attention heads per block."""

    image_size: tuple[int, int]
    """Height and width of the input image, in pixels."""

    patch_size: tuple[int, int]
    """Height and width of one patch, in pixels."""

    n_prefix_tokens: int
    """Tokens in front of the patches: class token, registers, prompts."""

    prefix_roles: tuple[TokenRole, ...] | None = None
    """What each of them is, such as ``("class", "prompt", "prompt")`` (None: the class token, then
    registers)."""

    suffix_roles: tuple[TokenRole, ...] = ()
    """What the tokens behind the patches are, if there are any."""

    pooling: Literal["class", "patches"] | None = None
    """How the last residual stream becomes the embedding: by its class token, or by a mean of its
    patches (None: in another way, see ``pooling_missing``)."""

    pooling_missing: str = "the tower description names no pooling"
    """Why no single token has an embedding, where ``pooling`` is None."""

    embedding: EmbeddingDescription | None = None
    """Patch and position embeddings (None: no ``hook_embed`` and ``hook_pos_embed``)."""

    ln_final: str | None = None
    """The norm after the last block (None: no ``ln_final`` hooks)."""

    classifier: str | None = None
    """The layer from the pooled embedding to class logits, if the model ends in one: its input is
    ``hook_image_embed``. Without one, ``hook_image_embed`` is the model's output."""

    d_embed: int | None = None
    """Width of the image embedding (None: ``d_model``)."""

    image_method: str | None = None
    """The model's method from pixels to the image embedding (None: calling the model)."""

    image_output: tuple[str, ...] = ()
    """Names of the output's field that holds it: the first that is not None (empty: the output,
    or the first item of a tuple)."""

    text_method: str | None = None
    """The model's method from token ids to text embeddings (None: no text tower)."""

    text_output: str | None = None
    """Name of that output's field (None: the output itself)."""

    method_arguments: dict[str, Any] = field(default_factory=dict)
    """What these methods are called with beside pixels or tokens."""

    patch_order_argument: str | None = None
    """The image method's argument by whose values it sorts the patches; it is given rising ones, so
    that they stay in row-major order (None: they do anyway)."""

    family: str = "custom"
    """Shown in messages."""

    notes: dict[str, str] = field(default_factory=dict, compare=False)
    """Why an optional hook is missing: hook name to reason, quoted when it is asked for."""

    def __post_init__(self) -> None:
        roles = self.prefix_roles
        if roles is not None and len(roles) != self.n_prefix_tokens:
            raise UnsupportedTowerError(
                f"prefix_roles names {len(roles)} tokens; want n_prefix_tokens="
                f"{self.n_prefix_tokens}"
            )

    def roles_in_front(self) -> tuple[TokenRole, ...]:
        """What each token in front of the patches is."""
        if self.prefix_roles is not None:
            return self.prefix_roles
        return ("class", *["register"] * self.n_prefix_tokens)[: self.n_prefix_tokens]  # type: ignore[return-value]

    def for_image_size(self, image_size: int | Sequence[int]) -> TowerDescription:
        """The same tower, fed with images of another size than its own."""
        return replace(self, image_size=as_pair(image_size))
