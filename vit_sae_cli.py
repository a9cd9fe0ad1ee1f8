"""The front door of the ``vit-sae`` command line: it reads arguments, and imports nothing heavy.

It stands outside the package so that ``vit-sae --help`` need not import torch and SAELens, which
``import vit_sae_plugin`` does. Each command's work is in ``vit_sae_plugin/cli/<command>.py``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

FAULT = 1
BAD_INPUT = 2
INTERRUPTED = 130
ISSUES = "https://github.com/vit-sae-plugin/vit-sae-plugin/issues"

_IMAGES_HELP = (
    "where the images are: a folder (sub-folders are classes), 'hf:NAME[:SPLIT]' or a folder "
    "saved by Hugging Face datasets, 'wds:shards-{000..010}.tar', or 'shapes[:train|test]' for "
    "the built-in shape scenes (options as in 'shapes:test?n_images=500&n_objects=1')"
)

_CACHE_HELP = "; or 'cache:FOLDER', the activations that 'vit-sae cache' wrote of them"

_DEBUG_HELP = "show the traceback of an error"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``vit-sae`` command.

    Returns:
        The exit code: 0; 1 for a fault of this package, shown with its traceback; 2 for anything
        that the user can mend, told in one line; 130 when interrupted.
    """
    args = build_parser().parse_args(argv)
    # Worker processes and tokenizers would otherwise warn about each other at every start.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The hub tells each attempt of a download that fails; the error says it once.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    with _warnings_as_lines(args.command):
        try:
            return import_module(f"vit_sae_plugin.cli.{args.command}").run(args) or 0
        except KeyboardInterrupt:
            print("vit-sae: interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read the output has gone, as in ``vit-sae … | head``.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it is flushed at the very end)
            return FAULT
        except Exception as error:
            return _report(error, args)


def _report(error: Exception, args: argparse.Namespace) -> int:
    """Tell what went wrong; returns the exit code."""
    start = f"vit-sae {args.command}: error: "
    try:
        from vit_sae_plugin.cli.error_lines import error_line

        line = error_line(error)
    except ImportError:  # a broken installation, which must not hide what is broken
        line = str(error) if isinstance(error, ImportError) else None
    if args.debug or line is None:
        traceback.print_exception(error)
    if line is None:
        print(
            f"{start}this is a fault of vit-sae, not of your input; please report it with the "
            f"lines above: {ISSUES}",
            file=sys.stderr,
        )
        return FAULT
    print(f"{start}{line}", file=sys.stderr)
    return BAD_INPUT


@contextmanager
def _warnings_as_lines(command: str) -> Iterator[None]:
    """Warnings as one line each, without the line of code that gave them."""

    def as_line(message: object, *place: object) -> str:
        return f"vit-sae {command}: warning: {' '.join(str(message).split())}\n"

    former = warnings.formatwarning
    warnings.formatwarning = as_line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = former


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the way to help."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; '{self.prog} --help' explains\n")


class _Version(argparse.Action):
    """Prints the installed version; asks for it only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vit-sae {version('vit-sae-plugin')}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; building it costs milliseconds."""
    parser = _Parser(
        prog="vit-sae",
        description="Sparse autoencoders for CLIP vision transformers: train them on image "
        "patches, measure them, and look at what their latents mean.",
        epilog="New here? 'vit-sae demo' does everything once, offline, on drawn scenes. "
        "'vit-sae COMMAND --help' explains a command.",
    )
    parser.add_argument("--debug", action="store_true", help=_DEBUG_HELP)
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_cache(commands)
    _add_adapt(commands)
    _add_eval(commands)
    _add_frontier(commands)
    _add_analyze(commands)
    _add_name(commands)
    _add_search(commands)
    _add_convert(commands)
    _add_card(commands)
    _add_zoo(commands)
    _add_export(commands)
    _add_explore(commands)
    return parser


def _command(
    commands, name: str, summary: str, *examples: str, note: str = ""
) -> argparse.ArgumentParser:
    title = "example" if len(examples) == 1 else "examples"
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="\n  ".join([f"{title}:", *examples]) + (f"\n\n{note}" if note else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG_HELP
    )
    return command


def whole_number(text: str) -> int:
    number = float(text)
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text.replace("_", "")) if text.replace("_", "").isdigit() else int(number)


