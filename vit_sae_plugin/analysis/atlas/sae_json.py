"""JSON files about the latents of one SAE: a format's name, its version, and the SAE's hash."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.fingerprints import short


@dataclass(frozen=True)
class SAEJson:
    """A kind of file, ``{"format": …, "version": …, "sae_sha256": …, key: …}``."""

    format: str
    """Its name in the file."""
    version: int
    """The version that is written, and the only one that is read."""
    key: str
    """Of the entry that holds what the file is for."""
    holds: str
    """What that is, for errors: ``"names of latents"``."""
    wanted: str
    """A good file in words, for errors."""

    def write(self, path: str | Path, value: Any, sae_sha256: str, *, indent: int | None) -> None:
        """Write what is known of the latents of the SAE with this hash."""
        described = {
            "format": self.format,
            "version": self.version,
            "sae_sha256": sae_sha256,
            self.key: value,
        }
        text = json.dumps(described, indent=indent, ensure_ascii=False, allow_nan=False)
        write_text_atomically(Path(path), text + "\n")

    def read(self, path: Path, sae_sha256: str) -> Any:
        """What a file says of the latents of the SAE with this hash.

        Raises:
            ValueError: there is no such file, or it is another one, or about another SAE.
        """
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"there is no file {path}; want {self.wanted}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} holds no {self.holds}: {error}") from None
        if not isinstance(described, dict) or described.get("format") != self.format:
            raise ValueError(f"{path} holds no {self.holds}; want {self.wanted}")
        if described.get("version") != self.version:
            raise ValueError(
                f"the {self.holds} in {path} have version {described.get('version')!r}; this "
                f"release reads version {self.version}"
            )
        if described.get("sae_sha256") != sae_sha256:
            raise ValueError(
                f"the {self.holds} in {path} are of the SAE "
                f"{short(str(described.get('sae_sha256')))}; want {self.key} of this "
                f"one, {short(sae_sha256)}"
            )
        return described.get(self.key)
