# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Number of devices in Anomalib's engine: one, unless the user asks for more.

A model's ``trainer_arguments`` override the user's choice, and without them Lightning chooses: all GPUs of the machine.
Neither suits a model that trains in seconds on one device and may use several. No hook of a model sees the engine or
the user's arguments before the trainer is made. So the engine's method that makes the trainer is wrapped, but only once
a model asks for it: a process without such a model runs Anomalib's own code.
"""

from functools import wraps

from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule


def is_changed() -> bool:
    """Tell whether the engine is wrapped, which means that a model of this package was made in this process."""
    return getattr(Engine._setup_trainer, "respects_default_devices", False)


def respect_default_devices() -> None:
    """Have the engine give a model the number of devices in its attribute ``default_devices`` if the user gives none.

    ``devices="auto"`` counts as none: the command line passes it by default. Call this when such a model is made;
    calling it again changes nothing.
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
