"""What building a wheel adds: the README's links in full, and compiled kernels if asked for.

A package index shows the README without the repository around it, so its links and pictures are
made to point into the repository, at the version's tag.

With ``VIT_SAE_WHEEL_KERNELS=1`` in the environment, ``python -m build --wheel`` makes a wheel for
this system that holds each C file compiled for two generations of processors. Without, the wheel
is for any system, and machines compile the files when they need them, for their own processor.
The libraries use the OpenMP library that comes with torch (``libgomp.so.1``), so on its way to a
package index: ``auditwheel repair --exclude libgomp.so.1``.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

LEVELS = ("x86-64-v3", "x86-64-v4")


class ReadmeOfAnIndex(MetadataHookInterface):
    """The metadata hook."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the README, its links to files of the repository made whole."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        project, version = metadata["urls"]["Homepage"], metadata["version"]
        inside = r"\]\((?!https?:)"
        text = re.sub(rf"(!\[[^\]]*){inside}", rf"\1]({project}/raw/v{version}/", text)
        text = re.sub(inside, f"]({project}/blob/v{version}/", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


class CompiledKernels(BuildHookInterface):
    """The build hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the libraries packed beside their sources."""
        if os.environ.get("VIT_SAE_WHEEL_KERNELS") != "1" or version == "editable":
            return
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise RuntimeError(
                f"VIT_SAE_WHEEL_KERNELS is 1 on {platform.system()} {platform.machine()}; kernels "
                "are compiled ahead for Linux x86_64 only: unset it"
            )
        self._folder = tempfile.TemporaryDirectory()
        root = Path(self.root)
        package = root / "vit_sae_plugin"
        for source in sorted(package.rglob("*.c")):
            for level in LEVELS:
                name = f"{source.stem}.float.{level}.so"
                library = Path(self._folder.name) / name
                flags = ["-O3", "-shared", "-fPIC", "-fopenmp", f"-march={level}", "-DREAL=float"]
                command = [os.environ.get("CC", "cc"), *flags, f"-I{package}", str(source), "-o"]
                subprocess.run([*command, str(library)], check=True)
                place = source.with_name(name).relative_to(root)
                build_data["force_include"][str(library)] = str(place)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the libraries, which are in the wheel now."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
