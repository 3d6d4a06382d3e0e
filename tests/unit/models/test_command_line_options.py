# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Options of the models: their signatures name all of them, and the command line and the help show them."""

import inspect

import pytest
from anomalib.models.components import AnomalibModule
from docstring_parser import parse
from jsonargparse import ArgumentParser

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.models.denoising_mixin import DenoisingMixin

MODELS = {  # and what they have in place of the discriminators and the thresholds of the memory bank
    SoftPatch: {"discriminator", "threshold"},
    SoftPatchPlus: {"discriminators", "classification_threshold", "segmentation_threshold", "task"},
}


def documented(model: type) -> dict[str, str]:
    return {each.arg_name: " ".join(each.description.split()) for each in parse(inspect.getdoc(model)).params}


@pytest.mark.parametrize("model", MODELS)
def test_the_signature_names_the_options_of_all_parts(model: type[AnomalibModule]) -> None:
    parts = (DenoisingMixin.__init__, DenoisingMemoryBank.__init__)
    expected = {name for part in parts for name in inspect.signature(part).parameters}
    expected -= {"self", "discriminators", "thresholds"}
    parameters = inspect.signature(model).parameters
    assert parameters.keys() == expected | MODELS[model]
    assert all(each.kind is not each.VAR_KEYWORD for each in parameters.values())


@pytest.mark.parametrize("model", MODELS)
def test_the_help_explains_all_options(model: type[AnomalibModule]) -> None:
    assert documented(model).keys() == inspect.signature(model).parameters.keys()
    assert all(documented(model).values())


@pytest.mark.parametrize("model", MODELS)
def test_the_command_line_has_all_options(model: type[AnomalibModule]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(model)
    assert vars(parser.get_defaults()).keys() == inspect.signature(model).parameters.keys()
    text = " ".join(parser.format_help().split())
    for name, description in documented(model).items():
        assert f"--{name}" in text
        assert description[:40] in text


def test_both_models_explain_an_option_that_does_not_differ_in_the_same_words() -> None:
    first, second = (inspect.signature(model).parameters for model in MODELS)
    same = [name for name in first.keys() & second.keys() if first[name].default == second[name].default]
    assert len(same) > 15
    for name in same:
        assert documented(SoftPatch)[name] == documented(SoftPatchPlus)[name]


@pytest.mark.parametrize("model", MODELS)
def test_a_misspelled_option_is_refused_by_python(model: type[AnomalibModule]) -> None:
    """Also with a checkpoint, although Lightning ignores unknown options there."""
    for make in (model, lambda **options: model.load_from_checkpoint("model.ckpt", map_location="cpu", **options)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'min_image'"):
            make(min_image=2)
