"""Open another project's SAE as one of SAELens's, in one line."""

from __future__ import annotations

import hashlib
import inspect
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.inert_pickle import UnsafeFileError
from vit_sae_plugin.near_names import near_names
from vit_sae_plugin.pretrained.format import Format
from vit_sae_plugin.pretrained.kinds import FORMATS
from vit_sae_plugin.pretrained.read_sae import ReadSAE
from vit_sae_plugin.pretrained.source_files import HubError, SourceFiles, from_hub, source_files
from vit_sae_plugin.pretrained.zoo import zoo_source
from vit_sae_plugin.tensor_files import UnreadableFileError

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

SAE_LENS = "sae_lens"
"""The kind of a folder that SAELens saves."""
WHAT_IT_READS = ("model_name", "model_from_pretrained_kwargs", "hook_name", "token_kind", "licence")
"""Metadata that any SAE can be given as options, in place of what its file says."""
_EMPTY_METADATA: dict[str, Any] = {
    "model_class_name": "HookedViT",
    "model_name": None,
    "model_from_pretrained_kwargs": {},
    "hook_name": None,
    "token_kind": None,
    "seqpos_slice": [None],
    "n_prefix_tokens": None,
    "grid": None,
    "n_tokens": None,
    "image_size": None,
    "patch_size": None,
    "preprocessing": None,
    "input_scaling": None,
    "input_statistics": None,
}
_TOKEN_KINDS = ("all", "patches", "cls")
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


