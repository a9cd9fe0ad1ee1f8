"""A split SAE written as the folder that any one process would write, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from torch import Tensor

from .latent_split import LATENT_DIMENSION, LatentSplit
from .split_sae import SplitLatents

_BYTES_AT_A_TIME = 1 << 26
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@torch.no_grad()
def save_whole_sae(sae: SplitLatents, folder: Path | None) -> None:
    """Write what ``save_inference_model`` writes of the whole SAE: every process must call it.

    The first process gets the others' parts 64 MB at a time and writes them where they belong, so
    that no process ever holds the whole.

    The files are written where they shall be, a piece at a time: give a folder that takes its place
    when it is whole, as the training runner does (``atomic_files.write_folder_atomically``).

    Args:
        sae: this process's part.
        folder: where to, a folder that exists; asked of the first process only.
    """
    parts = sae.state_dict()
    sae.process_state_dict_for_saving_inference(parts)
    names = sorted(parts)
    if not sae.split.is_first or folder is None:
        for name in names:
            for _ in _blocks(parts[name], LATENT_DIMENSION.get(name), sae.split):
                pass
        return
    with (folder / SAE_WEIGHTS_FILENAME).open("wb") as file:
        file.write(_safetensors_header({name: parts[name] for name in names}, sae.split.n_shards))
        for name in names:
            for block in _blocks(parts[name], LATENT_DIMENSION.get(name), sae.split):
                file.write(block.cpu().contiguous().view(torch.uint8).numpy().data)
    cfg = sae.cfg.get_inference_sae_cfg_dict()
    (folder / SAE_CFG_FILENAME).write_text(json.dumps(cfg))


def _safetensors_header(parts: dict[str, Tensor], n_shards: int) -> bytes:
    """The head of a file that holds the whole tensors one after the other."""
    entries, offset = {}, 0
    for name, part in parts.items():
        shape = list(part.shape)
        if name in LATENT_DIMENSION:
            shape[LATENT_DIMENSION[name]] *= n_shards
        end = offset + torch.Size(shape).numel() * part.element_size()
        entries[name] = {
            "dtype": _DTYPE_NAMES[part.dtype],
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _blocks(part: Tensor, dimension: int | None, split: LatentSplit) -> Iterator[Tensor]:
    """The whole tensor's rows, a block at a time; of use to the first process only."""
    part = part.detach().contiguous()
    if dimension is None:
        yield part
        return
    n_columns = part.stride(0) * (split.n_shards if dimension == 1 else 1)
    n_rows = max(1, _BYTES_AT_A_TIME // (n_columns * part.element_size()))
    if dimension == 0:
        for shard in range(split.n_shards):
            for rows in part.split(n_rows):
                yield split.fetch(rows, shard)
    else:
        for rows in part.split(n_rows):
            yield torch.cat([split.fetch(rows, shard) for shard in range(split.n_shards)], dim=1)
