"""A stand-in for the Hugging Face hub: a folder a repository, and the client's functions on it."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError


class HubStandIn:
    """Patches what the readers and SAELens call of ``huggingface_hub``; there is no network."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.asked: list[str] = []
        stand_in = self

        class Api:
            def list_repo_files(self, repo_id: str, revision: str | None = None) -> list[str]:
                folder = stand_in.folder(repo_id)
                files = [path for path in folder.rglob("*") if path.is_file()]
                return [path.relative_to(folder).as_posix() for path in files]

            def repo_info(self, repo_id: str) -> str:
                return str(stand_in.folder(repo_id))

            def upload_folder(
                self,
                *,
                folder_path: Any,
                repo_id: str,
                path_in_repo: str = "",
                allow_patterns: list[str] | None = None,
                **_other: Any,
            ) -> None:
                for path in Path(folder_path).rglob("*"):
                    name = path.relative_to(folder_path).as_posix()
                    wanted = allow_patterns is None or any(
                        fnmatch(name, pattern) for pattern in allow_patterns
                    )
                    if path.is_file() and wanted:
                        target = stand_in.folder(repo_id) / path_in_repo / name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, target)

            def upload_file(
                self, *, path_or_fileobj: Any, path_in_repo: str, repo_id: str, **_other: Any
            ) -> None:
                target = stand_in.folder(repo_id) / path_in_repo
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(path_or_fileobj, (str, Path)):
                    shutil.copyfile(path_or_fileobj, target)
                else:
                    target.write_bytes(path_or_fileobj.read())

        def hf_hub_download(repo_id: str, filename: str, **_other: Any) -> str:
            stand_in.asked.append(filename)
            path = stand_in.folder(repo_id) / filename
            if not path.is_file():
                raise _without_response(EntryNotFoundError, f"no {filename} in {repo_id}")
            return str(path)

        def create_repo(repo_id: str, **_other: Any) -> None:
            (root / repo_id).mkdir(parents=True)

        def get_hf_file_metadata(url: str, **_other: Any) -> None:
            if not Path(url).is_file():
                raise _without_response(EntryNotFoundError, url)

        def hf_hub_url(repo_id: str, filename: str, **_other: Any) -> str:
            return str(stand_in.folder(repo_id) / filename)

        functions = {
            "HfApi": Api,
            "hf_hub_download": hf_hub_download,
            "create_repo": create_repo,
            "get_hf_file_metadata": get_hf_file_metadata,
            "hf_hub_url": hf_hub_url,
        }
        import sae_lens.loading.pretrained_sae_loaders as loaders
        import sae_lens.training.upload_saes_to_huggingface as upload

        for name, function in functions.items():
            for module in (huggingface_hub, loaders, upload):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, function)

    def folder(self, repo_id: str) -> Path:
        folder = self.root / repo_id
        if not folder.is_dir():
            raise _without_response(RepositoryNotFoundError, f"no repository {repo_id}")
        return folder

    def repository(self, repo_id: str) -> Path:
        folder = self.root / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _without_response(error_class: type[Exception], message: str) -> Exception:
    # the client's errors want an HTTP response, which there is none of here
    error = error_class.__new__(error_class)
    Exception.__init__(error, message)
    return error