def load_pretrained_sae(
    source: str, *, device: str = "cpu", dtype: str = "float32", **options: Any
) -> SAE[Any]:
    """Open an SAE of another project, without running any code that its file may hold.

    Nothing is guessed: what a file doesn't say and what decides the outputs (an activation, a
    threshold, the statistics of its input) must be stated as an option; the error says which.

    Args:
        source: the name of a released SAE (``vit-sae zoo`` lists them), or ``NAME/FILE`` where it
            has several files; ``KIND:PATH``, a file or folder; or ``KIND:ORG/REPO[/FILE]`` on the
            Hugging Face hub. Kinds: ``patchsae``, ``msae``, ``prisma``, ``saev``, ``clipscope``,
            ``overcomplete``, ``dictionary_learning``, ``sae_for_vlm``, ``dn_cbm``, ``sparsify``,
            ``visaebench``; and ``sae_lens``, a folder that SAELens or this package saved, here or
            on the hub, which takes no options but ``force_download``; one that is here is checked
            as ``vit_sae_plugin.saes.load_saved_sae`` does.
        device: where the SAE is put.
        dtype: its number format.
        **options: of the kind (see ``vit_sae_plugin.pretrained.formats``); ``model_name``,
            ``model_from_pretrained_kwargs``, ``hook_name``, ``token_kind`` and ``licence`` in
            place of what the file says; ``revision`` and ``force_download`` for the hub.

    Returns:
        The SAE: of SAELens's own class where SAELens has the function that the source computes.
        Its metadata name the model, hook and tokens (None where the file doesn't say, with a
        warning), the input's statistics, the source, its licence and its settings;
        ``sae.save_model(folder)`` makes a SAELens folder of it.

    Raises:
        ValueError: an unknown name, kind or option; a file that is damaged or asks to run code;
            settings that contradict the weights; something missing that must be stated.
        FileNotFoundError: no such file, or no single one.
        HubError: the hub can't be reached, or hasn't got it.
    """
    from sae_lens import SAE

    if ":" not in source:
        source = zoo_source(source)
    kind, _, place = source.partition(":")
    if kind == SAE_LENS:
        return _saved_by_sae_lens(place, device, dtype, **options)
    config, weights = read_pretrained(kind, place, device=device, dtype=dtype, **options)
    missing = [
        name for name in ("model_name", "hook_name", "token_kind") if not config["metadata"][name]
    ]
    if missing:
        warnings.warn(
            f"{source} doesn't say {', '.join(missing)}; state "
            f"{', '.join(f'{name}=…' for name in missing)} to use it on a model",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty")
        return SAE.load_from_disk(
            place, device=device, converter=lambda path, device, cfg_overrides: (config, weights)
        )


def _saved_by_sae_lens(
    place: str, device: str, dtype: str, force_download: bool = False, **options: Any
) -> SAE[Any]:
    from sae_lens import SAE

    from vit_sae_plugin.saved_sae import load_saved_sae

    if options:
        raise ValueError(
            f"{SAE_LENS} has no option {next(iter(options))!r}; its folder says everything"
        )
    folder = Path(place).expanduser()
    if folder.is_dir():
        return load_saved_sae(folder, device, dtype)
    organisation, _, rest = place.partition("/")
    repository, _, sae_id = rest.partition("/")
    if not (organisation and repository and sae_id):
        raise FileNotFoundError(
            f"there is no folder {place!r}; want {SAE_LENS}:PATH or {SAE_LENS}:ORG/REPO/SAE_ID"
        )
    release = f"{organisation}/{repository}"
    return from_hub(
        place,
        lambda: SAE.from_pretrained(
            release, sae_id, device=device, dtype=dtype, force_download=force_download
        ),
    )


def read_pretrained(
    kind: str,
    place: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    force_download: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What SAELens's loaders return, config and weights, for a file of this kind.

    Args and errors are those of ``load_pretrained_sae``.
    """
    found = _format(kind)
    if not str(place):
        raise ValueError(f"want {kind}:PATH or {kind}:ORG/REPO[/FILE], with a path or repository")
    stated = {name: options.pop(name) for name in WHAT_IT_READS if name in options}
    _check_options(found, options)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; want one of {', '.join(_DTYPES)}")
    files = source_files(place, revision=revision, force_download=force_download)
    try:
        read = found.read(files, **options)
        read.check()
    except (UnsafeFileError, UnreadableFileError) as error:
        raise type(error)(f"{kind}:{_file_label(files)}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{kind}:{_file_label(files)}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{kind}:{_file_label(files)}: it isn't laid out as {kind}'s files are "
            f"({type(error).__name__}: {error})"
        ) from error
    read.metadata = _metadata(read, found, files, stated)
    return read.sae_lens_pair(device, dtype)


def options_of(kind: str) -> list[str]:
    """The options that a kind's reader takes beside those of every kind."""
    parameters = inspect.signature(_format(kind).read).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _format(kind: str) -> Format:
    if kind not in FORMATS:
        near = near_names(kind, FORMATS)
        raise ValueError(
            f"{kind!r} is no kind of SAE; want KIND:PATH or KIND:ORG/REPO with one of "
            f"{', '.join([*FORMATS, SAE_LENS])}" + (f" (near: {near[0]})" if near else "")
        )
    return FORMATS[kind]


def _check_options(found: Format, options: dict[str, Any]) -> None:
    known = [*options_of(found.kind), *WHAT_IT_READS, "revision", "force_download"]
    for name in options:
        if name not in known:
            near = near_names(name, known)
            raise ValueError(
                f"{found.kind} has no option {name!r}; it has {', '.join(known)}"
                + (f" (near: {near[0]})" if near else "")
            )


def _metadata(
    read: ReadSAE, found: Format, files: SourceFiles, stated: dict[str, Any]
) -> dict[str, Any]:
    metadata = {**_EMPTY_METADATA, **read.metadata}
    licence = stated.pop("licence", None) or found.licence or _stated_licence(files)
    metadata |= stated
    if metadata["token_kind"] not in (None, *_TOKEN_KINDS):
        raise ValueError(
            f"token_kind is {metadata['token_kind']!r}; want one of {', '.join(_TOKEN_KINDS)}"
        )
    return metadata | {
        "source": f"{found.kind}:{_file_label(files)}",
        "source_project": found.project,
        "source_url": found.url,
        "source_sha256": _sha256(files.main_file),
        "licence": licence,
        "source_settings": read.training,
    }


def _file_label(files: SourceFiles) -> str:
    """The file as the user could name it again, without the folders of this machine."""
    chosen_part = files.main_name.removeprefix(files.chosen).strip("/")
    return f"{files.label.rstrip('/')}/{chosen_part}" if chosen_part else files.label


def _stated_licence(files: SourceFiles) -> str | None:
    """What the front matter of a README beside the file says."""
    try:
        readme = files.beside("README.md", levels=3)
        text = "" if readme is None else readme.read_text(encoding="utf-8", errors="replace")
    except (HubError, OSError):
        return None
    front = _FRONT_MATTER.match(text)
    if front is None:
        return None
    line = re.search(r"^license:\s*(\S.*?)\s*$", front[1], re.MULTILINE)
    return line[1].strip("\"'") if line else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
