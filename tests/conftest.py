"""Settings every test shares: no network, few threads, no progress of other libraries."""

import faulthandler
import getpass
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault(
    "VIT_SAE_KERNEL_CACHE", f"{tempfile.gettempdir()}/vit-sae-kernels-{getpass.getuser()}"
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_unconfigure() -> None:
    """A thread that goes on must not keep the suite from ending: say where it is, and end."""
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
