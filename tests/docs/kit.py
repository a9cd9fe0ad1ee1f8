"""What pages take for granted: photographs, and SAEs, caches and models that other pages make.

Each thing is made when a page first names it, once a session, and copied into the page's folder.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tests.adaptation import official_files
from tests.cli.command import vit_sae
from tests.docs.stand_ins import N_SCENES
from tests.pretrained import small_files
from vit_sae_plugin import HookedViT, PatchSAE, PatchSAEConfig, analyze
from vit_sae_plugin.activations import ActivationSource, embed_images
from vit_sae_plugin.adaptation import AdaptationConfig, adapt
from vit_sae_plugin.analysis.atlas.latent_names import LatentName, write_names
from vit_sae_plugin.datasets import ShapeScenes, open_images
from vit_sae_plugin.fingerprints import known_sae_fingerprint

D_SAE = 1024
"""As many latents as the demo's SAE has, so that the numbers on the pages exist."""


def folders_made(text: str) -> list[str]:
    """The folders that a snippet says it writes into."""
    made = re.findall(r"(?:output.path|\bfolder)[ =]\"?([\w/.-]+)", text)
    made += re.findall(r"\badapt\(.*\"([\w/.-]+)\"\)", text)
    return [one.rstrip("/") for one in made]


class Kit:
    """A folder with everything in ``MAKERS`` that was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def named_in(self, text: str) -> list[str]:
        """The things that a snippet names, but for the folders that it makes itself."""
        made = folders_made(text)
        return [
            name
            for name in MAKERS
            if name not in made and re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w-])", text)
        ]

    def bring(self, name: str, place: Path) -> bool:
        """Copy a thing to where a page looks for it; False if the page has made one itself."""
        if (place / name).exists():
            return False
        ours = self.ready(name)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if ours.is_dir() else shutil.copyfile
        copy(ours, place / name)
        return True

    def ready(self, name: str) -> Path:
        """Where the thing is, made if nothing has asked for it before."""
        place = self.folder / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[name](self, place)
        return place


def _photos(kit: Kit, place: Path) -> None:
    """Two classes of shape scenes."""
    scenes = ShapeScenes(32, seed=5)
    for index in range(scenes.n_images):
        folder = place / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        scenes.scene(index).image.save(folder / f"{index:02d}.png")


def _photo(kit: Kit, place: Path) -> None:
    ShapeScenes(1, seed=5).scene(0).image.save(place)


def sae_of_examples(model: HookedViT, scenes: ShapeScenes) -> PatchSAE:
    """A PatchSAE that nobody trained: latent i looks for tokens like one that was seen.

    Its bias lets it be active in a share of all tokens that falls from latent to latent, from 20 %
    to 0.1 %, so that there are common ones and rare ones, as in a trained SAE.
    """
    hook = "blocks.2.hook_resid_post"
    pixels = torch.stack([model.preprocess(scenes.scene(i).image) for i in range(scenes.n_images)])
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels, names_filter=hook)
    rows = cache[hook][:, 1:].flatten(0, 1)
    mean = rows.mean(0)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:D_SAE]
    directions = torch.nn.functional.normalize(rows[chosen] - mean, dim=1)
    like = (rows - mean) @ directions.T
    shares = torch.logspace(-0.7, -3, D_SAE)
    sae = PatchSAE(PatchSAEConfig(d_in=model.cfg.d_model, d_sae=D_SAE))
    with torch.no_grad():
        sae.b_dec.copy_(mean)
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions)
        ranked = like.sort(dim=0, descending=True).values
        for latent, share in enumerate(shares):
            sae.b_enc[latent] = -ranked[int(share * len(rows)), latent]
    ActivationSource.from_model(model, hook).stamp(sae, model)
    return sae


def _demo_results(kit: Kit, place: Path) -> None:
    """The folders that ``vit-sae demo`` leaves, around an SAE that wasn't trained."""
    model = HookedViT.from_pretrained("shapes-clip")
    sae = sae_of_examples(model, ShapeScenes(200, seed=3, n_objects=1))
    sae.save_model(place / "run" / "sae")
    images = open_images(f"shapes:test?n_images={N_SCENES}&n_objects=1")
    rules = ("mean", "count", "max")
    analyze(model, sae, images, aggregations=rules, folder=place / "atlas", progress=False)


