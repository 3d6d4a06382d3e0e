# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""SoftPatch and SoftPatch+ for Anomalib.

Importing this package makes its models and datamodules known to Anomalib by their bare names. Once installed, it is
imported automatically when Python starts (see :mod:`anomalib_softpatch.integration.registration`). So the import must
stay cheap: neither torch nor Anomalib is imported before a class is used.

Example:
    >>> from anomalib.engine import Engine
    >>> from anomalib_softpatch import MVTec, SoftPatch
    >>> Engine().train(model=SoftPatch(), datamodule=MVTec(category="screw"))  # doctest: +SKIP
"""

from anomalib_softpatch.integration.registration import DATAMODULES, MODELS, register_with_anomalib

TYPE_CHECKING = False  # like typing.TYPE_CHECKING, without the cost of importing typing at every start of Python
if TYPE_CHECKING:
    from anomalib_softpatch._version import __version__
    from anomalib_softpatch.data import MVTec, NoisyDataModule
    from anomalib_softpatch.models import SoftPatch, SoftPatchPlus, load_memory_bank, load_model, save_memory_bank
    from anomalib_softpatch.report.ranking import rank_images

_SOURCES = {
    "__version__": "anomalib_softpatch._version",
    **dict.fromkeys((*MODELS, "load_memory_bank", "load_model", "save_memory_bank"), "anomalib_softpatch.models"),
    "rank_images": "anomalib_softpatch.report.ranking",
    **dict.fromkeys(DATAMODULES, "anomalib_softpatch.data"),
}

__all__ = [
    "MVTec",
    "NoisyDataModule",
    "SoftPatch",
    "SoftPatchPlus",
    "__version__",
    "load_memory_bank",
    "load_model",
    "rank_images",
    "save_memory_bank",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _SOURCES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module  # noqa: PLC0415  # not needed when Python starts

    value = getattr(import_module(_SOURCES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, including those that are not imported yet."""
    return sorted({*globals(), *__all__})


register_with_anomalib()
