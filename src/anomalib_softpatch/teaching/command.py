# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch teach``: tell a trained model what people say about images.

Torch is imported when the arguments that can be wrong without it are known to be right.
"""

import sys
from itertools import count
from pathlib import Path
from typing import Literal

from anomalib_softpatch.images.decisions import ADDED, DEFECT, NORMAL, Decision, read_decisions
from anomalib_softpatch.images.finding import find_images
from anomalib_softpatch.images.paths import from_text
from anomalib_softpatch.text import counted, shown

# Beside the verdicts of decisions: what is said of all images of a folder, or of a list
ADD, FORGET = "add", "forget"
MOST_SHOWN = 20


def teach(
    model: Path,
    decisions: Path | None = None,
    add: Path | None = None,
    add_unlabeled: Path | None = None,
    forget: Path | None = None,
    ignore: Path | None = None,
    replace: bool = False,
    output: Path | None = None,
    export: Literal["onnx", "openvino", "torch"] | None = None,
    device: str = "auto",
) -> None:
    """Tell a trained model what people say about images; in seconds, without another fit.

    The checkpoint stays as it is; what was taught goes into a new one. normal: what the image shows is normal, whatever
    other images show. defect: the image leaves the memory bank, and what looks like its defect is anomalous. set_aside:
    the image leaves the memory bank. An empty verdict says nothing. The order does not matter: the same decisions give
    the same model.

    Args:
        model: Checkpoint of SoftPatch or SoftPatchPlus (model.ckpt).
        decisions: decisions.csv, as the page of a report or of a prediction run saves it, with the columns path,
            verdict and region.
        add: Folder of new images that are normal.
        add_unlabeled: Folder of new images that nobody has looked at. They count as far as others show the like.
        forget: Text file with a path in each line, relative ones count from its folder: these images leave the model,
            with all that they brought.
        ignore: Image of the size of the images: nothing is said about pixels that are not black in it. A black image
            takes back an earlier one.
        replace: Take back everything that was said before; decisions and folders that are given replace it.
        output: New checkpoint. Default: model_taught.ckpt beside the old one, or the next free number.
        export: Also export the new model to onnx, openvino or torch, into a folder beside the new checkpoint.
        device: Device for the backbone, for example cpu or cuda; auto for a GPU if there is one.
    """
    if not model.is_file():
        msg = f"{model} is not a file."
        raise FileNotFoundError(msg)
    said = _said(decisions, add, add_unlabeled, forget)
    if not said and ignore is None and not replace:
        msg = "Nothing to teach: give --decisions, --add, --add_unlabeled, --forget, --ignore or --replace."
        raise ValueError(msg)
    if ignore is not None and not ignore.is_file():
        msg = f"ignore={str(ignore)!r} is not a file."
        raise FileNotFoundError(msg)
    target = output or _free(model)
    if target.exists():
        msg = f"output={str(target)!r} is there already, and nothing is overwritten. Give another name."
        raise ValueError(msg)
    absent = [each.path for each in said if not each.path.is_file() and each.verdict in {NORMAL, DEFECT, ADD, ADDED}]
    if absent:
        msg = f"{counted(len(absent), 'decided image')} cannot be found, {str(absent[0])!r} for one."
        raise FileNotFoundError(msg)
    from anomalib_softpatch.teaching.lessons import teach_checkpoint  # noqa: PLC0415  # imports torch

    report = teach_checkpoint(model, said, target, ignore=ignore, replace=replace, device=device)
    for line in report.lines[:MOST_SHOWN]:
        sys.stdout.write(f"{line}\n")
    if len(report.lines) > MOST_SHOWN:
        sys.stdout.write(f"... and {counted(len(report.lines) - MOST_SHOWN, 'more image')}\n")
    sys.stdout.write(f"{report.summary}\nThe taught model: {shown(target)}\n")
    if export is not None:
        from anomalib_softpatch.cleaning.stages import export_checkpoint  # noqa: PLC0415  # likewise

        files = export_checkpoint(target, target.with_name(f"{target.stem}_{export}"), export)
        sys.stdout.write(f"Exported: {shown(files[0])}\n")


def _said(decisions: Path | None, add: Path | None, add_unlabeled: Path | None, forget: Path | None) -> list[Decision]:
    """Gather what is said about images, one by one and of folders."""
    said = [] if decisions is None else read_decisions(decisions)
    if forget is not None:
        lines = forget.read_text(encoding="utf-8-sig").splitlines()
        folder = forget.absolute().parent
        said += [Decision(folder / from_text(line.strip()), FORGET) for line in lines if line.strip()]
    for images, verdict in ((add, ADD), (add_unlabeled, ADDED)):
        paths = [] if images is None else find_images(images)[0]
        said += [Decision(Path(path), verdict) for path in paths]
    return said


def _free(model: Path) -> Path:
    """Return the name of a new checkpoint that is not there yet."""
    taught = f"{model.stem.split('_taught')[0]}_taught"
    names = (f"{taught}{'' if number == 1 else f'_{number}'}{model.suffix}" for number in count(1))
    return next(path for path in map(model.with_name, names) if not path.exists())
