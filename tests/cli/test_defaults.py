"""What a command does when nothing is said is what its Python function does."""

import inspect

import pytest

import vit_sae_cli
from vit_sae_plugin.analysis import analyze
from vit_sae_plugin.cli import eval as eval_command
from vit_sae_plugin.concepts import build_index, name_latents, search_by_concepts
from vit_sae_plugin.evaluation import evaluate_sae, localize, save_latents
from vit_sae_plugin.evaluation.masking_study import masking_study
from vit_sae_plugin.report import write_report
from vit_sae_plugin.saes import save_exported

FUNCTIONS = {
    "analyze": [analyze, write_report],
    "card": [evaluate_sae, analyze],
    "eval": [save_latents],
    "export": [save_exported],
    "frontier": [evaluate_sae],
    "name": [name_latents],
    "search": [build_index, search_by_concepts],
}
PASSED_ON_ONLY_IF_GIVEN = {"n_explained"}
OF_ANOTHER_KIND = {"tree"}  # the command makes the tree that the function takes
SAID_IN_THE_HELP = {"export": {"architecture": "standard"}}  # a cache has none, so None is kept


def defaults_of(command: str) -> dict:
    parser = vit_sae_cli.build_parser()
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    return {action.dest: action.default for action in commands[command]._actions}


def parameters(function) -> dict:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


@pytest.mark.parametrize("command", FUNCTIONS)
def test_defaults_are_those_of_the_functions(command):
    said = defaults_of(command) | SAID_IN_THE_HELP.get(command, {})
    if command == "eval":  # each suite has its own
        said["batch_size_images"] = eval_command._BATCH_SIZE_IMAGES["splice"]
    n_compared = 0
    for function in FUNCTIONS[command]:
        for name, default in parameters(function).items():
            if name in said and name not in PASSED_ON_ONLY_IF_GIVEN | OF_ANOTHER_KIND:
                assert said[name] == default, (command, function.__name__, name)
                n_compared += 1
    assert n_compared > 1


def test_functions_on_images_take_as_many_at_once():
    batch_sizes = {
        function.__name__: parameters(function)["batch_size_images"]
        for function in (analyze, evaluate_sae, localize, save_latents)
    }
    assert set(batch_sizes.values()) == {64}, batch_sizes
    masking = parameters(masking_study)["batch_size_images"]
    assert eval_command._BATCH_SIZE_IMAGES["masking"] == masking


def test_what_is_only_passed_on_if_given_is_nothing_by_default():
    for name in PASSED_ON_ONLY_IF_GIVEN:
        assert defaults_of("analyze")[name] is None
