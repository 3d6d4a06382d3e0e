# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch teach``: teach a trained model people's decisions about images.

Torch is imported after all arguments that can be checked without it have been checked.
"""

import sys
from itertools import count
from pathlib import Path
from typing import Literal

from anomalib_softpatch.images.decisions import ADDED, DEFECT, NORMAL, Decision, read_decisions
from anomalib_softpatch.images.finding import find_images
from anomalib_softpatch.images.paths import from_text
from anomalib_softpatch.text import counted, shown

ADD, FORGET = "add", "forget"  # in addition to the verdicts of decisions: for all images of a folder or of a list
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
    """Teach a trained model people's decisions about images, in seconds, without another fit.

    The checkpoint does not change; the taught model goes into a new one. With the verdict normal, what the image shows
    is normal, whatever other images show. With defect, the image leaves the memory bank, and what looks like its defect
    is anomalous. With set_aside, the image leaves the memory bank. Rows with an empty verdict are skipped. The order
    does not matter: the same decisions give the same model.

    Args:
        model: Checkpoint of SoftPatch or SoftPatchPlus (model.ckpt).
        decisions: decisions.csv, as the page of a report or of a prediction run saves it, with the columns path,
            verdict and region.
        add: Folder of new images that are normal.
        add_unlabeled: Folder of new images that nobody has looked at. They make something normal only as far as other
            images show it, too.
        forget: Text file with a path in each line: these images leave the model, with all that they added. Relative
            paths start at the folder of the file.
        ignore: Mask of the images' size: pixels that are not black in it are ignored. A black mask takes back an
            earlier one.
        replace: Take back everything that was taught before; the decisions and folders of this call replace it.
        output: New checkpoint. Default: model_taught.ckpt next to the old one, or the next free number.
        export: Also export the new model to onnx, openvino or torch, into a folder next to the new checkpoint.
        device: Device for the backbone, for example cpu or cuda; auto for a GPU if there is one.
    """
    if not model.is_file():
        msg = f"{model} is not a file."
        raise FileNotFoundError(msg)
    about = _gather(decisions, add, add_unlabeled, forget)
    if not about and ignore is None and not replace:
        msg = "Nothing to teach: give --decisions, --add, --add_unlabeled, --forget, --ignore or --replace."
        raise ValueError(msg)
    if ignore is not None and not ignore.is_file():
        msg = f"ignore={str(ignore)!r} is not a file."
        raise FileNotFoundError(msg)
    target = output or _free(model)
    if target.exists():
        msg = f"output={str(target)!r} exists, and nothing is overwritten. Give another name."
        raise ValueError(msg)
    absent = [each.path for each in about if not each.path.is_file() and each.verdict in {NORMAL, DEFECT, ADD, ADDED}]
    if absent:
        msg = f"{counted(len(absent), 'decided image')} cannot be found, {str(absent[0])!r} for one."
        raise FileNotFoundError(msg)
    from anomalib_softpatch.teaching.lessons import teach_checkpoint  # noqa: PLC0415  # imports torch

    report = teach_checkpoint(model, about, target, ignore=ignore, replace=replace, device=device)
    for line in report.lines[:MOST_SHOWN]:
        sys.stdout.write(f"{line}\n")
    if len(report.lines) > MOST_SHOWN:
        sys.stdout.write(f"... and {counted(len(report.lines) - MOST_SHOWN, 'more image')}\n")
    sys.stdout.write(f"{report.summary}\nThe taught model: {shown(target)}\n")
    if export is not None:
        from anomalib_softpatch.cleaning.stages import export_checkpoint  # noqa: PLC0415  # imports torch

        files = export_checkpoint(target, target.with_name(f"{target.stem}_{export}"), export)
        sys.stdout.write(f"Exported: {shown(files[0])}\n")


def _gather(
    decisions: Path | None, add: Path | None, add_unlabeled: Path | None, forget: Path | None
) -> list[Decision]:
    """Return the decisions about single images, and one for each image of a folder or a list."""
    gathered = [] if decisions is None else read_decisions(decisions)
    if forget is not None:
        lines = forget.read_text(encoding="utf-8-sig").splitlines()
        folder = forget.absolute().parent
        gathered += [Decision(folder / from_text(line.strip()), FORGET) for line in lines if line.strip()]
    for images, verdict in ((add, ADD), (add_unlabeled, ADDED)):
        paths = [] if images is None else find_images(images)[0]
        gathered += [Decision(path, verdict) for path in paths]
    return gathered


def _free(model: Path) -> Path:
    """Return the first free name for a new checkpoint."""
    taught = f"{model.stem.split('_taught')[0]}_taught"
    names = (f"{taught}{'' if number == 1 else f'_{number}'}{model.suffix}" for number in count(1))
    return next(path for path in map(model.with_name, names) if not path.exists())