def _trained(*arguments: str) -> Callable[[Kit, Path], None]:
    """By ``vit-sae train`` on the photographs, with the weights of ``shapes-clip``."""

    def make(kit: Kit, place: Path) -> None:
        few = ("--training-tokens", 2048, "--set", "train_batch_size_tokens=256")
        images = ("--images", kit.ready("photos"), "--model", "shapes-clip")
        assert vit_sae("train", *images, *few, *arguments, "--output-path", place) == 0

    return make


def _on_embeddings(*arguments: str) -> Callable[[Kit, Path], None]:
    """The same on the model's embedding of each photograph."""
    return _trained("--hook-name", "hook_image_embed", *arguments)


def _rows(kit: Kit, place: Path) -> None:
    """The photographs' embeddings, one a row."""
    model = HookedViT.from_pretrained("shapes-clip")
    embed_images(model, open_images(str(kit.ready("photos"))), progress=False).save(place)


def _atlas(kit: Kit, place: Path) -> None:
    sae = kit.ready("runs/photos") / "sae"
    images = ("--images", kit.ready("photos"))
    assert vit_sae("analyze", sae, *images, "--output-path", place) == 0


def _names(kit: Kit, place: Path) -> None:
    """What a browser saves on a page of the demo's report."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(kit.ready("demo-results") / "run" / "sae")
    write_names(place, {7: LatentName("red rings")}, known_sae_fingerprint(sae))


def _adapted(kit: Kit, place: Path) -> None:
    images = open_images("shapes:train?style=outline&n_objects=1&n_images=600")
    config = AdaptationConfig("maple", preset="shapes", shots=2, epochs=1)
    adapt("shapes-clip", images, config, place)


def _official_checkpoint(kit: Kit, place: Path) -> None:
    clip = HookedViT.from_pretrained("shapes-clip")
    official_files.write(place, official_files.maple_state(clip, ["red ring", "blue star"], 2))


def _dictionary_learning(kit: Kit, place: Path) -> None:
    directions = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    tensors = {
        "encoder.weight": directions,
        "encoder.bias": torch.zeros(64),
        "decoder.weight": directions.T.contiguous(),
        "b_dec": torch.zeros(128),
    }
    sizes = {"activation_dim": 128, "dict_size": 64}
    small_files.write_dictionary("AutoEncoderTopK", tensors=tensors, **sizes)(place.parent)


def _overcomplete(kit: Kit, place: Path) -> None:
    small_files.write_overcomplete()(place.parent)


def _vocabulary(kit: Kit, place: Path) -> None:
    place.write_text("snow\nring\nsquare\nred\n", encoding="utf-8")


MAKERS: dict[str, Callable[[Kit, Path], None]] = {
    "photos": _photos,
    "photo.jpg": _photo,
    "cat.jpg": _photo,
    "demo-results": _demo_results,
    "runs/photos": _trained("--d-sae", "128"),
    "runs/wider": _trained("--d-sae", "160", "--seed", "1"),
    "runs/frozen": _trained("--d-sae", "128", "--set", "freeze_decoder=true"),
    "runs/msae": _on_embeddings("--architecture", "matryoshka_topk"),
    "runs/msae-2": _on_embeddings("--architecture", "matryoshka_topk", "--seed", "1"),
    "held_out.npy": _rows,
    "atlas": _atlas,
    "names.json": _names,
    "runs/maple": _adapted,
    "adapted/maple": _adapted,
    "model.pth.tar-5": _official_checkpoint,
    "trainer_0": _dictionary_learning,
    "sae.pth": _overcomplete,
    "20k.txt": _vocabulary,
}
