# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""MVTec AD under its name in Anomalib 1."""

from anomalib.data import MVTecAD
from typing_extensions import override


class MVTec(MVTecAD):
    """:class:`anomalib.data.MVTecAD` under its old name, for commands and configurations written for that name.

    Options, dataset folder (``./datasets/MVTecAD``) and results folder (``MVTecAD/<category>``) are those of
    ``MVTecAD``, so that both names share data and results.

    Example:
        >>> from anomalib_softpatch import MVTec
        >>> datamodule = MVTec(category="screw")
        >>> datamodule.name
        'MVTecAD'
    """

    @property
    @override
    def name(self) -> str:  # type: ignore[override]  # a property in Anomalib, too
        return MVTecAD.__name__
