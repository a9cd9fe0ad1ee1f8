"""Settings every test shares: no network, few threads, no progress of other libraries."""

import getpass
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault(
    "VIT_SAE_KERNEL_CACHE", f"{tempfile.gettempdir()}/vit-sae-kernels-{getpass.getuser()}"
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
