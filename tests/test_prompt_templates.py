"""Prompt templates: where they come from, and what is refused."""

import pytest

from vit_sae_plugin.prompt_templates import named_templates


def test_default_are_the_80_of_openai():
    templates = named_templates(None)
    assert len(templates) == 80
    assert templates[0]("cat") == "a bad photo of a cat."


def test_templates_for_shape_scenes_speak_their_language():
    prompts = [template("orange star") for template in named_templates("shapes")]
    assert prompts[0] == "an orange star"
    assert "a photo of an orange star" in prompts
    assert len(set(prompts)) == len(prompts)


def test_templates_from_a_file(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("# mine\na {}\n\nmany {} together\n", encoding="utf-8")
    assert named_templates(path) == ("a {}", "many {} together")
    path.write_text("a {} and a {}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="exactly one"):
        named_templates(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no template"):
        named_templates(path)
    with pytest.raises(FileNotFoundError):
        named_templates(tmp_path / "none.txt")


def test_without_templates_they_are_in_the_words_of_the_model():
    assert named_templates(None, "ViT-B-16") == named_templates("openai")
    shapes = [template("orange star") for template in named_templates("shapes")]
    assert [t("orange star") for t in named_templates(None, "shapes-clip")] == shapes
    assert len(named_templates("openai", "shapes-clip")) == 80
