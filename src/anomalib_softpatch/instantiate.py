# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Objects from configurations, as the command line makes them.

``anomalib benchmark`` passes configurations as raw mappings, and Anomalib's ``get_model`` and ``get_datamodule`` leave
nested ones as they are. Here, jsonargparse instantiates nested objects and checks types.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser
from omegaconf import DictConfig, OmegaConf

T = TypeVar("T")


def instantiate(base_class: type[T], config: Mapping[str, Any] | str, argument: str) -> T:
    """Instantiate a subclass from its configuration.

    Args:
        base_class: Base class of the class.
        config: Mapping with ``class_path`` (a dotted path, or the bare name of an imported subclass) and ``init_args``,
            or the class path alone.
        argument: Name of the argument that holds the configuration, for error messages.

    Raises:
        ValueError: If it is not the configuration of such a class.
    """
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base_class, argument, fail_untyped=False, required=True)
    try:
        parsed = parser.parse_object({argument: deepcopy(plain)})  # the parser changes it
    except ArgumentError as error:
        msg = f"{argument}={plain!r} is not the configuration of a {base_class.__name__}: {error}"
        raise ValueError(msg) from error
    return parser.instantiate_classes(parsed)[argument]
