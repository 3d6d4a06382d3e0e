# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Options of the models, as jsonargparse finds them for the command line."""

import inspect

import pytest
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentParser

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.components import DenoisingMemoryBank
from anomalib_softpatch.models.denoising_mixin import DenoisingMixin


@pytest.mark.parametrize("model", [SoftPatch, SoftPatchPlus])
def test_options_of_all_parts_are_options_of_the_command_line(model: type[AnomalibModule]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(model)
    parts = (DenoisingMixin.__init__, DenoisingMemoryBank.__init__)
    expected = {name for part in parts for name in inspect.signature(part).parameters}
    expected -= {"self", "bank_options", "discriminators", "thresholds"}  # the models have their own
    assert vars(parser.get_defaults()).keys() >= expected
