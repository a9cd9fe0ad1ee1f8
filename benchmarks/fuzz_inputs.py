"""What the command line does with hostile and broken input: a seeded table of outcomes by kind.

Every case is one call of ``vit_sae_cli.main`` in this process, on damaged copies of small files
made here: SAE folders, settings files, embeddings, images, atlases, checkpoints, arguments, and
files that try to run code. A case ends well if it is refused in one line (exit code 2) or accepted;
a traceback, code that was run, or a case without an end is a fault, and the exit status says so.

    python -m benchmarks.fuzz_inputs --n-cases 60 --seed 0
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import vit_sae_cli

OUTCOMES = ("one line", "accepted", "several lines", "no end", "traceback", "code run")
FAULTS = OUTCOMES[2:]
SECONDS_A_CASE = 120
JUNK: list[Any] = [
    *(None, True, False, "", "x", "٣", "a\0b", "../../etc/passwd", "1e3", "nan", "\ud800"),
    *(-1, 0, 1, 3, 2.5, 10**15, -(10**30), math.nan, math.inf, -math.inf),
    *([], [1, 2], [None], [[]], {}, {"a": 1}, {"architecture": "standard"}, ["x"] * 5),
]


class CodeRun:
    """Unpickling this makes a folder: proof that a file's author got code to run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@dataclass
class Case:
    """One command."""

    kind: str
    name: str
    argv: list[Any]


@dataclass
class World:
    """Sound files to start from, all small."""

    folder: Path

    def __post_init__(self) -> None:
        self.mark = self.folder / "code-was-run"
        self.photos = self.folder / "photos"
        self.rows = self.folder / "rows.npy"
        self.sae = self.folder / "sae"
        self.run = self.folder / "run"
        self.atlas = self.folder / "atlas"
        self.working = self.folder / "working"

    def build(self) -> None:
        """Make them, through the command line itself."""
        self.working.mkdir()
        generator = np.random.default_rng(0)
        for index in range(4):
            (self.photos / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.photos / f"class{index % 2}" / f"{index}.png")
        # as wide as the embeddings of shapes-clip
        np.save(self.rows, generator.normal(size=(64, 128)).astype(np.float32))
        settings = ("--d-sae", 16, "--set", "train_batch_size_tokens=16", "--device", "cpu")
        _must(
            *("train", "--images", self.photos, "--model", "shapes-clip", *settings),
            *("--training-tokens", 64, "--output-path", self.folder / "image-run"),
        )
        shutil.copytree(self.folder / "image-run" / "sae", self.sae)
        _must(
            *("train", "--embeddings", self.rows, *settings, "--training-tokens", 96),
            *("--architecture", "standard", "--set", "checkpoint_every_minutes=0"),
            *("--output-path", self.run),
        )
        _must("analyze", self.sae, "--images", self.photos, "--output-path", self.atlas)
        self._check_sound()

    def _check_sound(self) -> None:
        """The sound files are accepted: else every case would be refused, and nothing be shown."""
        folder = _fresh(self)
        (folder / "config.yaml").write_text(yaml.safe_dump(self.settings()))
        _must("train", "--config", folder / "config.yaml", "--output-path", folder / "run")
        _must("train", "--resume", shutil.copytree(self.run, folder / "resumed"))
        _must("analyze", self.sae, "--images", self.photos, "--output-path", self.atlas)
        _must("eval", self.sae, "--images", self.photos, "--output-path", folder / "evaluation")
        _must("export", self.sae, folder / "plain")

    def settings(self) -> dict[str, Any]:
        """A small run on embeddings, as a settings file would have it."""
        return {
            "model_name": "shapes-clip",
            "hook_name": "hook_image_embed",
            "embeddings_path": str(self.rows),
            "sae": {"architecture": "standard", "d_sae": 16, "l1_coefficient": 0.1},
            "training_tokens": 64,
            "train_batch_size_tokens": 16,
            "lr": 1e-3,
            "lr_warm_up_steps": 1,
            "seed": 1,
            "device": "cpu",
            "model_from_pretrained_kwargs": {},
            "seqpos_slice": [None],
            "logger": {"log_to_wandb": False},
        }


