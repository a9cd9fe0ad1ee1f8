"""The last block, run only as far as the class token needs it.

Where the class token alone becomes the embedding, nothing reads what the last block makes of the
other tokens: they are keys and values of its attention, and no more.
"""

from __future__ import annotations

from torch import Tensor, nn

from vit_sae_plugin.hooked_vit.config import HookedViTConfig
from vit_sae_plugin.hooked_vit.forward_run import ForwardRun
from vit_sae_plugin.hooked_vit.hook_names import layer_of
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.hooked_vit.weight_views import inside_of_wrappers


def only_token_read(
    bare_model: nn.Module, tower: TowerDescription, cfg: HookedViTConfig, run: ForwardRun
) -> int | None:
    """Which token of the last block is all that the output depends on; None: others count too.

    They do under another pooling, where a live hook looks at them, and in training mode, where
    dropout would draw other numbers.
    """
    found = cfg.tokens.role_positions("class").tolist()
    last = cfg.n_layers - 1
    looked_at = any(layer_of(name) == last or name.startswith("ln_final") for name in run.points)
    if tower.pooling != "class" or len(found) != 1 or looked_at or bare_model.training:
        return None
    return found[0]


def narrow_to_token(
    run: ForwardRun, tower: TowerDescription, block_path: str, position: int
) -> None:
    """Narrow what goes into the last block's queries and into its MLP to one token.

    What either adds to the stream is then one token, added to all of them: right for that
    token, and without meaning for the others. Queries are narrowed where the attention takes them
    as an argument of their own, in `torch.nn.MultiheadAttention`; others compute all of them.

    Args:
        run: the forward pass.
        tower: where the model keeps its parts.
        block_path: the last block.
        position: of the token.
    """

    def narrow(x: Tensor) -> Tensor:
        return x[:, position : position + 1]

    attention = f"{block_path}.{tower.block.attn}"
    module = inside_of_wrappers(run.bare_model.get_submodule(attention))
    if isinstance(module, nn.MultiheadAttention):
        run.before(attention, narrow)
    run.before(f"{block_path}.{tower.block.ln2}", narrow)
