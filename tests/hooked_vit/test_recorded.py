"""What a file says about its model is loaded without running its author's code."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.tiny_models import OPEN_CLIP_TEXT, OPEN_CLIP_VISION, tiny_transformers_dinov2
from vit_sae_plugin.hooked_vit import HookedViT, UnsafeSettingError
from vit_sae_plugin.hooked_vit.loading.recorded import complete_old_record


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that code out of a model's folder leaves behind, if any of it runs."""
    return tmp_path / "code-ran"


@pytest.fixture
def pickled(tmp_path: Path, trace: Path) -> Path:
    torch.save({"state_dict": Payload(trace)}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def open_clip_folder(folder: Path, **text_cfg: object) -> Path:
    folder.mkdir()
    text = {**OPEN_CLIP_TEXT, **text_cfg}
    config = {"embed_dim": 24, "vision_cfg": OPEN_CLIP_VISION, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def test_pickled_code_runs_nowhere(tmp_path: Path, pickled: Path, trace: Path):
    clip = open_clip_folder(tmp_path / "clip")
    (clip / "open_clip_pytorch_model.bin").write_bytes(pickled.read_bytes())
    dino = tmp_path / "dino"
    tiny_transformers_dinov2().save_pretrained(dino)
    (dino / "model.safetensors").unlink()
    (dino / "pytorch_model.bin").write_bytes(pickled.read_bytes())
    for name, kwargs in [
        ("ViT-S-16", {"pretrained": str(pickled)}),
        (f"local-dir:{clip}", {}),
        (f"hf:{dino}", {}),
    ]:
        with pytest.raises((OSError, ValueError, RuntimeError, pickle.UnpicklingError)):
            HookedViT.from_recorded(name, kwargs)
        assert not trace.exists(), name
    with contextlib.suppress(Exception):  # whatever a checkpoint without weights leads to
        HookedViT.from_pretrained("ViT-S-16", pretrained=str(pickled), weights_only=False)
    assert trace.exists(), "by hand it is allowed"


def test_code_beside_a_model_does_not_run(tmp_path: Path, trace: Path):
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    folder = tmp_path / "own"
    tiny_transformers_dinov2().save_pretrained(folder)
    (folder / "own.py").write_text(f"{code}class Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "of_its_own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, OSError)):
        HookedViT.from_recorded(f"hf:{folder}", {})

    clip = open_clip_folder(
        tmp_path / "clip",
        hf_tokenizer_name="own",
        tokenizer_kwargs={"trust_remote_code": True},
    )
    (clip / "own.py").write_text(f"{code}class Own: pass\n")
    tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (clip / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises((ValueError, OSError)):
        HookedViT.from_recorded(f"local-dir:{clip}", {"pretrained": False})
    assert not trace.exists()


def test_attention_to_be_fetched_is_refused(tmp_path: Path):
    tiny_transformers_dinov2().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["attn_implementation"] = "someone/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeSettingError, match="'someone/kernel', which is code to be fetched"):
        HookedViT.from_recorded(f"hf:{tmp_path}", {})


@pytest.mark.parametrize(
    ("name", "kwargs", "refused"),
    [
        ("ViT-B-16", {"pretrained": "w.pt", "weights_only": False}, "weights_only=False"),
        ("ViT-B-16", {"pretrained_image_path": "w.pt"}, "pretrained_image_path='w.pt'"),
        ("ViT-B-16", {"vision_cfg": {"timm_model_name": "x"}}, "vision_cfg="),
        ("ViT-B-16", {"jit": True}, "jit=True"),
        ("hf:a/b", {"trust_remote_code": True}, "trust_remote_code=True"),
        ("hf:a/b", {"use_safetensors": False}, "use_safetensors=False"),
        ("hf:a/b", {"attn_implementation": "a/kernel"}, "attn_implementation='a/kernel'"),
        ("hf:a/b", {"quantization_config": {}}, "quantization_config="),
        ("timm:vit_tiny_patch16_224", {"checkpoint_path": "w.pt"}, "checkpoint_path='w.pt'"),
        ("timm:vit_tiny_patch16_224", {"pretrained_cfg": {"file": "w.pt"}}, "pretrained_cfg="),
        ("timm:vit_tiny_patch16_224", {"img_size": [32, "x"]}, "img_size="),
        ("shapes-clip", {"device": "cuda"}, "device='cuda'"),
        ("shapes-clip", {"cache_dir": "/"}, "cache_dir='/'"),
        ("shapes-clip", {"trusted": True}, "trusted=True"),
        ("shapes-clip", {"init_seed": "1"}, "init_seed='1'"),
        ("shapes-clip", {"dtype": ["float32"]}, "dtype="),
        (3, {}, "names the model 3"),
        ("shapes-clip", ["a"], "a mapping of settings"),
    ],
)
def test_all_but_plain_settings_is_refused(name, kwargs, refused: str):
    with pytest.raises(UnsafeSettingError) as caught:
        HookedViT.from_recorded(name, kwargs)
    message = str(caught.value)
    assert refused in message
    assert "\n" not in message
    if isinstance(name, str) and isinstance(kwargs, dict):
        assert "by hand with HookedViT.from_pretrained(" in message


def test_plain_settings_pass():
    model = HookedViT.from_recorded(
        "timm:test_vit",
        {"pretrained": False, "img_size": [32, 48], "patch_size": 8, "dtype": "bfloat16"},
    )
    assert model.cfg.grid == (4, 6)
    assert model.cfg.dtype is torch.bfloat16
    assert model.from_pretrained_kwargs["img_size"] == [32, 48]


def test_an_open_clip_name_alone_meant_random_weights():
    assert complete_old_record("ViT-B-16", {}) == {"pretrained": False}
    assert complete_old_record("ViT-B-16", {"pretrained": "openai"}) == {"pretrained": "openai"}
    for name in ("shapes-clip", "hf:a/b", "timm:x", "local-dir:x", "hf-hub:a/b"):
        assert complete_old_record(name, {"dtype": "float16"}) == {"dtype": "float16"}
