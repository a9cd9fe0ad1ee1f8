"""Explorers on small models, made once."""

import sys
import threading
import time
import traceback
from contextlib import contextmanager

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin import HookedViT
from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.explorer import open_explorer

HOOK = "blocks.2.hook_resid_post"
N_SCENES = 30


def shapes_sae(model: HookedViT) -> StandardSAE:
    """Random directions, of which few are active in a token, and decoded as strongly as read."""
    sae = StandardSAE(StandardSAEConfig(d_in=128, d_sae=64))
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(64, 128, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    sae.W_enc.data, sae.W_dec.data = directions.T.contiguous(), directions * 3
    sae.b_enc.data = torch.full((64,), -0.5)
    for key, value in ActivationSource.from_model(model, HOOK, "all").to_metadata().items():
        sae.cfg.metadata[key] = value
    return sae


class Counter:
    """How often the MLP of each block runs: a block that is left out is called all the same."""

    def __init__(self, model):
        blocks = model.bare_model.visual.transformer.resblocks
        self.counts = [0] * len(blocks)
        for at, block in enumerate(blocks):
            block.mlp.register_forward_hook(lambda *_, at=at: self._add(at))

    def _add(self, at):
        self.counts[at] += 1


@pytest.fixture(scope="session")
def clip():
    return HookedViT.from_pretrained("shapes-clip")


@pytest.fixture(scope="session")
def shapes_explorer(clip):
    """``shapes-clip`` and scenes of one object."""
    scenes = ShapeScenes(N_SCENES, split="test", n_objects=1)
    return open_explorer(clip, shapes_sae(clip), scenes, n_reference_images=12, progress=False)


@pytest.fixture(scope="session")
def adapted(clip):
    """The same model with other weights in its last block."""
    model = HookedViT.from_pretrained("shapes-clip")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.bare_model.visual.transformer.resblocks[-1].parameters():
            weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def without_text():
    """A model that reads no class names, and pictures of three classes."""
    model = make_model()
    return open_explorer(model, make_sae(model), NoisePictures(12), progress=False)


@contextmanager
def serving(explorer):
    """The address of a server on this machine, which must end in time."""
    from vit_sae_plugin.explorer.server import free_socket, make_server

    with free_socket("127.0.0.1", 0) as listening:
        server = make_server(explorer)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
        if thread.is_alive():
            frame = sys._current_frames()[thread.ident]
            pytest.fail("the server doesn't end:\n" + "".join(traceback.format_stack(frame)))


@pytest.fixture(scope="session")
def address(shapes_explorer, tmp_path_factory):
    """Of a server on this machine, which keeps what it keeps in an empty folder."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'vit-sae-plugin[app]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        with serving(shapes_explorer) as address:
            yield address
