"""Several processes that train together, forked from this one, which saves importing all again."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

SECONDS = 240


class Processes:
    """What ``torchrun`` starts: processes that know of each other by their environment.

    Args:
        n_ranks: how many.
        train: called in each; its end is the process's.
        logs: a folder for what each prints.
    """

    def __init__(self, n_ranks: int, train: Callable[[], None], logs: Path) -> None:
        # as torchrun does, this process keeps the store, which outlives any of the others
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"rank{rank}.txt" for rank in range(n_ranks)]
        self.ids = [self._start(rank, n_ranks, train) for rank in range(n_ranks)]

    def _start(self, rank: int, n_ranks: int, train: Callable[[], None]) -> int:
        child = os.fork()
        if child:
            return child
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(n_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        code = 1
        try:
            with self.logs[rank].open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                sys.stdout = sys.stderr = log
                warnings.simplefilter("ignore")
                # what doesn't end says where it is, before it is killed
                faulthandler.dump_traceback_later(SECONDS - 10, file=log)
                torch.set_num_threads(1)
                try:
                    train()
                    code = 0
                except BaseException as error:
                    traceback.print_exc()
                    print(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def end(self, *expected: int) -> list[str]:
        """Wait until all have ended; what each has printed.

        Args:
            expected: the exit codes, one a process; none: all 0.
        """
        codes, until = {}, time.monotonic() + SECONDS
        while len(codes) < len(self.ids) and time.monotonic() < until:
            for process in set(self.ids) - set(codes):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    codes[process] = os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        for process in set(self.ids) - set(codes):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        printed = [log.read_text() for log in self.logs]
        found = [codes.get(process) for process in self.ids]
        assert found == list(expected or [0] * len(self.ids)), "\n".join(printed)
        return printed
