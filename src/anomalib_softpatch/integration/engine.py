# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Number of devices in Anomalib's engine: one, unless the user asks for more.

What a model's ``trainer_arguments`` say replaces what the user says, and what they leave open is Lightning's to choose:
all GPUs of the machine. Neither is wanted of a model that trains in seconds on one device and may use several.
"""

from functools import wraps

from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule


def register() -> None:
    """Have the engine give models with an attribute ``default_devices`` so many where the user leaves them open.

    Left open are ``devices="auto"`` too, which is what the command line passes when it is given nothing.
    """
    setup_trainer = Engine._setup_trainer

    @wraps(setup_trainer)
    def setup_trainer_with_default_devices(engine: Engine, model: AnomalibModule) -> None:
        devices = getattr(model, "default_devices", None)
        if devices is not None and engine._cache.args.get("devices", "auto") == "auto":
            engine._cache.args["devices"] = devices
        setup_trainer(engine, model)

    Engine._setup_trainer = setup_trainer_with_default_devices
