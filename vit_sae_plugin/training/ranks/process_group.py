"""The processes that train together: who they are, and how they add up, collect and agree."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.atomic_files import is_running

_PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: rank 0 may be measuring or saving meanwhile."""
_SEARCH_SECONDS = 5.0
_GROUPS = itertools.count()


class RankLostError(RuntimeError):
    """Another of the processes has ended, so that this one can't go on."""

    @classmethod
    def stopped(cls, rank: int, error: BaseException) -> RankLostError:
        """That a rank stopped, and why."""
        return cls(f"rank {rank} stopped: {type(error).__name__}: {str(error).strip()}")


class Ranks:
    """This process and those that work with it, one a rank from 0.

    All methods that pass something around are called by all ranks together, in the same order.
    If a process ends, however it does, they raise a ``RankLostError`` in the others.

    Args:
        store: where the processes leave word for each other.
        rank: which of them this is.
        n_ranks: how many there are.
        local_rank: which of those on this machine.
    """

    def __init__(self, store: dist.Store, rank: int, n_ranks: int, local_rank: int = 0) -> None:
        self.rank = rank
        self.n_ranks = n_ranks
        self.local_rank = local_rank
        self._store = store
        self._store.set(f"who/{rank}", json.dumps([os.getpid(), socket.gethostname()]))

    @classmethod
    def from_environment(cls) -> Ranks | None:
        """The processes that ``torchrun`` has started; None where this one is alone.

        CPU tensors travel by gloo, CUDA tensors by NCCL.

        Raises:
            ValueError: the environment names several processes, but not which one this is.
        """
        n_ranks = n_ranks_started()
        if n_ranks == 1:
            return None
        missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing:
            raise ValueError(
                f"WORLD_SIZE is {n_ranks}, but {', '.join(missing)} isn't set; start the processes "
                "by torchrun, or unset WORLD_SIZE to train in one"
            )
        store, rank, n_ranks = next(dist.rendezvous("env://", timeout=_PATIENCE))
        store = dist.PrefixStore(f"vit_sae_{next(_GROUPS)}", store)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=n_ranks, timeout=_PATIENCE
            )
        return cls(store, rank, n_ranks, int(os.environ.get("LOCAL_RANK", rank)))

    def __repr__(self) -> str:
        return f"<Ranks: {self.rank} of {self.n_ranks}>"

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes files and speaks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Put the sum over all ranks in place of each rank's values; the same bits in all."""
        with self.together():
            dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it holds in any of them."""
        return bool(self.sum_(torch.tensor(int(here))))

    def stack(self, values: Float[Tensor, "*axes"]) -> Float[Tensor, "n_ranks *axes"]:
        """The values of each rank, which have the same shape in all, in order of rank."""
        everyones = [torch.empty_like(values) for _ in range(self.n_ranks)]
        with self.together():
            dist.all_gather(everyones, values)
        return torch.stack(everyones)

    def gather(self, text: str) -> list[str]:
        """The text of each rank, in order of rank."""
        content = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
        parts = self.gather_parts(content)
        return [part.numpy().tobytes()[:-1].decode() for part in parts]

    def gather_parts(self, rows: Float[Tensor, "n *row"]) -> list[Tensor]:
        """The rows of each rank, which may be more or fewer, in order of rank."""
        sizes = self.stack(torch.tensor(len(rows))).tolist()
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        return [part[:size] for part, size in zip(self.stack(padded), sizes, strict=True)]

    def gather_rows(self, rows: Float[Tensor, "n *row"]) -> Float[Tensor, "n_in_all *row"]:
        """The rows of all ranks, in order of rank; a rank may have none."""
        return torch.cat(self.gather_parts(rows))

    def from_first(self, value: Any) -> Any:
        """What rank 0 has given: a plain value."""
        return json.loads(self.gather(json.dumps(value) if self.is_first else "")[0])

    def copy_first_(self, tensors: Sequence[Tensor]) -> None:
        """Put rank 0's values in place of each rank's."""
        with self.together():
            for tensor in tensors:
                # as bytes, for not every type of number can travel by gloo
                values = tensor.detach().contiguous().flatten()
                dist.broadcast(values.view(torch.uint8), src=0)
                tensor.copy_(values.view_as(tensor))

    def wait_for_all(self) -> None:
        """Go on when all ranks are here."""
        self.any(False)

    def close(self, error: BaseException | None = None) -> None:
        """End the connection.

        Args:
            error: why this process can't go on; the others give it as the reason why they end.
        """
        if error is None:
            # nobody hangs up while another still listens
            with contextlib.suppress(RankLostError):
                self.wait_for_all()
        elif not isinstance(error, RankLostError):
            self._tell(str(RankLostError.stopped(self.rank, error)))
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """The time of an exchange: if it breaks, a ``RankLostError`` says why."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gloo's and NCCL's, when a connection breaks
            raise RankLostError(self._why_lost(error)) from error

    def _why_lost(self, error: RuntimeError) -> str:
        """Which rank has ended; what the first to find out says, all say."""
        deadline = time.monotonic() + _SEARCH_SECONDS
        try:
            while time.monotonic() < deadline:
                if self._store.check(["why"]):
                    break
                for rank in range(self.n_ranks):
                    process, host = json.loads(self._store.get(f"who/{rank}"))
                    if host == socket.gethostname() and not is_running(process):
                        self._tell(
                            f"rank {rank} (process {process} on {host}) is gone: it was killed, or "
                            "crashed"
                        )
                time.sleep(0.1)
            else:
                self._tell(f"the connection between the processes broke ({_first_line(error)})")
            return self._store.get("why").decode()
        except RuntimeError:  # the store was torchrun's, or rank 0's
            return f"torchrun, or rank 0's process, is gone ({_first_line(error)})"

    def _tell(self, why: str) -> None:
        """Leave word of the reason why the processes end, unless there is one already."""
        with contextlib.suppress(RuntimeError):
            self._store.compare_set("why", "", why)


def n_ranks_started() -> int:
    """How many processes ``torchrun`` has started, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