def _must(*argv: Any) -> None:
    code = vit_sae_cli.main([str(arg) for arg in argv])
    if code != 0:
        raise RuntimeError(f"vit-sae {' '.join(map(str, argv))} ended with {code}")


def sae_folders(world: World, rng: random.Random) -> Iterator[Case]:
    """``cfg.json`` with other values, and weights of other shapes, kinds and values."""
    while True:
        folder = _copy(world, world.sae)
        command = _use_sae(world, folder, rng.choice("eval export analyze frontier card".split()))
        if rng.random() < 0.5:
            name = _edit_json(folder / "cfg.json", rng)
            _forget_hashes(folder)
        else:
            name = rng.choice(list(_WEIGHT_DAMAGE))
            _WEIGHT_DAMAGE[name](folder / "sae_weights.safetensors", rng)
            if rng.random() < 0.8:
                _forget_hashes(folder)
        yield Case("SAE folders", f"{command[0]}: {name}", command)


def settings_files(world: World, rng: random.Random) -> Iterator[Case]:
    """YAML and JSON with wrong types, unknown names and broken syntax."""
    broken = ["", "null", "[1, 2]", "a: [", "\t- x", "\x00\x01", "a: &a [*a]", "{" * 2000, "5", "'"]
    while True:
        folder = _fresh(world)
        path = folder / rng.choice(["config.yaml", "config.yaml", "config.json"])
        if rng.random() < 0.1:
            name = repr(text := rng.choice(broken))[:20]
            path.write_text(text)
        elif rng.random() < 0.05:
            name = "bytes"
            path.write_bytes(rng.randbytes(200))
        else:
            settings = world.settings()
            name = _edit(settings, rng, also=["k", "d_in", "n_workers", "clip_grad_norm", "dtype"])
            dump = yaml.safe_dump if path.suffix == ".yaml" else json.dumps
            path.write_text(dump(settings), encoding="utf-8", errors="surrogateescape")
        yield Case("settings", name, ["train", "--config", path, "--output-path", folder / "run"])


def embeddings_files(world: World, rng: random.Random) -> Iterator[Case]:
    """Arrays of other shapes and kinds, and files that are none."""

    def parquet(path: Path, frame: pd.DataFrame) -> None:
        frame.to_parquet(path)

    def save(array: Any) -> Callable[[Path], None]:
        return lambda path: np.save(path, array, allow_pickle=True)

    def write(content: bytes) -> Callable[[Path], None]:
        return lambda path: path.write_bytes(content) and None

    rows = np.load(world.rows)
    nan = rows.copy()
    nan[3, 2] = math.nan
    ragged = pd.DataFrame({"embedding": [[1.0], [1.0, 2.0]]})
    archive = io.BytesIO()
    np.savez(archive, rows=rows)
    whole = world.rows.read_bytes()
    some = torch.ones(4, 8)
    makers: list[tuple[str, str, Callable[[Path], None]]] = [
        ("sound", "r.npy", save(rows)),
        ("empty file", "r.npy", write(b"")),
        ("zipped", "r.npy", write(archive.getvalue())),
        ("text", "r.npy", write(b"no array")),
        ("one axis", "r.npy", save(rows[0])),
        ("three axes", "r.npy", save(rows[None])),
        ("no axis", "r.npy", save(np.float32(1))),
        ("integers", "r.npy", save(rows.astype(int))),
        ("complex", "r.npy", save(rows.astype(complex))),
        ("no rows", "r.npy", save(rows[:0])),
        ("no columns", "r.npy", save(rows[:, :0])),
        ("NaN", "r.npy", save(nan)),
        ("objects", "r.npy", save(np.array([{"a": 1}, None], dtype=object))),
        ("strings", "r.npy", save(np.array([["a", "b"]]))),
        ("records", "r.npy", save(np.zeros(3, dtype=[("a", "f4")]))),
        ("constant", "r.npy", save(np.zeros_like(rows))),
        ("huge values", "r.npy", save(rows * np.float32(1e37))),
        ("folder", "r.npy", lambda path: path.mkdir()),
        ("ending", "r.txt", write(whole)),
        ("empty", "r.safetensors", write(b"")),
        ("short", "r.safetensors", write(b"\xff" * 40)),
        ("two tensors", "r.safetensors", lambda p: _tensors(p, a=some, b=some[0] + 1)),
        ("one axis", "r.safetensors", lambda p: _tensors(p, rows=some[0])),
        ("integers", "r.safetensors", lambda p: _tensors(p, rows=some.long())),
        ("none", "r.safetensors", lambda p: _tensors(p)),
        ("ids no JSON", "r.safetensors", lambda p: _tensors(p, {"ids": "{"}, rows=some)),
        ("ids a number", "r.safetensors", lambda p: _tensors(p, {"ids": "3"}, rows=some)),
        ("empty", "r.parquet", write(b"")),
        ("text", "r.parquet", write(b"PAR1 no table PAR1")),
        ("ragged", "r.parquet", lambda p: parquet(p, ragged)),
        ("no lists", "r.parquet", lambda p: parquet(p, pd.DataFrame({"a": [1]}))),
        ("strings", "r.parquet", lambda p: parquet(p, pd.DataFrame({"embedding": [["a"]]}))),
        ("nulls", "r.parquet", lambda p: parquet(p, pd.DataFrame({"embedding": [None, [1.0]]}))),
        ("nested", "r.parquet", lambda p: parquet(p, pd.DataFrame({"embedding": [[[1.0]]]}))),
    ]
    while True:
        folder = _fresh(world)
        choice = rng.random()
        if choice < 0.75:
            what, file_name, make = rng.choice(makers)
            path = folder / file_name
            make(path)
        else:
            what, path = "damaged bytes", folder / "r.npy"
            path.write_bytes(whole)
            _damage_bytes(path, rng)
        ids = rng.choice([None, None, None, "{", "[1]", "5", '{"a": 1}', "[[]]", ""])
        if ids is not None and path.suffix == ".npy":
            path.with_suffix(".ids.json").write_text(ids)
            what += f", ids {ids!r}"
        yield Case(
            "embeddings",
            f"{path.suffix} {what}",
            [
                *("train", "--embeddings", path, "--d-sae", 16, "--training-tokens", 64),
                *("--set", "train_batch_size_tokens=16", "--output-path", folder / "run"),
                *rng.choice([(), (), ("--set", "standardize_embeddings=true")]),
            ],
        )