def _add_demo(commands) -> None:
    command = _command(
        commands,
        "demo",
        "train a PatchSAE on drawn scenes, evaluate it and write a page that shows its latents",
        "vit-sae demo --output-path demo-results",
    )
    command.add_argument(
        "--output-path", default="demo-results", metavar="FOLDER", help="default: demo-results"
    )
    command.add_argument(
        "--training-tokens",
        type=whole_number,
        metavar="N",
        help="train on this many tokens instead of the demo's own number",
    )
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def _add_train(commands) -> None:
    command = _command(
        commands,
        "train",
        "train an SAE on the activations of a vision transformer",
        "vit-sae train --images photos/ --model ViT-B-16 --pretrained openai "
        "--output-path runs/photos",
        "vit-sae train --sweep sweep.yaml --images photos/ --output-path runs/sweep",
    )
    start = command.add_argument_group("where the settings come from (flags below override them)")
    start.add_argument(
        "--preset", metavar="NAME", help="settings shipped with the package; 'list' names them"
    )
    start.add_argument("--config", metavar="FILE", help="settings saved as YAML or JSON")
    start.add_argument(
        "--sweep",
        metavar="FILE",
        help="train several SAEs on one stream of rows: YAML with the settings of all (preset, "
        "config, settings) and the changes of each (members, grid); see docs/sweeps.md",
    )
    start.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with the run or the sweep in this folder, exactly where it was",
    )
    command.add_argument("--images", metavar="SOURCE", help=_IMAGES_HELP)
    command.add_argument(
        "--embeddings",
        metavar="FILE",
        help="train on the rows of this .npy, .safetensors or .parquet file instead of on images",
    )
    command.add_argument(
        "--eval-images",
        metavar="SOURCE",
        help="also measure reconstruction on these held-out images, ten times in the run "
        "(--set eval_every_n_steps=N: more or less often)",
    )
    _add_model(command)
    command.add_argument(
        "--hook-name", metavar="HOOK", help="where the SAE sits, such as blocks.10.hook_resid_post"
    )
    command.add_argument(
        "--token-kind", choices=["all", "patches", "cls"], help="which tokens become rows"
    )
    command.add_argument(
        "--architecture",
        metavar="NAME",
        help="patchsae, matryoshka_topk, or any that SAELens has: standard, topk, batchtopk, …",
    )
    width = command.add_mutually_exclusive_group()
    width.add_argument("--d-sae", type=int, metavar="N", help="number of latents")
    width.add_argument(
        "--expansion-factor", type=int, metavar="N", help="number of latents ÷ width of the hook"
    )
    command.add_argument(
        "--training-tokens", type=whole_number, metavar="N", help="rows to train on, such as 2e6"
    )
    command.add_argument("--lr", type=float, metavar="X", help="learning rate")
    command.add_argument("--n-workers", type=int, metavar="N", help="processes that decode images")
    command.add_argument("--seed", type=int, metavar="N")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    command.add_argument("--output-path", metavar="FOLDER", help="the run's folder")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set any other field of ViTSAERunnerConfig, or of the SAE's own config with "
        "'sae.FIELD', such as --set sae.l1_coefficient=1e-4; may be repeated",
    )


def _add_cache(commands) -> None:
    command = _command(
        commands,
        "cache",
        "write a model's activations to disk once, to train any number of SAEs from them",
        "vit-sae cache caches/photos --images photos/ --model ViT-B-16 --pretrained openai "
        "--hook-name blocks.8.hook_resid_post blocks.10.hook_resid_post --dtype bfloat16",
        "vit-sae cache caches/photos --verify",
        "vit-sae cache caches/photos --repair",
        note="All hooks are read in one forward pass an image. Give the same command again to go "
        "on after any kind of\nend, or at the same time from other processes: each writes shards "
        "that no other has. With a finished\ncache and no other flags, the command says what is in "
        "it. The format is described in docs/cache_format.md.",
    )
    command.add_argument("folder", metavar="CACHE", help="the cache's folder")
    what = command.add_argument_group("what to write")
    what.add_argument("--images", metavar="SOURCE", help=_IMAGES_HELP)
    _add_model(what)
    what.add_argument(
        "--hook-name",
        nargs="+",
        metavar="HOOK",
        help="one or several, such as blocks.10.hook_resid_post (default: the output of the block "
        "before the last)",
    )
    what.add_argument(
        "--token-kind",
        choices=["all", "patches", "cls"],
        help="which tokens of an image become rows (default: all)",
    )
    what.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        help="number format on disk; 16 bits take half the room of float32 (the default), int8 "
        "with a scale for each row a quarter",
    )
    what.add_argument(
        "--add",
        action="store_true",
        help="also take in those of these images that a finished cache lacks",
    )
    how = command.add_argument_group("how to write it (default: what the cache was begun with)")
    how.add_argument(
        "--images-per-shard",
        type=whole_number,
        metavar="N",
        help="images of a shard, the unit that is written whole; a multiple of "
        "--batch-size-images (default: some 128 MiB)",
    )
    how.add_argument(
        "--batch-size-images",
        type=whole_number,
        metavar="N",
        help="images the model sees at once (default: 32)",
    )
    how.add_argument(
        "--autocast", action="store_true", default=None, help="run the model under bfloat16"
    )
    how.add_argument(
        "--seed", type=int, metavar="N", help="of the order of rows within shards (default: 0)"
    )
    how.add_argument(
        "--n-workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode images (default: 0, in the main one)",
    )
    how.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    how.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="ray: each shard a task of a Ray cluster, or of one on this machine's processors; "
        "what dies is run again (default: local, this process, or those that torchrun starts)",
    )
    how.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the cluster, such as 'auto' (default: RAY_ADDRESS, or one on this machine)",
    )
    how.add_argument(
        "--gpus-per-task",
        type=float,
        metavar="X",
        help="that Ray reserves (default: 1 if the cluster has any)",
    )
    other = command.add_argument_group("what to do with a cache that is there")
    other = other.add_mutually_exclusive_group()
    other.add_argument(
        "--verify",
        action="store_true",
        help="read every byte, and list the shards that are damaged or missing (exit status 1 if "
        "there are any)",
    )
    other.add_argument(
        "--repair",
        action="store_true",
        help="write just those shards anew; --images and --model are only needed if they were "
        "given as objects in code, or have moved",
    )
    other.add_argument(
        "--mixing",
        action="store_true",
        help="measure how well training's batches mix the images",
    )


