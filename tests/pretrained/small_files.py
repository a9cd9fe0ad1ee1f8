"""Small files in the exact layouts of other projects, each with its project's formula.

The formulas are written out here by themselves, in double precision, from the papers and the
projects' descriptions; nothing of ``vit_sae_plugin.pretrained`` is used.
"""

from __future__ import annotations

import gzip
import json
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

D_IN, D_SAE, K = 6, 10, 4

Function = Callable[[Tensor], Tensor]
Writer = Callable[[Path], Path]


@dataclass
class SmallFile:
    """A file's layout and what it computes."""

    name: str
    """The kind of file, then what is special about this one."""
    write: Writer
    """Writes it into a folder and returns what to open."""
    encode: Function
    decode: Function
    sae_class: str
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    """What its metadata must hold."""

    @property
    def kind(self) -> str:
        return self.name.split()[0]

    def __str__(self) -> str:
        return self.name


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


W_ENC, B_ENC = numbers(1, D_IN, D_SAE), 0.3 * numbers(2, D_SAE)
W_DEC, B_DEC = numbers(3, D_SAE, D_IN), 0.5 * numbers(4, D_IN)
R_MAG, B_MAG = 0.3 * numbers(5, D_SAE), 0.2 * numbers(6, D_SAE)
THRESHOLDS = 0.2 + 0.3 * numbers(7, D_SAE).abs()
MEAN, SCALE = 0.4 * numbers(8, D_IN), 1.7


def weights() -> dict[str, Tensor]:
    return {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}


# --- pieces of formulas -----------------------------------------------------------------------


def centred(x: Tensor) -> Tensor:
    """(x − b_dec) W_enc + b_enc."""
    return (x.double() - B_DEC.double()) @ W_ENC.double() + B_ENC.double()


def uncentred(x: Tensor) -> Tensor:
    """x W_enc + b_enc."""
    return x.double() @ W_ENC.double() + B_ENC.double()


def relu(h: Tensor) -> Tensor:
    return torch.where(h > 0, h, torch.zeros_like(h))


