# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Number of devices in Anomalib's engine: one, unless the user asks for more.

What a model's ``trainer_arguments`` say replaces what the user says, and what they leave open is Lightning's to choose:
all GPUs of the machine. Neither is wanted of a model that trains in seconds on one device and may use several. No hook
of a model sees the engine or the user's arguments before the trainer is made, so the engine's method that makes it is
wrapped; not before a model that asks for it exists, so that a process without one runs Anomalib's own code.
"""

from functools import wraps

from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule


def is_changed() -> bool:
    """Whether the engine is wrapped, which means that a model of this package was made in this process."""
    return getattr(Engine._setup_trainer, "respects_default_devices", False)


def respect_default_devices() -> None:
    """Have the engine give models with an attribute ``default_devices`` so many where the user leaves them open.

    Left open are ``devices="auto"`` too, which is what the command line passes when it is given nothing. To be called
    when such a model is made; calling it again changes nothing.
    """
    if is_changed():
        return
    setup_trainer = Engine._setup_trainer

    @wraps(setup_trainer)
    def setup_trainer_with_default_devices(engine: Engine, model: AnomalibModule) -> None:
        devices = getattr(model, "default_devices", None)
        if devices is not None and engine._cache.args.get("devices", "auto") == "auto":
            engine._cache.args["devices"] = devices
        setup_trainer(engine, model)

    setup_trainer_with_default_devices.respects_default_devices = True  # type: ignore[attr-defined]
    Engine._setup_trainer = setup_trainer_with_default_devices  # type: ignore[method-assign, assignment]
