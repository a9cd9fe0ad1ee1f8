"""Which latents of a wide SAE this process holds, and how it talks to those that hold the rest."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from vit_sae_plugin.training.ranks.process_group import Ranks

LATENTS = "latents"
"""Name of the mesh's dimension over which latents are split."""

LATENT_DIMENSION = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
"""Of each parameter that is split: the dimension that counts latents. All others are held whole."""


@dataclass(frozen=True)
class LatentSplit:
    """One of ``n_shards`` equal, contiguous ranges of latents, and the processes that hold them.

    Shard ``r`` holds latents ``r · d_sae / n_shards`` up to ``(r + 1) · d_sae / n_shards``: of
    ``W_enc [d_in, d_sae]`` those columns, of ``b_enc [d_sae]`` and ``W_dec [d_sae, d_in]`` those
    rows, as ``Shard`` of ``torch.distributed.tensor`` cuts them. ``b_dec [d_in]`` is held whole by
    each.

    Args:
        mesh: a one-dimensional mesh of the processes that share the latents, in the order of their
            ranges; None: this process holds them all, and nothing is sent.
        ranks: the same processes, to say which of them has ended if an exchange breaks.
    """

    mesh: DeviceMesh | None = None
    ranks: Ranks | None = None

    @classmethod
    def of_all_processes(cls, device: str, ranks: Ranks | None = None) -> LatentSplit:
        """A range for each of the processes that ``torch.distributed`` connects.

        Args:
            device: where the SAE is trained.
            ranks: see the class.
        """
        n_processes = (dist.get_world_size(),)
        return cls(
            init_device_mesh(torch.device(device).type, n_processes, mesh_dim_names=(LATENTS,)),
            ranks,
        )

    @property
    def n_shards(self) -> int:
        """How many processes share the latents."""
        return 1 if self.mesh is None else self.mesh.size()

    @property
    def shard(self) -> int:
        """Number of this process's range."""
        return 0 if self.mesh is None else self.mesh.get_local_rank()

    @property
    def is_first(self) -> bool:
        """Whether this process holds the first range, and with it writes files."""
        return self.shard == 0

    def width(self, d_sae: int) -> int:
        """Number of latents in each range of an SAE of ``d_sae``, which ``n_shards`` divides."""
        return d_sae // self.n_shards

    def own(self, d_sae: int) -> slice:
        """This process's latents among all ``d_sae``."""
        width = self.width(d_sae)
        return slice(self.shard * width, (self.shard + 1) * width)

    def all_reduce_(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Sum (or reduce otherwise) over all shards, in place; all get the same bits."""
        if self.mesh is not None:
            with self.together():
                dist.all_reduce(tensor, op=op, group=self.mesh.get_group())
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all shards, stacked in their order."""
        if self.mesh is None:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.n_shards)]
        with self.together():
            dist.all_gather(parts, tensor.contiguous(), group=self.mesh.get_group())
        return torch.stack(parts)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Give all shards the first one's values, in place."""
        if self.mesh is not None:
            with self.together():
                dist.broadcast(tensor, group=self.mesh.get_group(), group_src=0)
        return tensor

    def fetch(self, own: Tensor, shard: int) -> Tensor:
        """On the first process a shard's tensor; all have one of the same shape."""
        if self.mesh is None or shard == 0:
            return own
        with self.together():
            if self.shard == shard:
                dist.send(own, group=self.mesh.get_group(), group_dst=0)
            elif self.is_first:
                own = torch.empty_like(own)
                dist.recv(own, group=self.mesh.get_group(), group_src=shard)
        return own

    def total(self, count: Tensor) -> int:
        """The sum over shards of a number, as a plain one."""
        return int(self.all_reduce_(count.detach().clone()))

    def as_global(self, tensor: Tensor, dimension: int | None) -> Tensor:
        """This process's part as a ``DTensor`` of the whole, whose memory it shares.

        Args:
            tensor: the part.
            dimension: that which counts latents; None: the tensor is held whole by each.
        """
        if self.mesh is None:
            return tensor
        placement: Placement = Replicate() if dimension is None else Shard(dimension)
        return DTensor.from_local(tensor.detach(), self.mesh, [placement], run_check=False)

    def together(self) -> AbstractContextManager[None]:
        """The time of an exchange: if it breaks, a ``RankLostError`` says why."""
        return nullcontext() if self.ranks is None else self.ranks.together()
