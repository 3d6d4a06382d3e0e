# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

import inspect
from pathlib import Path

from anomalib.data import MVTecAD

from anomalib_softpatch import MVTec


def test_options_and_folders_are_those_of_mvtecad() -> None:
    old_name, new_name = MVTec(), MVTecAD()
    assert inspect.signature(MVTec) == inspect.signature(MVTecAD)
    assert old_name.name == new_name.name == "MVTecAD"
    assert old_name.root == new_name.root
    assert old_name.category == new_name.category
    assert MVTec(root=None).root == MVTecAD(root=None).root


def test_images_are_those_of_mvtecad(mvtec_root: Path) -> None:
    old_name = MVTec(root=mvtec_root, category="bottle", num_workers=0)
    new_name = MVTecAD(root=mvtec_root, category="bottle", num_workers=0)
    old_name.setup()
    new_name.setup()
    assert len(old_name.train_data) == 8
    assert old_name.train_data.samples.equals(new_name.train_data.samples)
    assert old_name.test_data.samples.equals(new_name.test_data.samples)
