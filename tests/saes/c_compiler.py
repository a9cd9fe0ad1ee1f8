"""Whether this machine can compile the kernels; else only the way without them is tested."""

from __future__ import annotations

import shutil

HAS_C_COMPILER = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