def _add_adapt(commands) -> None:
    command = _command(
        commands,
        "adapt",
        "adapt a CLIP to the classes of a few labelled images (MaPLe, CoOp, VPT, LoRA, linear "
        "probe)",
        "vit-sae adapt --images 'shapes:train?style=outline&n_images=3000' --model shapes-clip "
        "--preset shapes --method vpt --output-path runs/vpt",
        "vit-sae adapt --images dtd:data/dtd:train --eval-images dtd:data/dtd:test --model "
        "ViT-B-16 --method maple --output-path runs/maple-dtd",
        "vit-sae adapt --checkpoint model.pth.tar-5 --model ViT-B-16 --output-path runs/maple",
        note="The folder is a model's name from then on: 'vit-sae train --model runs/maple'. An "
        "adaptation that\nwas interrupted goes on where it was when the same command is given "
        "again.",
    )
    command.add_argument(
        "--images",
        metavar="SOURCE",
        help="labelled images to learn from; shots and half are chosen from them: " + _IMAGES_HELP,
    )
    command.add_argument(
        "--eval-images",
        metavar="SOURCE",
        help="labelled images on which accuracy is measured, before and after: among base classes, "
        "among novel ones, and the harmonic mean",
    )
    _add_model(command, " (default: ViT-B-16)")
    command.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="take the prompts from this file of MaPLe's or CoOp's own code, and train nothing",
    )
    command.add_argument(
        "--method",
        metavar="NAME",
        help="maple (prompts in both towers; the default), coop (in the text tower), vpt (in the "
        "vision tower), lora (low-rank changes of the vision tower), linear_probe",
    )
    command.add_argument(
        "--preset",
        metavar="NAME",
        help="where the other settings come from: published (the default), or shapes, for small "
        "models such as shapes-clip",
    )
    command.add_argument(
        "--shots", type=int, metavar="N", help="images a class to learn from (default: 16)"
    )
    command.add_argument(
        "--half",
        metavar="HALF",
        help="learn from the classes called base (the default), novel, or from all",
    )
    command.add_argument("--epochs", type=int, metavar="N", help="passes over these images")
    command.add_argument("--lr", type=float, metavar="X", help="learning rate")
    command.add_argument("--seed", type=int, metavar="N", help="default: 1")
    command.add_argument(
        "--n-workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode images (default: 0, in the main one)",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    command.add_argument(
        "--output-path", required=True, metavar="FOLDER", help="the adapted model's folder"
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew, where the folder holds an adaptation, or an unfinished one",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set any other field of AdaptationConfig, such as --set n_prompts=4 or "
        "--set depth=3; may be repeated",
    )


def _add_rows(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", metavar="SOURCE", help=_IMAGES_HELP + _CACHE_HELP)
    command.add_argument(
        "--embeddings",
        metavar="FILE",
        help="measure on the rows of this .npy, .safetensors or .parquet file instead of on images",
    )


def _add_model(command: argparse._ActionsContainer, default: str = "") -> None:
    command.add_argument(
        "--model",
        metavar="NAME",
        help="an open_clip name (ViT-B-16), 'hf:ORG/NAME', 'timm:NAME', 'shapes-clip', or a folder "
        "that 'adapt' made" + default,
    )
    command.add_argument(
        "--pretrained",
        metavar="TAG",
        help="the weights, as open_clip names them (openai, laion2b_s34b_b79k, a file), or none "
        "for random ones; without it, those the model's name stands for (OpenAI's, if it has them)",
    )


def _add_batching(
    command: argparse.ArgumentParser, default: int | None = 64, said_default: str = "64"
) -> None:
    command.add_argument(
        "--batch-size-images",
        type=int,
        default=default,
        metavar="N",
        help=f"images that go through the model together (default: {said_default})",
    )
    command.add_argument(
        "--n-workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode images (default: 0, in the main one)",
    )


def _add_eval(commands) -> None:
    command = _command(
        commands,
        "eval",
        "measure a saved SAE: sparsity, reconstruction, and what splicing it in does to the model",
        "vit-sae eval runs/photos/sae --images photos/",
        "vit-sae eval runs/rows/sae --embeddings held_out.npy",
        "vit-sae eval runs/photos/sae --images test/ --suite masking --ranking-images train/",
        "vit-sae eval runs/birds/sae --images waterbirds:data:test --suite bias --attribute place "
        "--fit-images waterbirds:data:train",
        "vit-sae eval runs/photos/sae --images test/ --suite concepts --control frozen=runs/f/sae",
    )
    command.add_argument("sae", metavar="SAE_FOLDER", help="a folder saved by SAELens or train")
    _add_rows(command)
    _add_model(command, " (default: the SAE's own)")
    command.add_argument("--n-images", type=int, metavar="N", help="stop after this many images")
    _add_batching(command, None, "64; masking: 8")
    command.add_argument(
        "--templates",
        metavar="FILE",
        help="zero-shot prompt templates: a file with one a line and {} for the class name, "
        "'openai' (its 80, the default), 'shapes', or 'own' (those of a benchmark data set)",
    )
    command.add_argument(
        "--published-average",
        action="store_true",
        help="masking: leave a class's average over templates as it is, as the published code does "
        "(default: scaled to length 1)",
    )
    command.add_argument(
        "--suite",
        choices=[
            *("splice", "reconstruction", "msae", "masking"),
            *("concepts", "stability", "bias"),
        ],
        help="splice: the measures of PatchSAE (default with --images); reconstruction: those that "
        "need only what the SAE reads; msae: those of the "
        "Matryoshka paper (default with --embeddings); masking: which latents decide a class; "
        "concepts: whether latents mean something, beside neurons and random latents; stability: "
        "which latents another SAE has too; bias: which concepts mislead a classifier",
    )
    command.add_argument(
        "--probe-images",
        metavar="SOURCE",
        help="labelled training images to fit a linear probe on. msae: of the rows that the SAE "
        "reads; masking: of the model's output, instead of the zero-shot classifier",
    )
    command.add_argument(
        "--captions", metavar="FILE", help="msae: also measure the embeddings of these, one a line"
    )
    command.add_argument(
        "--training-captions",
        metavar="FILE",
        help="msae: captions that the mean and scale of text embeddings are taken from",
    )
    command.add_argument(
        "--ranking-images",
        metavar="SOURCE",
        help="masking: labelled images to rank latents on, another split than --images",
    )
    command.add_argument(
        "--atlas",
        metavar="FOLDER",
        help="masking: or an atlas that 'analyze' made of such images; bias: the SAE's atlas, for "
        "its names; concepts, stability: to keep each latent's measures in, which the next report "
        "shows",
    )
    command.add_argument(
        "--ks", metavar="K,…", help="masking: numbers of latents kept and removed, such as 1,5,10"
    )
    command.add_argument(
        "--control",
        action="append",
        metavar="NAME=FOLDER",
        help="concepts: another SAE to set beside this one, such as one trained as long with "
        "--set freeze_decoder=true; may be repeated",
    )
    command.add_argument(
        "--encoder",
        metavar="NAME",
        help="concepts: the model that judges how alike images are, named as for --model; for "
        "certain weights NAME:TAG (default: the SAE's own, of shape scenes what they show)",
    )
    command.add_argument(
        "--encoder-embeddings",
        metavar="FILE",
        help="concepts: or its embeddings of the images, with their ids",
    )
    command.add_argument(
        "--groups",
        metavar="FILE",
        help="concepts: a CSV file of sibling classes, with the columns group and class",
    )
    command.add_argument(
        "--other", metavar="SAE_FOLDER", help="stability: the SAE that latents are looked for in"
    )
    command.add_argument(
        "--match-by",
        choices=["decoder", "activations"],
        help="stability: by the cosine of decoder rows (default), or by correlation over --images",
    )
    command.add_argument(
        "--attribute",
        metavar="NAME",
        help="bias: what groups the images besides their class, such as place or Male",
    )
    command.add_argument(
        "--fit-images", metavar="SOURCE", help="bias: labelled images to fit a linear probe on"
    )
    command.add_argument(
        "--find-images",
        metavar="SOURCE",
        help="bias: images to find concepts on (default: --fit-images); without --fit-images the "
        "classifier is zero-shot",
    )
    command.add_argument(
        "--reference-images",
        metavar="SOURCE",
        help="bias: images without the bias, to fit the probe on that shows what can be reached",
    )
    command.add_argument(
        "--elsewhere-images",
        metavar="SOURCE",
        help="bias: other labelled images, whose zero-shot accuracy shows what mending costs there",
    )
    command.add_argument(
        "--refit",
        action="store_true",
        help="bias: fit the probe anew on images with the concepts suppressed, too",
    )
    command.add_argument(
        "--allow-same-images",
        action="store_true",
        help="masking: rank and score on the same images, which flatters the ranking",
    )
    command.add_argument(
        "--save-latents",
        metavar="FOLDER",
        help="also write the latents of every image (or row) there, as sparse rows in their order",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    command.add_argument(
        "--output-path",
        metavar="FOLDER",
        help="where the CSV and JSON go (default: 'evaluation', or for masking, "
        "concepts, stability and bias the name of the suite, in the SAE's folder)",
    )


def _add_frontier(commands) -> None:
    command = _command(
        commands,
        "frontier",
        "set saved SAEs side by side: sparsity against fidelity, and recovery as more latents are "
        "kept",
        "vit-sae frontier runs/k8 runs/k32 runs/msae --images photos/ --output-path frontier/",
        "vit-sae frontier runs/k8 runs/k32 --embeddings held_out.npy --names 'k=8,k=32'",
    )
    command.add_argument(
        "saes", nargs="+", metavar="SAE_FOLDER", help="folders saved by SAELens or train"
    )
    _add_rows(command)
    command.add_argument(
        "--names",
        metavar="A,B,…",
        help="what to call the SAEs; those whose names differ only in a last NAME=VALUE, such as "
        "'TopK k=8', share a line (default: their folders' names)",
    )
    _add_model(command, " (default: each SAE's own)")
    command.add_argument("--n-images", type=int, metavar="N", help="stop after this many images")
    _add_batching(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    command.add_argument(
        "--output-path",
        default="frontier",
        metavar="FOLDER",
        help="where tables, plots and the page go (default: frontier)",
    )


def _add_analyze(commands) -> None:
    command = _command(
        commands,
        "analyze",
        "find out what each latent responds to, and write it as tables and as a browsable report",
        "vit-sae analyze runs/photos/sae --images photos/ --report report/",
        "vit-sae analyze runs/photos/sae --images photos/ --report report/ --explain 3,14",
        "vit-sae analyze runs/rows/sae --embeddings rows.npy --images photos/",
        "vit-sae analyze runs/photos/sae --images photos/ --aggregations max,mean "
        "--n-reference-images 20",
        "vit-sae analyze runs/photos/sae --images test/ --ranking-images train/ --compare "
        "adapted/maple",
        note="An analysis that was interrupted goes on where it was when the same command is given "
        "again, and\na finished one is opened rather than made again; --overwrite starts afresh.",
    )
    command.add_argument("sae", metavar="SAE_FOLDER", help="a folder saved by SAELens or train")
    command.add_argument("--images", metavar="SOURCE", help=_IMAGES_HELP + _CACHE_HELP)
    command.add_argument(
        "--embeddings",
        metavar="FILE",
        help="look at the rows of this .npy, .safetensors or .parquet file, without a model; "
        "--images then says where their pictures are, by the rows' ids",
    )
    _add_model(command, " (default: the SAE's own)")
    command.add_argument(
        "--aggregations",
        metavar="NAME,…",
        help="how to rank each latent's reference images: mean, count, max, sum, share, "
        "kth_largest, cls; the first is the report's default (default: the rule saved with the "
        "SAE, if there is one, then mean,count,max)",
    )
    command.add_argument(
        "--n-reference-images",
        type=int,
        default=10,
        metavar="N",
        help="reference images of each latent (default: 10)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="a token counts as active above this, in units of activation (the τ of PatchSAE; "
        "default: 1.05 times the SAE's typical activation, which is the published 0.2 on the "
        "scale of any model)",
    )
    _add_batching(command)
    command.add_argument(
        "--output-path",
        metavar="FOLDER",
        help="the atlas's folder (default: 'atlas-…' in the SAE's folder, named after the images)",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an atlas, or an unfinished one, that is in the folder already",
    )
    report = command.add_argument_group("the report")
    report.add_argument("--report", metavar="FOLDER", help="write a static site there")
    report.add_argument(
        "--n-latents",
        type=int,
        metavar="N",
        help="show the N latents with the lowest label entropy (default: all that are not dead)",
    )
    report.add_argument(
        "--explain",
        metavar="I,…",
        help="explain the images with these indices patch by patch, such as 3,14",
    )
    report.add_argument(
        "--n-explained",
        type=int,
        metavar="N",
        help="or explain N images, spread over the source (default: 12)",
    )
    report.add_argument(
        "--n-explained-references",
        type=int,
        metavar="N",
        help="also explain N reference images, those of most latents first (default: 200, or none "
        "with --n-latents)",
    )
    report.add_argument(
        "--logit",
        metavar="CLASS",
        help="show what made this answer on the page of each explained image: 'predicted' (the "
        "class that the model chooses), a class's index, or a text such as 'a photo of a dog'",
    )
    report.add_argument(
        "--templates",
        metavar="NAME",
        help="prompt templates around class names for --logit or --compare, as for eval",
    )
    report.add_argument(
        "--masking",
        metavar="FOLDER",
        help="add a page with the masking study that 'vit-sae eval --suite masking' saved there",
    )
    command.add_argument(
        "--names",
        metavar="FILE",
        help="read names and notes of latents, saved from a report, into the atlas",
    )
    command.add_argument(
        "--tree",
        action="store_true",
        help="also find which latents are special cases of which, for a page of the report",
    )
    command.add_argument(
        "--tree-k",
        type=int,
        metavar="K",
        help="count only each token's K strongest latents for the tree, as MSAE's levels do",
    )
    command.add_argument(
        "--neuronpedia",
        metavar="FOLDER",
        help="also write features and activations in the shape of Neuronpedia's files there",
    )
    compare = command.add_argument_group("two models (instead of an atlas)")
    compare.add_argument(
        "--compare",
        metavar="ADAPTED",
        help="set this model, such as a folder of 'vit-sae adapt', beside the one that the SAE was "
        "trained on: which latents of each class rise and fall, and how much of the gain hangs on "
        "them; tables and a page go to --output-path (default: 'comparison' in the SAE's folder)",
    )
    compare.add_argument(
        "--ranking-images",
        metavar="SOURCE",
        help="labelled images to find the latents on, others than --images (default: every other "
        "one of --images)",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def _add_name(commands) -> None:
    command = _command(
        commands,
        "name",
        "name the latents of an atlas by the words of a vocabulary, where the match is clear",
        "vit-sae name runs/photos/sae/atlas-photos --images photos/ --vocabulary general",
        "vit-sae name atlas/ --sae runs/photos/sae --images photos/ --vocabulary words.txt",
        note="Names and notes that people wrote stay. The report shows the names: give 'analyze' "
        "again with --report.",
    )
    command.add_argument(
        "folder",
        metavar="ATLAS_OR_SAE_FOLDER",
        help="an atlas that 'analyze' wrote, which keeps the names; or an SAE without one",
    )
    command.add_argument(
        "--sae",
        metavar="SAE_FOLDER",
        help="the SAE that the atlas is about (default: the folder that the atlas lies in)",
    )
    command.add_argument(
        "--images",
        required=True,
        metavar="SOURCE",
        help="images to name by, best of one thing each; " + _IMAGES_HELP,
    )
    command.add_argument(
        "--vocabulary",
        default="general",
        metavar="WORDS",
        help="'general' (1,460 objects and actions, the default), 'wordnet' (by NLTK), 'shapes', a "
        "file with one word a line, a .csv or .parquet with a column 'word', or a public list: "
        "splice:FILE, clip-dissect:FILE, broden:FILE, dn-cbm:FILE; '?n=10000' takes so many",
    )
    command.add_argument(
        "--templates",
        metavar="FILE",
        help="prompts around a word: a file with one a line and {} for the word, 'openai' (its "
        "80), or 'shapes' (default: three plain ones, such as 'a photo of {}')",
    )
    _add_model(command, " (default: the SAE's own)")
    command.add_argument(
        "--route",
        default="image-conditioned",
        choices=["image-conditioned", "measured-shift", "direct"],
        help="how a latent's meaning is found: by the images that activate it (the default), by "
        "what raising it does to the image embedding, or by its decoder row as it is",
    )
    command.add_argument(
        "--level",
        choices=["mean", "max"],
        help="image-conditioned: an image's activation, over its tokens (default: mean)",
    )
    command.add_argument(
        "--factor",
        type=float,
        metavar="X",
        help="measured-shift: what activations are multiplied with (default: 2)",
    )
    command.add_argument(
        "--kind",
        choices=["direction", "point", "projection", "linearized"],
        help="direct: how the row is taken (default: direction for image embeddings, projection "
        "inside the tower)",
    )
    command.add_argument(
        "--false-naming-rate",
        type=float,
        default=0.01,
        metavar="X",
        help="name so clearly that only this share of random directions would be named "
        "(default: 0.01)",
    )
    command.add_argument(
        "--threshold", type=float, metavar="X", help="or name from this clearness on"
    )
    command.add_argument(
        "--n-candidates",
        type=int,
        default=5,
        metavar="N",
        help="words listed a latent (default: 5)",
    )
    command.add_argument("--n-images", type=int, metavar="N", help="use this many images")
    _add_batching(command)
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def _add_search(commands) -> None:
    command = _command(
        commands,
        "search",
        "find images by named concepts, or by another image with concepts changed, beside plain "
        "cosine search",
        "vit-sae search runs/photos/sae --images photos/ --concepts 'red:1,car:1,night:-0.5'",
        "vit-sae search runs/photos/sae --images photos/ --image 17 --concepts 'snow:-1'",
        note="The first search makes an index of the images, which later ones open. Names are "
        "those that 'name', or\nthe report's reader, gave.",
    )
    command.add_argument("sae", metavar="SAE_FOLDER", help="a folder saved by SAELens or train")
    command.add_argument(
        "--images", required=True, metavar="SOURCE", help="what is searched; " + _IMAGES_HELP
    )
    command.add_argument(
        "--concepts",
        default="",
        metavar="NAME:WEIGHT,…",
        help="names (or numbers) of latents with weights, such as 'red:1,circle:1,striped:-0.5'; "
        "with --image: what is raised, or lowered where the weight is below 0",
    )
    command.add_argument(
        "--image",
        metavar="INDEX|FILE",
        help="search by this image: its place in the source, or a picture file",
    )
    command.add_argument(
        "--atlas",
        metavar="FOLDER",
        help="the atlas whose names are meant (default: names.json in "
        "the SAE's folder, or in an atlas there)",
    )
    command.add_argument(
        "--index",
        metavar="FOLDER",
        help="where the index is, or is to be (default: 'search-…' in the SAE's folder)",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="make the index anew where there is one"
    )
    command.add_argument(
        "--templates", metavar="FILE", help="prompts for the plain search; as 'name' takes them"
    )
    _add_model(command, " (default: the SAE's own)")
    command.add_argument("--n", type=int, default=12, metavar="N", help="images (default: 12)")
    _add_batching(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    command.add_argument(
        "--output-path",
        default="search.html",
        metavar="FILE",
        help="the page with the results (default: search.html)",
    )


def _add_convert(commands) -> None:
    command = _command(
        commands,
        "convert",
        "open an SAE of another project and save it as a SAELens folder, with a card",
        "vit-sae convert patchsae:clip-vit-base-patch16_-2_resid_49152.pt saes/patchsae",
        "vit-sae convert prisma:ORG/REPO saes/prisma",
        "vit-sae convert overcomplete:sae.pth saes/topk --set activation=topk --set k=32",
        note="Kinds: patchsae, msae, prisma, saev, clipscope, overcomplete, dictionary_learning, "
        "sae_for_vlm,\ndn_cbm, sparsify, visaebench. No code in a file is ever run, and nothing is "
        "guessed: where a file\ndoesn't say what it computes, the error names what to state with "
        "--set.",
    )
    command.add_argument(
        "source",
        metavar="KIND:SOURCE",
        help="a file or folder, or ORG/REPO[/FILE] on the Hugging Face hub",
    )
    command.add_argument("output_path", metavar="FOLDER", help="the new folder")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="state what the file doesn't say, such as --set threshold=0.3 or "
        "--set input_statistics=rows.npz; may be repeated",
    )
    _add_model(command, " (default: the file's)")
    command.add_argument(
        "--hook-name", metavar="HOOK", help="where the SAE sits (default: what the file says)"
    )
    command.add_argument(
        "--token-kind", choices=["all", "patches", "cls"], help="which tokens it reads"
    )
    command.add_argument("--licence", metavar="NAME", help="of the weights, such as MIT")
    command.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], help="default: float32"
    )


def _add_zoo(commands) -> None:
    command = _command(
        commands,
        "zoo",
        "list released SAEs of vision transformers that can be opened by name",
        "vit-sae zoo",
        "vit-sae zoo clip-scope-l14",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="tell all about this one")


def _add_card(commands) -> None:
    command = _command(
        commands,
        "card",
        "measure an SAE beside a random control, and write its card (README.md and a picture)",
        "vit-sae card saes/patchsae --images photos/ --n-images 1000",
        "vit-sae card saes/patchsae --upload ORG/REPO --sae-id patchsae",
    )
    command.add_argument("sae", metavar="SAE_FOLDER", help="a folder saved by SAELens or train")
    command.add_argument(
        "--images",
        metavar="SOURCE",
        help=f"measure on these (without them, nothing is measured): {_IMAGES_HELP}",
    )
    _add_model(command, " (default: the SAE's own)")
    command.add_argument("--n-images", type=int, metavar="N", help="measure on this many images")
    command.add_argument(
        "--atlas",
        metavar="FOLDER",
        help="draw the picture from this atlas, made by analyze of the same images (default: make "
        "one)",
    )
    command.add_argument("--no-picture", action="store_true", help="draw no picture")
    _add_batching(command)
    command.add_argument(
        "--upload", metavar="ORG/REPO", help="put the folder on the Hugging Face hub, card and all"
    )
    command.add_argument(
        "--sae-id", metavar="NAME", help="its folder there (default: the name of the folder here)"
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def _add_export(commands) -> None:
    command = _command(
        commands,
        "export",
        "save an SAE, or a cache, as a plain SAELens one that loads where this plugin is not "
        "installed",
        "vit-sae export runs/photos/sae exported/",
        "vit-sae export cache:caches/photos exported/ --dtype float16",
    )
    command.add_argument(
        "sae",
        metavar="SAE_FOLDER",
        help="a folder saved by SAELens or train; or 'cache:FOLDER', for SAELens's cached "
        "activations",
    )
    command.add_argument("output_path", metavar="FOLDER", help="the new folder")
    command.add_argument("--architecture", choices=["standard", "topk"], help="default: standard")
    command.add_argument("--k", type=int, metavar="K", help="with topk: latents kept for each row")
    command.add_argument(
        "--hook-name", nargs="+", metavar="HOOK", help="of a cache: only these hooks (default: all)"
    )
    command.add_argument(
        "--dtype", choices=["float32", "float16"], help="of a cache's rows (default: float32)"
    )


def _add_explore(commands) -> None:
    command = _command(
        commands,
        "explore",
        "look into single pictures on a live page: their latents, and what the model answers when "
        "latents are removed or strengthened",
        "vit-sae explore demo-results/run/sae",
        "vit-sae explore runs/photos/sae --images photos/",
        "vit-sae explore runs/photos/sae --images photos/ --compare runs/maple",
        note="The page is served to this machine only, and fetches nothing from anywhere. Pictures "
        "that are dropped on\nit stay in memory until its tab is closed. It needs Gradio: "
        "pip install 'vit-sae-plugin[app]'",
    )
    command.add_argument("sae", metavar="SAE_FOLDER", help="a folder saved by SAELens or train")
    command.add_argument(
        "--images",
        metavar="SOURCE",
        help="pictures to pick from; latents' reference images are found among them, too. "
        "Default, for shapes-clip only: the scenes of the demo. " + _IMAGES_HELP,
    )
    command.add_argument(
        "--atlas",
        metavar="FOLDER",
        help="take reference images and names from this atlas that 'analyze' made of the same "
        "images (default: one in the SAE's folder that fits, or else a short analysis now)",
    )
    command.add_argument(
        "--compare",
        metavar="ADAPTED",
        help="show this model beside the SAE's own: a folder that 'adapt' made",
    )
    command.add_argument(
        "--n-reference-images",
        type=int,
        default=256,
        metavar="N",
        help="images that the short analysis looks at, spread over the source (default: 256)",
    )
    _add_model(command, " (default: the SAE's own)")
    _add_batching(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    command.add_argument(
        "--port", type=int, metavar="N", help="where to serve (default: a free one from 7860 on)"
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="default: 127.0.0.1, this machine only; any other lets others in, without a password",
    )


if __name__ == "__main__":
    sys.exit(main())