def above(h: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(h > threshold, relu(h), torch.zeros_like(h))


def at_least(f: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(f >= threshold, f, torch.zeros_like(f))


def top(h: Tensor, k: int = K) -> Tensor:
    """The k largest of each row, whatever their sign; zeros elsewhere."""
    kept = torch.zeros_like(h)
    for row in range(len(h)):
        for latent in sorted(range(h.shape[1]), key=lambda i: -h[row, i].item())[:k]:
            kept[row, latent] = h[row, latent]
    return kept


def decoded(f: Tensor, W_dec: Tensor = W_DEC, b_dec: Tensor = B_DEC) -> Tensor:
    return f.double() @ W_dec.double() + b_dec.double()


def standardized(x: Tensor) -> Tensor:
    return (x.double() - MEAN.double()) * SCALE


def restored(x: Tensor) -> Tensor:
    return x / SCALE + MEAN.double()


def capped(f: Tensor, cap: float) -> Tensor:
    return cap * (f / cap).tanh()


def gated(x: Tensor) -> Tensor:
    h = (x.double() - B_DEC.double()) @ W_ENC.double()
    magnitude = relu(h * R_MAG.double().exp() + B_MAG.double())
    return torch.where(h + B_ENC.double() > 0, magnitude, torch.zeros_like(h))


class RowNormed:
    """A formula on rows of mean 0 and (unbiased) deviation 1, which its decoder undoes."""

    def __init__(self, activation: Function) -> None:
        self.activation = activation

    def encode(self, x: Tensor) -> Tensor:
        x = x.double()
        self.mean = x.mean(dim=-1, keepdim=True)
        squares = (x - self.mean).square().sum(dim=-1, keepdim=True)
        self.std = (squares / (x.shape[-1] - 1)).sqrt()
        return self.activation(centred((x - self.mean) / (self.std + 1e-5)))

    def decode(self, f: Tensor) -> Tensor:
        return decoded(f) * self.std + self.mean


class NormRescaled:
    """A formula on rows of norm √d, which its decoder undoes."""

    def encode(self, x: Tensor) -> Tensor:
        self.factor = D_IN**0.5 / x.double().norm(dim=-1, keepdim=True)
        return relu(centred(x.double() * self.factor))

    def decode(self, f: Tensor) -> Tensor:
        return decoded(f) / self.factor


@contextmanager
def another_project(module: str, *classes: Any) -> Iterator[None]:
    """Let classes be pickled under the name of a module that is gone when the file is read."""
    parts = module.split(".")
    made = {".".join(parts[: i + 1]): types.ModuleType(".") for i in range(len(parts))}
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    for thing in classes:
        thing.__module__, thing.__qualname__ = module, thing.__name__
        setattr(made[module], thing.__name__, thing)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


# --- PatchSAE ---------------------------------------------------------------------------------


def write_patchsae(folder: Path, ending: str = ".pt", old: bool = False, **changed: Any) -> Path:
    class ViTSAERunnerConfig:
        pass

    config = ViTSAERunnerConfig()
    config.__dict__ |= {
        "model_name": "openai/clip-vit-base-patch16",
        "module_name": "resid",
        "block_layer": -2,
        "class_token": False,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "l1_coefficient": 8e-5,
        "gated_sae": False,
        "dtype": torch.float32,
        "device": torch.device("cuda"),
        **changed,
    }
    contents = {"cfg": config, "state_dict": weights()}
    path = folder / f"clip-vit-base-patch16_-2_resid_10{ending}"
    with another_project("src.sae_training.config", ViTSAERunnerConfig):
        if ending == ".pt":
            torch.save(contents, path, _use_new_zipfile_serialization=not old)
        elif ending == ".pkl.gz":
            with gzip.open(path, "wb") as file:
                pickle.dump(contents, file)
        else:
            path.write_bytes(pickle.dumps(contents, protocol=4))
    return path


def patchsae(container: str, **how: Any) -> SmallFile:
    return SmallFile(
        f"patchsae {container}",
        lambda folder: write_patchsae(folder, **how),
        lambda x: relu(centred(x)),
        decoded,
        "StandardSAE",
        metadata={
            "model_name": "hf:openai/clip-vit-base-patch16",
            "hook_name": "blocks.10.hook_resid_post",
            "token_kind": "all",
            "n_prefix_tokens": 1,
            "grid": [14, 14],
            "n_tokens": 197,
        },
    )


# --- MSAE -------------------------------------------------------------------------------------


def write_msae(middle: str, *, tied: bool = False, **changed: Any) -> Writer:
    def write(folder: Path) -> Path:
        model = {
            "pre_bias": B_DEC,
            "encoder": W_ENC,
            "latent_bias": B_ENC,
            "latents_activation_frequency": torch.zeros(D_SAE, dtype=torch.int64),
        }
        if not tied:
            model["decoder"] = W_DEC
        if "JumpReLU" in middle:
            model["activation.log_threshold"] = THRESHOLDS.log()
        contents = {
            "model": model,
            "mean_center": MEAN,
            "scaling_factor": SCALE,
            "target_norm": D_IN**0.5,
            **changed,
        }
        kept = {name: value for name, value in contents.items() if value is not None}
        path = folder / f"{D_SAE}_{D_IN}_{middle}_cc3m_ViT-L~14_train_image_2905936_6.pth"
        torch.save(kept, path)
        return path

    return write


def msae(middle: str, sae_class: str, activation: Function, **options: Any) -> SmallFile:
    tied = "_True_" in middle
    return SmallFile(
        f"msae {middle}" + "".join(f" {name}" for name in options),
        write_msae(middle, tied=tied),
        lambda x: activation(centred(standardized(x))),
        lambda f: restored(decoded(f, W_ENC.T if tied else W_DEC)),
        sae_class,
        options,
        {
            "model_name": "ViT-L-14",
            "model_from_pretrained_kwargs": {"pretrained": "openai"},
            "hook_name": "hook_image_embed",
            "licence": "MIT",
        },
    )


# --- ViT-Prisma -------------------------------------------------------------------------------


def prisma_settings(**changed: Any) -> dict[str, Any]:
    settings = {
        "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "hook_point_layer": 9,
        "layer_subtype": "hook_resid_post",
        "cached_activations_path": "activations/blocks.3.hook_mlp_out",
        "context_size": 50,
        "use_patches_only": False,
        "cls_token_only": False,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "normalize_activations": None,
        "architecture": "standard",
        "device": {"__type__": "torch.device", "value": "cuda"},
        "dtype": {"__type__": "torch.dtype", "value": "torch.float32"},
    }
    return settings | changed


def write_prisma(layout: str = "folder", *, without: str = "", **changed: Any) -> Writer:
    def write(folder: Path) -> Path:
        settings, tensors = prisma_settings(**changed), weights()
        settings.pop(without, None)
        if changed.get("architecture") == "gated":
            tensors |= {"b_gate": B_ENC, "b_mag": B_MAG, "r_mag": R_MAG}
        path = folder / ("n_images_2600058.pt" if layout == "folder" else "weights.pt")
        if layout == "folder":
            torch.save(tensors, path)
            (folder / "config.json").write_text(json.dumps(settings))
            (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# An SAE\n")
            return folder
        if layout == "pickled":

            class VisionModelSAERunnerConfig:
                pass

            config = VisionModelSAERunnerConfig()
            config.__dict__ |= settings
            with another_project("vit_prisma.sae.config", VisionModelSAERunnerConfig):
                torch.save({"cfg": config, "state_dict": tensors}, path)
        else:
            torch.save({"config": settings, "autoencoder": {"state_dict": tensors}}, path)
        return path

    return write


def prisma(
    what: str, encode: Function, decode: Function, sae_class: str, write: Writer, **metadata: Any
) -> SmallFile:
    common = {
        "model_name": "hf-hub:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "hook_name": "blocks.9.hook_resid_post",
        "token_kind": "all",
    }
    return SmallFile(f"prisma {what}", write, encode, decode, sae_class, metadata=common | metadata)


# --- saev -------------------------------------------------------------------------------------


def write_saev(header: dict[str, Any], **more: Tensor) -> Writer:
    def write(folder: Path) -> Path:
        with (folder / "sae.pt").open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            torch.save(weights() | more, file)
        return folder

    return write


def saev_header(schema: int, activation: str, **parameters: Any) -> dict[str, Any]:
    return {
        "schema": schema,
        "cfg": {
            "d_model": D_IN,
            "d_sae": D_SAE,
            "activation": {"cls": activation, "params": parameters},
        },
        "commit": "0123abc",
        "lib": "0.1.0",
    }


def write_old_saev(folder: Path) -> Path:
    """Without a schema: d_sae follows from the factor, so this one is as wide as its input."""
    tensors = {
        "W_enc": W_ENC[:, :D_IN].contiguous(),
        "b_enc": B_ENC[:D_IN].contiguous(),
        "W_dec": W_DEC[:D_IN].contiguous(),
        "b_dec": B_DEC,
    }
    with (folder / "sae.pt").open("wb") as file:
        file.write(b'{"d_vit": 6, "exp_factor": 1, "sparsity_coeff": 0.0004, "seed": 42}\n')
        torch.save(tensors, file)
    return folder / "sae.pt"


def saev(what: str, encode: Function, sae_class: str, write: Writer, **options: Any) -> SmallFile:
    return SmallFile(f"saev {what}", write, encode, decoded, sae_class, options)


# --- CLIP-Scope -------------------------------------------------------------------------------


def write_clipscope(folder: Path, **changed: Any) -> Path:
    path = folder / "22_resid" / "1200013184.pt"
    path.parent.mkdir(exist_ok=True)
    contents = {
        "n_features": D_SAE,
        "d_in": D_IN,
        "k": K,
        "model_state_dict": {"pre_b": B_DEC, "enc": W_ENC, "dec": W_DEC},
        **changed,
    }
    torch.save({name: v for name, v in contents.items() if v is not None}, path)
    return path


# --- overcomplete -----------------------------------------------------------------------------

ATOMS = W_DEC / W_DEC.norm(dim=1, keepdim=True)
MULTIPLIER = torch.tensor(0.3)
BN_MEAN, BN_VARIANCE = 0.3 * numbers(9, D_SAE), 0.5 + numbers(10, D_SAE).abs()
POINTS, MIXTURE, RELAX = numbers(11, 7, D_IN), numbers(12, D_SAE, 7), numbers(13, D_SAE, D_IN)


def overcomplete_state(
    batch_norm: bool = False, atoms: Tensor = ATOMS, **more: Tensor
) -> dict[str, Tensor]:
    state = {
        "encoder.final_block.0.weight": W_ENC.T.contiguous(),
        "encoder.final_block.0.bias": B_ENC,
        "dictionary._weights": atoms,
        "dictionary.multiplier": MULTIPLIER,
        **more,
    }
    if batch_norm:
        state |= {
            "encoder.final_block.1.weight": R_MAG.exp(),
            "encoder.final_block.1.bias": B_MAG,
            "encoder.final_block.1.running_mean": BN_MEAN,
            "encoder.final_block.1.running_var": BN_VARIANCE,
            "encoder.final_block.1.num_batches_tracked": torch.tensor(5),
        }
    return state


def write_overcomplete(**state: Any) -> Writer:
    def write(folder: Path) -> Path:
        torch.save(overcomplete_state(**state), folder / "sae.pth")
        return folder / "sae.pth"

    return write


def write_archetypal(folder: Path) -> Path:
    state = overcomplete_state()
    del state["dictionary._weights"]
    state |= {"dictionary.C": POINTS, "dictionary.W": MIXTURE, "dictionary.Relax": RELAX}
    torch.save(state, folder / "ra_sae.pth")
    return folder / "ra_sae.pth"


def write_overcomplete_module(folder: Path) -> Path:
    """A whole pickled BatchTopK module, as overcomplete's own users save them."""

    class MLPEncoder(nn.Module):
        pass

    class DictionaryLayer(nn.Module):
        pass

    class BatchTopKSAE(nn.Module):
        pass

    def normalize_l2(atoms: Tensor) -> Tensor:
        return atoms

    encoder, dictionary, sae = MLPEncoder(), DictionaryLayer(), BatchTopKSAE()
    encoder.final_block = nn.Sequential(nn.Linear(D_IN, D_SAE), nn.BatchNorm1d(D_SAE), nn.ReLU())
    state = overcomplete_state(batch_norm=True)
    encoder.load_state_dict(
        {name.removeprefix("encoder."): v for name, v in state.items() if "encoder" in name}
    )
    dictionary._weights = nn.Parameter(3 * ATOMS)
    dictionary.multiplier = nn.Parameter(MULTIPLIER)
    dictionary.normalization = normalize_l2
    sae.encoder, sae.dictionary = encoder, dictionary
    sae.top_k, sae.running_threshold = 8, torch.tensor(0.25)
    with another_project(
        "overcomplete.sae.batchtopk_sae", MLPEncoder, DictionaryLayer, BatchTopKSAE, normalize_l2
    ):
        torch.save(sae, folder / "sae.pt")
    return folder / "sae.pt"


def codes(x: Tensor) -> Tensor:
    return relu(uncentred(x))


def batch_normed_codes(x: Tensor) -> Tensor:
    h = (uncentred(x) - BN_MEAN.double()) / (BN_VARIANCE.double() + 1e-5).sqrt()
    return relu(h * R_MAG.double().exp() + B_MAG.double())


def from_atoms(f: Tensor) -> Tensor:
    return f @ ATOMS.double() * MULTIPLIER.double().exp()


def from_archetypes(f: Tensor) -> Tensor:
    mixture = relu(MIXTURE.double())
    mixture = mixture / (mixture.sum(dim=1, keepdim=True) + 1e-8)
    norms = RELAX.double().norm(dim=1, keepdim=True)
    relaxation = RELAX.double() * torch.minimum(torch.ones_like(norms), 1.0 / norms)
    return f @ (mixture @ POINTS.double() + relaxation) * MULTIPLIER.double().exp()


def overcomplete(
    what: str, encode: Function, sae_class: str, write: Writer, **options: Any
) -> SmallFile:
    decode = from_archetypes if what == "archetypal" else from_atoms
    return SmallFile(f"overcomplete {what}", write, encode, decode, sae_class, options)


# --- dictionary_learning and sae-for-vlm ------------------------------------------------------


def dictionary_state(dict_class: str) -> dict[str, Tensor]:
    linear = {"encoder.weight": W_ENC.T.contiguous(), "decoder.weight": W_DEC.T.contiguous()}
    biased = linear | {"encoder.bias": B_ENC}
    batch = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.3)}
    groups = {"group_sizes": torch.tensor([4, 6])}
    gates = {"decoder_bias": B_DEC, "r_mag": R_MAG, "gate_bias": B_ENC, "mag_bias": B_MAG}
    return {
        "AutoEncoder": biased | {"bias": B_DEC},
        "AutoEncoderNew": biased | {"decoder.bias": B_DEC},
        "AutoEncoderTopK": biased | {"b_dec": B_DEC} | batch,
        "BatchTopKSAE": biased | {"b_dec": B_DEC} | batch,
        "MatryoshkaBatchTopKSAE": weights() | batch | groups,
        "JumpReluAutoEncoder": weights() | {"threshold": THRESHOLDS},
        "GatedAutoEncoder": linear | gates,
    }[dict_class]


def dictionary_settings(dict_class: str, /, **changed: Any) -> dict[str, Any]:
    settings = {
        "dict_class": dict_class,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 9,
        "lm_name": "a-model",
        "lr": 1e-4,
    }
    return settings | changed


def write_dictionary(
    dict_class: str, /, *, envelope: float | None = None, tensors: Any = None, **changed: Any
) -> Writer:
    def write(folder: Path) -> Path:
        (folder / "trainer_0").mkdir(exist_ok=True)
        settings = dictionary_settings(dict_class, **changed)
        contents: Any = dictionary_state(dict_class) | (tensors or {})
        if envelope is not None:
            contents = {
                "step": 3,
                "ae": contents,
                "optimizer": {"state": {}, "param_groups": []},
                "config": settings,
                "norm_factor": envelope,
            }
        torch.save(contents, folder / "trainer_0" / "ae.pt")
        file = folder / "trainer_0" / "config.json"
        file.write_text(json.dumps({"trainer": settings, "buffer": {}}))
        return folder

    return write


def dictionary(
    dict_class: str,
    encode: Function,
    sae_class: str,
    envelope: float | None = None,
    **options: Any,
) -> SmallFile:
    factor = envelope or 1.0
    what = dict_class + (" in an envelope" if envelope else "") + "".join(map(str, options))
    return SmallFile(
        f"dictionary_learning {what}",
        write_dictionary(dict_class, envelope=envelope),
        # rows were divided by the factor; latents and rows are in raw units here
        lambda x: factor * encode(x.double() / factor),
        lambda f: factor * decoded(f / factor),
        sae_class,
        options,
        {"model_name": "a-model"},
    )


def write_sae_for_vlm(read_at: str) -> Writer:
    def write(folder: Path) -> Path:
        run = f"imagenet_train_activations_clip-vit-large-patch14-336_{read_at}"
        trainer = folder / f"{run}_matroyshka_batch_top_k_20_x8" / "trainer_0"
        (trainer / "checkpoints").mkdir(parents=True, exist_ok=True)
        path = trainer / "checkpoints" / "ae_100000.pt"
        torch.save(dictionary_state("MatryoshkaBatchTopKSAE"), path)
        settings = dictionary_settings("MatroyshkaBatchTopKSAE", lm_name="", layer="")
        (trainer / "config.json").write_text(json.dumps({"trainer": settings}))
        return path

    return write


def sae_for_vlm(read_at: str, **metadata: Any) -> SmallFile:
    return SmallFile(
        f"sae_for_vlm {read_at}",
        write_sae_for_vlm(read_at),
        lambda x: above(centred(x), 0.3),
        decoded,
        "JumpReLUSAE",
        metadata=metadata | {"model_name": "hf:openai/clip-vit-large-patch14-336"},
    )


# --- DN-CBM, sparsify, ViSAEBench -------------------------------------------------------------


def write_dn_cbm(folder: Path) -> Path:
    state = {
        "tied_bias": B_DEC[None],
        "pre_encoder_bias._bias_reference": B_DEC[None],
        "post_decoder_bias._bias_reference": B_DEC[None],
        "encoder._weight": W_ENC.T[None].contiguous(),
        "encoder._bias": B_ENC[None],
        "decoder._weight": W_DEC.T[None].contiguous(),
    }
    torch.save(state, folder / "sparse_autoencoder_final.pt")
    (folder / "concept_names.csv").write_text("0,cat\n3,red square\n")
    return folder


def write_sparsify(**changed: Any) -> Writer:
    def write(folder: Path) -> Path:
        state = {
            "encoder.weight": W_ENC.T.contiguous(),
            "encoder.bias": B_ENC,
            "W_dec": W_DEC,
            "b_dec": B_DEC,
        }
        save_file(state, folder / "sae.safetensors")
        settings = {"d_in": D_IN, "num_latents": D_SAE, "k": K, "normalize_decoder": True}
        kept = {name: v for name, v in (settings | changed).items() if v is not None}
        (folder / "cfg.json").write_text(json.dumps(kept))
        return folder

    return write


def sparsify(encode: Function, sae_class: str, **changed: Any) -> SmallFile:
    what = " ".join(changed) or "topk"
    return SmallFile(f"sparsify {what}", write_sparsify(**changed), encode, decoded, sae_class)


def write_visaebench(architecture: str, **changed: Any) -> Writer:
    def write(folder: Path) -> Path:
        inside = folder / "batchtopk_8x_k64"
        inside.mkdir(exist_ok=True)
        state = {
            "encoder.weight": W_ENC.T.contiguous(),
            "encoder.bias": B_ENC,
            "decoder.weight": W_DEC,
            "decoder.bias": B_DEC,
        }
        if architecture == "jumprelu":
            state["thresholds"] = THRESHOLDS
        torch.save(state, inside / "sae.pt")
        settings = {
            "architecture": architecture,
            "backbone": "clip_vitb16",
            "layer": 11,
            "d_model": D_IN,
            "dict_size": D_SAE,
            "k": K,
            "threshold": 0.25,
        }
        kept = {name: v for name, v in (settings | changed).items() if v is not None}
        (inside / "config.json").write_text(json.dumps(kept))
        return folder

    return write


def visaebench(architecture: str, activation: Function, sae_class: str) -> SmallFile:
    return SmallFile(
        f"visaebench {architecture}",
        write_visaebench(architecture),
        lambda x: activation(relu(uncentred(standardized(x)))),
        lambda f: restored(decoded(f)),
        sae_class,
        {"input_statistics": {"mean": MEAN, "std": 1 / SCALE}},
        {
            "model_name": "hf:openai/clip-vit-base-patch16",
            "hook_name": "blocks.11.hook_resid_post",
            "token_kind": "patches",
        },
    )


_NORMED, _TOP_NORMED, _RESCALED = RowNormed(relu), RowNormed(lambda h: relu(top(h))), NormRescaled()

SMALL_FILES = [
    patchsae("zip"),
    patchsae("before 1.6", old=True),
    patchsae("pickle", ending=".pkl"),
    patchsae("packed pickle", ending=".pkl.gz"),
    msae("ReLU_003_False_False_0.0", "StandardSAE", relu),
    msae("ReLU_003_True_False_0.0", "StandardSAE", relu),
    msae("ReLU_003_False_False_2.0", "MatryoshkaTopKSAE", lambda h: capped(relu(h), 2.0)),
    msae("TopKReLU_4_False_False_0.0", "TopKSAE", lambda h: relu(top(h))),
    msae("TopKReLU_4_False_False_3.0", "MatryoshkaTopKSAE", lambda h: capped(relu(top(h)), 3.0)),
    msae("TopKReLU_4_RW_False_False_0.0", "MatryoshkaTopKSAE", relu),
    msae("TopKReLU_4_UW_False_False_0.0", "MatryoshkaTopKSAE", lambda h: relu(top(h, 3)), k=3),
    msae("JumpReLU_10_False_False_0.0", "JumpReLUSAE", lambda h: above(h, THRESHOLDS.double())),
    msae("TopK_8_False_False_0.0", "SignedTopKSAE", lambda h: top(h, 8)),
    msae(
        "BatchTopKReLU_4_False_False_0.0",
        "JumpReLUSAE",
        lambda h: above(h, 0.35),
        threshold=0.35,
    ),
    prisma(
        "relu",
        lambda x: relu(centred(x)),
        decoded,
        "StandardSAE",
        write_prisma(),
        licence="apache-2.0",
        n_tokens=50,
        grid=[7, 7],
    ),
    prisma(
        "topk of normed rows",
        _TOP_NORMED.encode,
        _TOP_NORMED.decode,
        "TopKSAE",
        write_prisma(
            activation_fn_str="topk",
            activation_fn_kwargs={"k": K},
            normalize_activations="layer_norm",
        ),
    ),
    prisma(
        "pickled, normed rows",
        _NORMED.encode,
        _NORMED.decode,
        "StandardSAE",
        write_prisma(
            "pickled", normalize_activations="layer_norm", cls_token_only=True, context_size=1
        ),
        token_kind="cls",
    ),
    prisma(
        "envelope, rescaled rows",
        _RESCALED.encode,
        _RESCALED.decode,
        "StandardSAE",
        write_prisma(
            "envelope", normalize_activations="constant_norm_rescale", use_patches_only=True
        ),
        token_kind="patches",
    ),
    prisma("gated", gated, decoded, "GatedSAE", write_prisma(architecture="gated")),
    SmallFile(
        "saev without schema",
        write_old_saev,
        lambda x: relu(
            (standardized(x) - B_DEC.double()) @ W_ENC[:, :D_IN].double() + B_ENC[:D_IN].double()
        ),
        lambda f: restored(decoded(f, W_DEC[:D_IN])),
        "StandardSAE",
        {"input_statistics": {"mean": MEAN, "scale": SCALE}},
    ),
    saev(
        "schema 1, before",
        lambda x: relu(centred(x)),
        "StandardSAE",
        write_saev({"schema": 1, "cls": "Relu", "cfg": {"d_vit": D_IN, "seed": 1}}),
        subtract_b_dec=True,
    ),
    saev(
        "schema 1, since",
        lambda x: top(uncentred(x), 8),
        "SignedTopKSAE",
        write_saev(saev_header(1, "TopK", top_k=8)),
        subtract_b_dec=False,
    ),
    saev(
        "schema 2",
        lambda x: relu(uncentred(x)),
        "StandardSAE",
        write_saev(saev_header(2, "Relu")),
    ),
    saev(
        "schema 3",
        lambda x: relu(uncentred(x)),
        "StandardSAE",
        write_saev(saev_header(3, "Relu")),
    ),
    saev(
        "schema 4",
        lambda x: top(uncentred(x), 8),
        "SignedTopKSAE",
        write_saev(saev_header(4, "TopK", top_k=8)),
    ),
    saev(
        "schema 5",
        lambda x: above(uncentred(x), 0.4),
        "JumpReLUSAE",
        write_saev(
            saev_header(5, "BatchTopK", top_k=3, momentum=0.1),
            **{"activation.threshold": torch.tensor(0.4)},
        ),
    ),
    SmallFile(
        "clipscope",
        write_clipscope,
        lambda x: top((x.double() - B_DEC.double()) @ W_ENC.double(), K),
        decoded,
        "SignedTopKSAE",
        metadata={
            "model_name": "hf:laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
            "hook_name": "blocks.22.hook_resid_post",
            "token_kind": "all",
            "n_tokens": 257,
        },
    ),
    SmallFile(
        "clipscope with negative latents",
        lambda folder: write_clipscope(folder, k=8),
        lambda x: top((x.double() - B_DEC.double()) @ W_ENC.double(), 8),
        decoded,
        "SignedTopKSAE",
    ),
    overcomplete(
        "topk", lambda x: top(codes(x)), "TopKSAE", write_overcomplete(), activation="topk", k=K
    ),
    overcomplete(
        "batchtopk, batch norm",
        lambda x: at_least(batch_normed_codes(x), 0.2),
        "JumpReLUSAE",
        write_overcomplete(batch_norm=True),
        activation="batchtopk",
        threshold=0.2,
    ),
    overcomplete(
        "jump",
        lambda x: at_least(codes(x), THRESHOLDS.double()),
        "JumpReLUSAE",
        write_overcomplete(thresholds=THRESHOLDS.log()),
    ),
    overcomplete(
        "relu, scaled atoms",
        codes,
        "StandardSAE",
        write_overcomplete(atoms=3 * ATOMS),
        activation="relu",
        normalization="l2",
    ),
    overcomplete(
        "module",
        lambda x: at_least(batch_normed_codes(x), 0.25),
        "JumpReLUSAE",
        write_overcomplete_module,
    ),
    overcomplete(
        "archetypal",
        lambda x: top(codes(x)),
        "TopKSAE",
        write_archetypal,
        activation="topk",
        k=K,
        delta=1.0,
    ),
    dictionary("AutoEncoder", lambda x: relu(centred(x)), "StandardSAE"),
    dictionary("AutoEncoderNew", lambda x: relu(uncentred(x)), "StandardSAE"),
    dictionary("AutoEncoderTopK", lambda x: relu(top(centred(x))), "TopKSAE"),
    dictionary(
        "AutoEncoderTopK", lambda x: above(centred(x), 0.3), "JumpReLUSAE", use_threshold=True
    ),
    dictionary("BatchTopKSAE", lambda x: above(centred(x), 0.3), "JumpReLUSAE"),
    dictionary("BatchTopKSAE", lambda x: above(centred(x), 0.3), "JumpReLUSAE", envelope=2.5),
    dictionary("MatryoshkaBatchTopKSAE", lambda x: above(centred(x), 0.3), "JumpReLUSAE"),
    dictionary(
        "JumpReluAutoEncoder", lambda x: above(uncentred(x), THRESHOLDS.double()), "JumpReLUSAE"
    ),
    dictionary("GatedAutoEncoder", gated, "GatedSAE"),
    dictionary("GatedAutoEncoder", gated, "GatedSAE", envelope=2.5),
    sae_for_vlm(
        "22_post_mlp_residual",
        hook_name="blocks.22.hook_resid_post",
        token_kind="cls",
        grid=[24, 24],
    ),
    sae_for_vlm("-1_post_projection", hook_name="hook_image_embed", token_kind="all"),
    SmallFile(
        "dn_cbm",
        write_dn_cbm,
        lambda x: relu(centred(x)),
        decoded,
        "StandardSAE",
        {"model_name": "ViT-B-16", "model_from_pretrained_kwargs": {"pretrained": "openai"}},
        {
            "hook_name": "hook_image_embed",
            "model_name": "ViT-B-16",
            "latent_names": ["cat", None, None, "red square", *[None] * 6],
        },
    ),
    sparsify(lambda x: top(relu(centred(x))), "TopKSAE"),
    sparsify(lambda x: top(relu(uncentred(x))), "TopKSAE", transcode=True),
    sparsify(
        lambda x: torch.where(top(centred(x).abs()) > 0, centred(x), torch.zeros(()).double()),
        "AbsTopKSAE",
        signed=True,
    ),
    visaebench("batchtopk", lambda f: at_least(f, 0.25), "JumpReLUSAE"),
    visaebench("topk", top, "TopKSAE"),
    visaebench("jumprelu", lambda f: above(f, THRESHOLDS.double()), "JumpReLUSAE"),
]