def images(world: World, rng: random.Random) -> Iterator[Case]:
    """Folders of odd files, and sources that are none."""
    png = next(world.photos.rglob("*.png")).read_bytes()
    sources = [
        *("", " ", "no/such/folder", "folder:", "hf:", "hf:no/such:set", "wds:", "~", "\ud800"),
        *("wds:{", "wds:{9..1}.tar", "wds:no-{0..3}.tar", "wds:/dev/null", "shapes:none"),
        *("shapes?n_images=x", "shapes?n_objects=9", "shapes?n_objects=3-1", "shapes?n_images=0"),
        *("shapes?n_images=-1", "shapes?x=1", "shapes:test?n_images=3", "shapes:test?seed=1e99"),
        *("hf:imagefolder?streaming=maybe", "ftp://x", "http://localhost:1/x.tar", "hf:a/b/c/d"),
        *("x" * 5000, "a\0b", "hf:../no-such", "folder:no?max_pixels=x", "/dev/null"),
    ]
    contents: list[tuple[str, bytes]] = [
        *(("a.png", b""), ("a.png", png[: len(png) // 2]), ("a.png", b"\x89PNG\r\n\x1a\n")),
        *(("a.jpg", png), ("a.tif", b"II*\0" + b"\xff" * 100), ("a.gif", b"GIF89a" + b"\0" * 20)),
        *(("a.txt", b"text"), ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n"), (" .png", png)),
        *(("a.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8 "), ("a.bmp", b"BM" + b"\xff" * 60)),
        ("\udcff.png", png),
    ]
    while True:
        folder = _fresh(world)
        if rng.random() < 0.5:
            source: Any = rng.choice(sources)
            name = repr(source)[:30]
        else:
            source = folder / "images"
            source.mkdir()
            chosen = rng.sample(contents, rng.randrange(0, 4))
            for index, (file_name, content) in enumerate(chosen):
                (source / str(index)).mkdir()
                (source / str(index) / file_name).write_bytes(content)
            if rng.random() < 0.2:
                (source / "loop").symlink_to(source)
            name = ", ".join(repr(file_name) for file_name, _ in chosen) or "empty folder"
        out = ("--output-path", folder / "out")
        command = rng.choice(
            [
                ["eval", world.sae, "--images", source, *out],
                ["analyze", world.sae, "--images", source, *out],
                ["train", "--images", source, "--model", "shapes-clip", "--d-sae", 16, *out],
            ]
        )
        if command[0] == "train":
            command += ["--training-tokens", 64, "--set", "train_batch_size_tokens=16"]
        yield Case("images", f"{command[0]}: {name}", command)


def atlases(world: World, rng: random.Random) -> Iterator[Case]:
    """A finished atlas with one file damaged, opened again by ``analyze``."""
    names = sorted(path.name for path in world.atlas.iterdir() if path.is_file())
    while True:
        folder = _copy(world, world.atlas)
        path = folder / rng.choice([*names, "atlas.json", "atlas.json"])
        if path.suffix == ".json" and rng.random() < 0.7:
            name = _edit_json(path, rng)
        elif rng.random() < 0.2:
            name = "missing"
            path.unlink()
        else:
            name = _damage_bytes(path, rng)
        if rng.random() < 0.5:
            name += " (hashes mended)"
            _rehash_atlas(folder)
        report = rng.choice([(), ("--report", folder.parent / "report", "--n-explained", 1)])
        command = ["analyze", world.sae, "--images", world.photos, "--output-path", folder]
        yield Case("atlases", f"{path.name}: {name}", [*command, *report])


def checkpoints(world: World, rng: random.Random) -> Iterator[Case]:
    """A run whose checkpoints, settings or state are damaged, resumed."""
    while True:
        run = _copy(world, world.run)
        folders = sorted((run / "checkpoints").iterdir())
        which = rng.random()
        if which < 0.3:
            name = f"config.yaml: {_edit_yaml(run / 'config.yaml', rng)}"
        elif which < 0.4:
            name = f"metrics: {_damage_bytes(run / 'metrics.jsonl', rng)}"
        else:
            name = ""
            damaged = folders if rng.random() < 0.5 else folders[-1:]
            hidden = rng.random() < 0.6
            for folder in damaged:
                path = rng.choice(sorted(folder.iterdir()))
                if path.suffix == ".json" and rng.random() < 0.6:
                    name = f"{path.name}: {_edit_json(path, rng)}"
                else:
                    name = f"{path.name}: {_damage_bytes(path, rng)}"
                if hidden and path.name != "manifest.json":
                    _rehash(folder)
            name += " (hashes mended)" * hidden
        resume, export = ["train", "--resume", run], ["export", folders[-1], run / "x"]
        command = rng.choice([resume, resume, resume, export])
        yield Case("checkpoints", name, command)


def arguments(world: World, rng: random.Random) -> Iterator[Case]:
    """Options with values that make no sense, missing and foreign places."""
    values = [
        *("", "x", "-1", "0", "1.5", "1e99", "nan", "inf", "NaN", "99999999999999999999", "٣"),
        *("a,b", "[1", "{", "null", "\ud800", "a\0b", "/dev/null", "/proc/1/x", "/", "~"),
        "a" * 4000,
    ]
    base: dict[str, list[Any]] = {
        "eval": ["eval", world.sae, "--images", world.photos],
        "analyze": ["analyze", world.sae, "--images", world.photos],
        "export": ["export", world.sae],
        "frontier": ["frontier", world.sae, "--images", world.photos],
        "convert": ["convert"],
        "train": ["train", "--embeddings", world.rows, "--training-tokens", 64, "--d-sae", 16],
    }
    flags = {
        "eval": "model pretrained n-images batch-size-images n-workers templates suite captions "
        "probe-images training-captions save-latents device output-path no-such-flag",
        "analyze": "model pretrained aggregations n-reference-images threshold report device "
        "batch-size-images n-workers output-path n-latents explain n-explained",
        "export": "architecture k",
        "frontier": "embeddings names model pretrained n-images batch-size-images n-workers device",
        "convert": "set set set model pretrained hook-name token-kind licence dtype",
        "train": "preset config resume images embeddings model pretrained hook-name token-kind "
        "architecture d-sae expansion-factor training-tokens lr n-workers seed device output-path "
        "set set set",
    }
    settings = ["lr", "sae.k", "sae.x", "logger.y", "a.b.c", "sae", "", ".", "dtype", "sae.dtype"]
    settings += ["seqpos_slice", "model_from_pretrained_kwargs", "optimizer", "sae.l1_coefficient"]
    while True:
        folder = _fresh(world)
        command = rng.choice([*base, "train", "analyze"])
        argv = list(base[command])
        given = flags[command].split()
        for flag in rng.sample(given, min(len(given), rng.choice([1, 1, 2]))):
            value = rng.choice(values)
            if flag == "set":
                value = f"{rng.choice(settings)}={value}"
            if flag in ("n-workers", "training-tokens") and value.startswith("9999"):
                value = "-5"  # that many would be started, or trained on
            argv += [f"--{flag}", value]
        if command == "convert":
            kind = rng.choice("patchsae msae prisma saev overcomplete sparsify dn_cbm x".split())
            argv.append(f"{kind}:{rng.choice([world.rows, world.sae, world.photos, 'a/b', ''])}")
        if command in ("export", "convert"):
            argv.append(folder / "out")
        elif "--output-path" not in argv:
            argv += ["--output-path", folder / "out"]
        shown = " ".join(str(arg)[:20] for arg in argv[1:] if not isinstance(arg, Path))
        yield Case("arguments", f"{command} {shown}", argv)


def code_in_files(world: World, rng: random.Random) -> Iterator[Case]:
    """Files whose author wants code to run when they are opened."""
    makers = [*_evil_metadata(world), *_evil_files(world)]
    while True:
        rng.shuffle(makers)
        for name, make in makers:
            folder = _fresh(world)
            yield Case("code in files", name, make(folder))


def _evil_metadata(world: World) -> Iterator[tuple[str, Callable[[Path], list[Any]]]]:
    """Names and arguments of models that make a loader run code: in SAE folders and settings."""

    def pickled(folder: Path, name: str = "weights.pt") -> str:
        (folder / name).write_bytes(pickle.dumps(CodeRun(world.mark)))
        return str(folder / name)

    def remote_code(folder: Path) -> str:
        auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
        config = {"model_type": "evil", "auto_map": auto_map}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(world.mark)!r})\n")
        return f"hf:{folder}"

    def hf_pickle(folder: Path) -> str:
        config = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1}
        config |= {"num_attention_heads": 1, "intermediate_size": 8, "image_size": 16}
        (folder / "config.json").write_text(json.dumps({**config, "patch_size": 8}))
        pickled(folder, "pytorch_model.bin")
        return f"hf:{folder}"

    def local_dir(folder: Path) -> str:
        packaged = Path(vit_sae_cli.__file__).parent / "vit_sae_plugin" / "shapes_clip"
        shutil.copy(packaged / "open_clip_config.json", folder)
        for name in ("open_clip_pytorch_model.bin", "open_clip_model.pt"):
            pickled(folder, name)
        return f"local-dir:{folder}"

    small_clip, small_timm = "ViT-S-32-alt", "timm:vit_tiny_patch16_224"
    models: dict[str, Callable[[Path], tuple[str, dict[str, Any]]]] = {
        "pickle, weights_only false": lambda f: (
            small_clip,
            {"pretrained": pickled(f), "weights_only": False},
        ),
        "pickle as pretrained": lambda f: (small_clip, {"pretrained": pickled(f)}),
        "pickle as image tower": lambda f: (
            small_clip,
            {"pretrained_image_path": pickled(f), "weights_only": False},
        ),
        "pickled array": lambda f: (small_clip, {"pretrained": pickled(f, "w.npz")}),
        "trust_remote_code": lambda f: (remote_code(f), {"trust_remote_code": True}),
        "remote code": lambda f: (remote_code(f), {}),
        "hf: with a pickle": lambda f: (hf_pickle(f), {}),
        "hf: with a pickle, weights_only false": lambda f: (hf_pickle(f), {"weights_only": False}),
        "local-dir: with a pickle": lambda f: (local_dir(f), {"weights_only": False}),
        "timm, checkpoint_path": lambda f: (
            small_timm,
            {"pretrained": False, "checkpoint_path": pickled(f)},
        ),
        "timm, pretrained_cfg": lambda f: (
            small_timm,
            {"pretrained": True, "pretrained_cfg_overlay": {"file": pickled(f)}},
        ),
        "path out of the folder": lambda f: (f"hf:{f}/../{f.name}", {"pretrained": "../x"}),
    }
    for name, model in models.items():

        def in_sae(folder: Path, model: Any = model) -> list[Any]:
            (folder / "model").mkdir()
            model_name, kwargs = model(folder / "model")
            shutil.copytree(world.sae, folder / "sae")
            cfg = json.loads((folder / "sae" / "cfg.json").read_text())
            cfg["metadata"] |= {"model_name": model_name, "model_from_pretrained_kwargs": kwargs}
            (folder / "sae" / "cfg.json").write_text(json.dumps(cfg))
            _forget_hashes(folder / "sae")
            return ["eval", folder / "sae", "--images", world.photos]

        def in_settings(folder: Path, model: Any = model) -> list[Any]:
            (folder / "model").mkdir()
            model_name, kwargs = model(folder / "model")
            settings = world.settings() | {"dataset_path": str(world.photos)}
            del settings["embeddings_path"]
            settings |= {"model_name": model_name, "model_from_pretrained_kwargs": kwargs}
            path = folder / "config.yaml"
            path.write_text(yaml.safe_dump(settings))
            return ["train", "--config", path, "--output-path", folder / "run"]

        yield f"SAE folder: {name}", in_sae
        yield f"settings: {name}", in_settings


def _evil_files(world: World) -> Iterator[tuple[str, Callable[[Path], list[Any]]]]:
    pipe = f"wds:pipe:mkdir {world.mark}"

    def settings_file(folder: Path, images_from: str) -> list[Any]:
        settings = world.settings() | {"dataset_path": images_from}
        del settings["embeddings_path"]
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return ["train", "--config", folder / "config.yaml", "--output-path", folder / "run"]

    def resumed(folder: Path) -> list[Any]:
        shutil.copytree(world.folder / "image-run", folder / "run")
        path = folder / "run" / "config.yaml"
        settings = yaml.safe_load(path.read_text()) | {"dataset_path": pipe}
        path.write_text(yaml.safe_dump(settings))
        return ["train", "--resume", folder / "run"]

    def yaml_tag(folder: Path) -> list[Any]:
        text = f"lr: !!python/object/apply:os.mkdir ['{world.mark}']\n"
        (folder / "config.yaml").write_text(text)
        return ["train", "--config", folder / "config.yaml", "--output-path", folder / "run"]

    def objects(folder: Path) -> list[Any]:
        np.save(folder / "r.npy", np.array([CodeRun(world.mark)], dtype=object), allow_pickle=True)
        return ["train", "--embeddings", folder / "r.npy", "--output-path", folder / "run"]

    def pickled_rows(folder: Path) -> list[Any]:
        (folder / "r.npy").write_bytes(pickle.dumps(CodeRun(world.mark)))
        return ["train", "--embeddings", folder / "r.npy", "--output-path", folder / "run"]

    def pickled_weights(folder: Path) -> list[Any]:
        shutil.copytree(world.sae, folder / "sae")
        content = pickle.dumps(CodeRun(world.mark))
        (folder / "sae" / "sae_weights.safetensors").write_bytes(content)
        _forget_hashes(folder / "sae")
        return ["export", folder / "sae", folder / "out"]

    def trainer_state(folder: Path) -> list[Any]:
        shutil.copytree(world.run, folder / "run")
        for checkpoint in (folder / "run" / "checkpoints").iterdir():
            (checkpoint / "trainer_state.pt").write_bytes(pickle.dumps(CodeRun(world.mark)))
            _rehash(checkpoint)
        return ["train", "--resume", folder / "run"]

    yield "settings: wds:pipe", lambda folder: settings_file(folder, pipe)
    yield "settings: wds: list with a pipe", lambda f: settings_file(f, f"{pipe}::a.tar")
    yield "settings: YAML tag", yaml_tag
    yield "resumed run: wds:pipe", resumed
    yield "embeddings: objects", objects
    yield "embeddings: pickle", pickled_rows
    yield "SAE folder: pickle for weights", pickled_weights
    yield "checkpoint: pickled trainer state", trainer_state


KINDS = {
    "SAE folders": sae_folders,
    "settings": settings_files,
    "embeddings": embeddings_files,
    "images": images,
    "atlases": atlases,
    "checkpoints": checkpoints,
    "arguments": arguments,
    "code in files": code_in_files,
}


def _nan(path: Path, rng: random.Random) -> None:
    weights = load_file(path)
    weights[rng.choice(sorted(weights))].view(-1)[0] = rng.choice([math.nan, math.inf, -math.inf])
    save_file(weights, path)


def _reshape(path: Path, rng: random.Random) -> None:
    weights = load_file(path)
    name = rng.choice(sorted(weights))
    shape = rng.choice([(3,), (2, 2), (), (0,), (1, *weights[name].shape)])
    weights[name] = torch.zeros(shape)
    save_file(weights, path)


def _drop(path: Path, rng: random.Random) -> None:
    weights = load_file(path)
    del weights[rng.choice(sorted(weights))]
    save_file(weights, path)


def _add(path: Path, rng: random.Random) -> None:
    save_file({**load_file(path), rng.choice(["scaling_factor", "x"]): torch.full((2,), 3.0)}, path)


def _other_dtype(path: Path, rng: random.Random) -> None:
    kind = rng.choice([torch.int8, torch.bool, torch.float64, torch.complex64])
    save_file({name: tensor.to(kind) for name, tensor in load_file(path).items()}, path)


def _as_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _damage_bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    how = rng.choice(["emptied", "cut", "bit flipped", "zeroed", "random", "longer"])
    if how == "emptied":
        content = bytearray()
    elif how == "cut":
        content = content[: rng.randrange(len(content) + 1)]
    elif how == "bit flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "zeroed":
        content = bytearray(len(content))
    elif how == "random":
        content = bytearray(rng.randbytes(min(len(content), 300)))
    elif how == "longer":
        content += rng.randbytes(20)
    path.write_bytes(bytes(content))
    return how


_WEIGHT_DAMAGE: dict[str, Callable[[Path, random.Random], Any]] = {
    "not finite": _nan,
    "other shape": _reshape,
    "tensor missing": _drop,
    "tensor too many": _add,
    "other number format": _other_dtype,
    "bytes": _damage_bytes,
    "missing": lambda path, rng: path.unlink(),
    "a folder": _as_folder,
}


def _edit(values: dict[str, Any], rng: random.Random, also: list[str]) -> str:
    """Change one entry, at any depth; returns what was changed."""
    inner = [name for name, value in values.items() if isinstance(value, dict) and value]
    if inner and rng.random() < 0.4:
        name = rng.choice(sorted(inner))
        return f"{name}.{_edit(values[name], rng, also)}"
    name = rng.choice([*sorted(values), *also, "no_such_name"])
    if name in values and name != "training_tokens" and rng.random() < 0.1:
        del values[name]
        return f"no {name}"
    value = rng.choice(JUNK)
    if name in ("training_tokens", "n_workers", "training_epochs") and value in (10**15, math.inf):
        value = -5  # that many would be trained on, or started
    values[name] = value
    return f"{name}={value!r}"[:60]


def _edit_json(path: Path, rng: random.Random) -> str:
    if rng.random() < 0.1:
        text = rng.choice(["", "{", "null", "[]", "5", '"x"', "[" * 5000, "\x00"])
        path.write_text(text)
        return repr(text[:10])
    values = json.loads(path.read_text())
    name = _edit(values, rng, also=["metadata", "architecture", "d_in", "k"])
    path.write_text(json.dumps(values))
    return name


def _edit_yaml(path: Path, rng: random.Random) -> str:
    values = yaml.safe_load(path.read_text())
    name = _edit(values, rng, also=["k"])
    path.write_text(yaml.safe_dump(values), encoding="utf-8", errors="surrogateescape")
    return name


def _tensors(path: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
    save_file(tensors, path, metadata=metadata)


def _forget_hashes(folder: Path) -> None:
    """What an attacker, or a program that keeps no hashes, would leave."""
    (folder / "manifest.json").unlink(missing_ok=True)


def _rehash(folder: Path) -> None:
    """Hashes that fit the damaged files: then only the reader's own checks are left."""
    manifest = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "manifest.json":
            content = path.read_bytes()
            manifest[path.name] = {"size": len(content), "sha256": sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _rehash_atlas(folder: Path) -> None:
    """The same for an atlas, whose hashes are in its description."""
    path = folder / "atlas.json"
    with suppress(OSError, ValueError, TypeError, AttributeError):
        described = json.loads(path.read_text())
        described.pop("sha256", None)
        for name in described.get("files", {}):
            content = (folder / name).read_bytes()
            described["files"][name] = {
                "size": len(content),
                "sha256": sha256(content).hexdigest(),
            }
        path.write_text(json.dumps(described))


def _fresh(world: World) -> Path:
    shutil.rmtree(world.folder / "case", ignore_errors=True)
    (world.folder / "case").mkdir()
    return world.folder / "case"


def _copy(world: World, folder: Path) -> Path:
    return Path(shutil.copytree(folder, _fresh(world) / folder.name))


def _use_sae(world: World, folder: Path, command: str) -> list[Any]:
    if command == "export":
        return ["export", folder, folder.parent / "out"]
    if command == "card":
        return ["card", folder]
    if command == "frontier":
        saes = ("frontier", world.sae, folder, "--names", "sound,broken")
        return [*saes, "--images", world.photos, "--output-path", folder.parent / "out"]
    return [command, folder, "--images", world.photos, "--output-path", folder.parent / "out"]


class _NoEndError(BaseException):
    """A case took too long."""


def _alarm(signum: int, frame: Any) -> None:
    raise _NoEndError


def outcome(world: World, case: Case) -> tuple[str, str]:
    """Run a case; returns how it ended and what it said last."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    told = ""
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS_A_CASE)
    try:
        # a case may name a folder by anything, so it stands in one where that does no harm
        working = chdir(world.working)
        with working, redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = vit_sae_cli.main([str(arg) for arg in case.argv])
    except SystemExit as stopped:
        code = stopped.code
    except _NoEndError:
        code = "no end"
    except BaseException:
        told = traceback.format_exc()
    finally:
        signal.alarm(0)
    said = err.getvalue()
    lines = [line for line in said.splitlines() if line.startswith("vit-sae")]
    last = (told or said).strip().splitlines()[-1:] or [""]
    if world.mark.exists():
        shutil.rmtree(world.mark)
        return "code run", last[0]
    if code == "no end":
        return "no end", ""
    if told or "Traceback (most recent call last)" in said:
        return "traceback", told or said
    if code == 0:
        return "accepted", ""
    errors = [line for line in lines if "error: " in line]
    if len(errors) == 1 and last[0] == errors[0]:
        return "one line", last[0]
    return "several lines", said


def run_cases(
    world: World, kinds: list[str], n_cases: int, seed: int, verbose: bool = False
) -> tuple[pd.DataFrame, list[tuple[Case, str, str]]]:
    """The table of outcomes, and the cases that ended badly with what they said."""
    table = pd.DataFrame(0, index=kinds, columns=["cases", *OUTCOMES])
    faults = []
    for kind in kinds:
        generator = KINDS[kind](world, random.Random(f"{seed} {kind}"))
        for _ in range(n_cases):
            case = next(generator)
            ended, said = outcome(world, case)
            table.loc[kind, ["cases", ended]] += 1
            if ended in FAULTS:
                faults.append((case, ended, said))
            if verbose:
                print(f"{kind:14} {ended:10} {case.name}\n    {said.strip()[-300:]}", flush=True)
    table.loc["all"] = table.sum()
    return table, faults


def main() -> int:
    """Run, print the table and the faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--n-cases", type=int, default=60, help="of each kind (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--verbose", action="store_true", help="print every case")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.set_num_threads(1)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.build()
        table, faults = run_cases(world, args.kinds, args.n_cases, args.seed, args.verbose)
    for case, ended, said in faults:
        tail = "\n        ".join(said.strip().splitlines()[-3:])
        print(f"{ended}: {case.kind}: {case.name}\n        {tail}")
    print(table.to_string())
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
