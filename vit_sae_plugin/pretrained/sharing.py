"""Put an SAE's folder on the Hugging Face hub, card and picture with it."""

from __future__ import annotations

from pathlib import Path

from vit_sae_plugin.pretrained.source_files import from_hub

_CARD = ("README.md", "card.png")


def share_sae(folder: str | Path, repo_id: str, sae_id: str, *, revision: str = "main") -> str:
    """Upload an SAE; ``SAE.from_pretrained(repo_id, sae_id)`` then loads it anywhere.

    SAELens's own function makes the repository if there is none and uploads weights and settings;
    the card and its picture go beside them, for SAELens leaves them out.

    Args:
        folder: the SAE's folder.
        repo_id: ``ORG/REPO``.
        sae_id: the folder's name in the repository.
        revision: branch to upload to.

    Returns:
        The line of Python that loads it.

    Raises:
        FileNotFoundError: there is no SAE in the folder.
        HubError: the hub can't be reached, or doesn't let you.
    """
    from sae_lens import upload_saes_to_huggingface

    folder = Path(folder)
    if not (folder / "cfg.json").is_file():
        raise FileNotFoundError(f"there is no SAE in {folder}: it holds no cfg.json")

    def upload() -> None:
        from huggingface_hub import HfApi

        upload_saes_to_huggingface(
            {sae_id: folder}, repo_id, hf_revision=revision, show_progress=False
        )
        for name in _CARD:
            if (folder / name).is_file():
                HfApi().upload_file(
                    path_or_fileobj=str(folder / name),
                    path_in_repo=f"{sae_id}/{name}",
                    repo_id=repo_id,
                    revision=revision,
                    commit_message=f"Card of {sae_id}",
                )

    from_hub(f"uploading to {repo_id}", upload, "put on")
    return f'SAE.from_pretrained("{repo_id}", "{sae_id}")'
