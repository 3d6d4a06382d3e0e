# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Number of devices that Anomalib's engine asks Lightning for."""

from collections.abc import Callable
from typing import Any

import pytest
from anomalib.engine import Engine, engine
from anomalib.models import Padim

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.integration.engine import respect_default_devices

SMALL = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "pre_trained": False}


class Other(Padim):
    """A model that lets the user choose the devices, which Padim itself does not."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        return {"max_epochs": 1}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Function that gives the arguments with which an engine makes the trainer of a model."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(engine, "Trainer", lambda **kwargs: arguments.update(kwargs))
    original = Engine._setup_trainer
    monkeypatch.setattr(Engine, "_setup_trainer", getattr(original, "__wrapped__", original))  # as in a new process

    def ask(model_class: type, **options: Any) -> dict[str, Any]:
        model = model_class(**SMALL)
        Engine(**options)._setup_trainer(model)
        return arguments

    return ask


@pytest.mark.parametrize("options", [{}, {"devices": "auto"}])
def test_one_device_by_default(asked: Callable, options: dict) -> None:
    assert asked(SoftPatch, **options)["devices"] == 1


@pytest.mark.parametrize("devices", [2, [0, 3], -1, "2"])
def test_as_many_as_the_user_asks_for(asked: Callable, devices: Any) -> None:
    assert asked(SoftPatch, devices=devices)["devices"] == devices


def test_other_models_are_left_to_lightning(asked: Callable) -> None:
    """Even if one of our models has been made."""
    original = Engine._setup_trainer
    assert "devices" not in asked(Other)
    assert Engine._setup_trainer is original
    SoftPatch(**SMALL)
    assert Engine._setup_trainer is not original
    assert "devices" not in asked(Other)
    assert asked(Other, devices="auto")["devices"] == "auto"


def test_wrapped_once(asked: Callable) -> None:
    respect_default_devices()
    once = Engine._setup_trainer
    respect_default_devices()
    SoftPatch(**SMALL)
    assert Engine._setup_trainer is once
