"""What is smaller in the tests than on the page, and what isn't run there, each with its reason.

A rule of ``SMALLER`` or ``EXEMPT`` that no page needs any more fails a test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.docs.pages import Snippet

N_SCENES = 100
"""Shape scenes that a page's source has at most."""

N_SCENES_OF_CLASSES = 500
"""The same of sources to learn, rank or compare by, which want some of each class."""

READER_HAS = ("my_clip", "my_transform", "pixels")
"""Names that a page may use without defining them: what the reader brings."""


@dataclass(frozen=True)
class Smaller:
    """A pattern in a snippet, what stands for it, and why."""

    pattern: str
    less: str | Callable[[re.Match[str]], str]
    why: str


def _at_most(limit: int) -> Callable[[re.Match[str]], str]:
    return lambda found: f"{found[1]}{min(int(found[2]), limit)}"


def _fewer_scenes(source: re.Match[str]) -> str:
    split, _, options = source[0].partition("?")
    of_classes = ":train" in split or "bias=" in options or "style=" in options
    most = N_SCENES_OF_CLASSES if of_classes else N_SCENES
    given = re.search(r"n_images=(\d+)", options)
    others = [one for one in options.split("&") if one and not one.startswith("n_images=")]
    n_images = min(int(given[1]), most) if given else most
    return f"{split}?{'&'.join([f'n_images={n_images}', *others])}"


NETWORK = "the weights come from the network, and shapes-clip has four blocks of width 128"
NOT_HERE = "the data set isn't here; tests/datasets reads a small one in its layout"
NAMES = "latents of these names needn't be among those of the SAE here"

SMALLER = [
    Smaller(r'\{"pretrained": "openai"\}', "{}", NETWORK),
    Smaller(r'"ViT-B-16", pretrained="openai"\n?', '"shapes-clip"', NETWORK),
    Smaller(r'"ViT-B-16"', '"shapes-clip"', NETWORK),
    Smaller(
        r"--model ViT-B-(?:16|32)(?: --pretrained \w+)?",
        "--model shapes-clip",
        NETWORK,
    ),
    Smaller(
        r"--preset patchsae-vit-b-16\b",
        r"\g<0> --model shapes-clip --d-sae 128 --hook-name blocks.2.hook_resid_post",
        NETWORK,
    ),
    Smaller(
        r"--preset (?:msae-rw-vit-l-14|topk)\b",
        r"\g<0> --model shapes-clip --d-sae 128",
        NETWORK,
    ),
    Smaller(
        r"--preset \S+-shapes(?!.*--images)",
        r"\g<0> --images shapes:train",
        "to make them fewer",
    ),
    Smaller(r"vit-sae demo$", r"\g<0> --training-tokens 5120", "a few steps"),
    Smaller(r"d_in=768, d_sae=768 \* 8", "d_in=128, d_sae=640", NETWORK),
    Smaller(r"blocks\.10\.", "blocks.2.", NETWORK),
    Smaller(r"blocks\.8\.", "blocks.1.", NETWORK),
    Smaller(r"stop_at_layer=11", "stop_at_layer=3", NETWORK),
    Smaller(
        r"\bimagenet:[\w/]+:(train|test)",
        r"'shapes:\1?n_objects=1'",
        NOT_HERE,
    ),
    Smaller(
        r"\bdtd:[\w/]+:(train|test)",
        r"'shapes:\1?n_objects=1&style=outline'",
        NOT_HERE,
    ),
    Smaller(r"blue:1,red:-1", "40:1,41:-1", NAMES),
    Smaller(r"snow:-1", "41:-1", NAMES),
    Smaller(r"\bcc3m/", "photos/", NOT_HERE),
    Smaller(r"shots=16", "shots=2, epochs=1", "one epoch"),
    Smaller(
        r'AdaptationConfig\("maple", preset="shapes"\)',
        'AdaptationConfig("maple", preset="shapes", shots=2, epochs=1)',
        "one epoch",
    ),
    Smaller(
        r"\bshapes(?::\w+)?\?[^\s\"']+|\bshapes:(?:train|test)\b|(?<=images )shapes(?= |$)",
        _fewer_scenes,
        "fewer scenes",
    ),
    Smaller(r"(--n-images )(\d+)", _at_most(16), "fewer images"),
    Smaller(
        r"ViTSAERunnerConfig\(\s*sae,(?![\s\S]*training_tokens)",
        r"\g<0> training_tokens=2048, train_batch_size_tokens=256, verbose=False,",
        "a few steps",
    ),
    Smaller(
        r"sae\.d_sae=262144 --set n_latent_shards=4",
        "sae.d_sae=1024 --set n_latent_shards=1",
        "one process; tests/training/split_latents starts several",
    ),
    Smaller(
        r"--suite masking\b(?!.*--templates)",
        r"\g<0> --templates shapes --ks 1,5",
        "fewer prompts and conditions",
    ),
    Smaller(
        r"vit-sae name(?=.*--vocabulary shapes)",
        r"\g<0> --false-naming-rate 0.3",
        "an SAE that has learnt little has few clear names",
    ),
    Smaller(r"--d-sae 1536", "--d-sae 128", "fewer latents"),
    Smaller(r"photographs\.py photos/", "photographs.py crops/", "the shared photographs are few"),
]
"""Applied to every python and command snippet in this order, before it runs."""

ONE_EPOCH = ["--shots", "2", "--epochs", "1"]
"""Behind every ``vit-sae adapt`` that trains."""

FEW_STEPS = [
    *("--training-tokens", "2048", "--set", "train_batch_size_tokens=256"),
    *("--set", "lr_warm_up_steps=0", "--set", "lr_decay_steps=0"),
]
"""Behind every ``vit-sae train`` that begins a run, with few latents; README looks at the 625th."""


@dataclass(frozen=True)
class Exempt:
    """Commands that aren't run (that they exist and take their arguments is tested), or texts."""

    kind: str
    pattern: str
    why: str
    pages: tuple[str, ...] = ()
    """The pages it is for; none: all."""


EXEMPT = [
    Exempt(
        "command",
        r"^(?:pip|py -m venv|python3 -m venv|source|\.venv\\Scripts)\b",
        "makes or changes an environment; tests/test_wheel.py looks at what pip would install",
    ),
    Exempt("command", r"^make \w+", "the Makefile has this target; it takes minutes"),
    Exempt(
        "command",
        r"^python (?:-m )?(?:benchmarks|scripts)\b",
        "takes minutes to hours; its own parser reads the arguments",
    ),
    Exempt("command", r"^jupyter lab\b", "opens a browser; tests/test_notebooks.py runs notebooks"),
    Exempt(
        "command",
        r"--suite bias\b",
        "docs/bias.md runs the same, which takes the longest of all commands",
        ("docs/msae.md", "docs/paper_recipes.md"),
    ),
    Exempt("text", r"^datasets ─►", "a drawing: which room may import which"),
    Exempt("text", r"^cache\.json  ", "a drawing: the files of a cache"),
    Exempt("text", r"^def insert\(", "the signature that a method of adaptation has"),
    Exempt(
        "text",
        r"nothing was run$",
        "an error; tests/pretrained/test_bad_files.py compares its words",
    ),
    Exempt(
        "command",
        r"--engine ray",
        "wants a Ray cluster; tests/cli/test_cache_engines.py runs it on one machine",
    ),
]
"""By kind: ``command`` in a block of shell, ``text`` for other blocks. First match counts."""


def exemption(snippet: Snippet) -> Exempt | None:
    for rule in EXEMPT:
        here = snippet.page in rule.pages or not rule.pages
        if here and rule.kind == snippet.kind and re.search(rule.pattern, snippet.text):
            return rule
    return None


def smaller(snippet: Snippet) -> str:
    """The snippet as it runs here."""
    text = snippet.text
    for rule in SMALLER:
        text = re.sub(rule.pattern, rule.less, text)
    begins = r"(?:^|^torchrun .* )vit-sae train\b(?!.*(?:--resume|--preset list))"
    if snippet.kind == "command" and re.search(begins, text):
        text = " ".join([text, *FEW_STEPS])
        if not re.search(r"d[-_]sae|--preset|--sweep|--config", text):
            text += " --d-sae 640" if snippet.page == "README.md" else " --d-sae 128"
    if snippet.kind == "command" and re.match(r"vit-sae adapt\b(?!.*--checkpoint)", text):
        text = " ".join([text, *ONE_EPOCH])
    return text
