# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The stages that compute: report, fit and export. Their files appear when they are complete."""

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

import torch
from anomalib.callbacks.checkpoint import ModelCheckpoint
from anomalib.engine import Engine
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from anomalib_softpatch.cleaning.datamodule import UnlabeledDataModule
from anomalib_softpatch.cleaning.state import CHECKPOINT, REPORT
from anomalib_softpatch.components.feature_store import default_memory_budget
from anomalib_softpatch.components.out_of_bag import OutOfBagScores
from anomalib_softpatch.components.tiles import grid_of, make_tiler
from anomalib_softpatch.extraction import Extraction
from anomalib_softpatch.image_size import choose_size, typical_image
from anomalib_softpatch.integration.quiet import quiet
from anomalib_softpatch.models import load_model
from anomalib_softpatch.models.checkpoint import MODELS
from anomalib_softpatch.models.denoising_mixin import DenoisingMixin
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor
from anomalib_softpatch.report.exports import write_exports
from anomalib_softpatch.report.ranking import check_device, rank_images
from anomalib_softpatch.report.writer import write_report

WORKING = ".working"  # subfolder of the output folder for files that are not finished
# Options of the models that the command sets itself
OWN_OPTIONS: set[str | int] = {
    *("backbone", "layers", "neighborhood", "feature_cache", "noise_report"),
    *("pre_processor", "post_processor", "evaluator", "visualizer"),
}


@dataclass(frozen=True)
class Options:
    """Options that report and fit share, see :func:`~anomalib_softpatch.cleaning.command.clean_train`."""

    model: str
    extraction: Extraction
    neighborhood: int | Literal["image"] | None
    model_options: dict[str, Any]
    exports: Sequence[str] = ()

    @property
    def comparison(self) -> dict[str, Any]:
        """The neighborhood as an argument; none for the defaults of report and model, which may differ."""
        return {} if self.neighborhood is None else {"neighborhood": self.neighborhood}


def prepare(options: Options, images: Iterable[Path], other_options: Collection[str] = ()) -> Options:
    """Check options before an image is read, and choose the images' size if none is given.

    Args:
        options: Options of the command.
        images: Image files.
        other_options: Names of options that are not the model's, for suggestions if a name is unknown.

    Returns:
        Options with an image size.

    Raises:
        ValueError: If timm does not know the backbone, the device cannot be used, size and tiles do not fit, or the
            model does not have an option or does not take its value.
    """
    check_device(options.extraction.device)
    model, extraction = _make_model(options, other_options, pre_trained=False).model, options.extraction
    extractor, tiled = model.feature_extractor, model.tiler is not None
    size = choose_size(typical_image(images), extraction.size, tiled, extractor.nearest_size)
    grid_of(extractor, size, model.tiler)  # refuses sizes that do not fit
    return replace(options, extraction=replace(extraction, image_size=size))


def _parsed(options: Options, other_options: Collection[str]) -> dict[str, Any]:
    """Return the model's options, parsed; a dot names parts, as in ``discriminator_options.knn_k``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MODELS[options.model], skip=OWN_OPTIONS)
    known = list(vars(parser.get_defaults()))
    try:
        given = Namespace(**deepcopy(options.model_options)).as_dict()
    except (KeyError, IndexError) as error:  # a dot with nothing before or after it
        msg = f"One of the options {', '.join(map(repr, options.model_options))} is not a name. See --help."
        raise ValueError(msg) from error
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        similar = get_close_matches(unknown, [*known, *other_options, *vars(options.extraction)], n=1)
        hint = f"Did you mean --{similar[0]}?" if similar else f"See anomalib train --model.help {options.model}."
        msg = f"--{unknown} is not an option of this command or of {options.model}. {hint}"
        raise ValueError(msg)
    try:
        parsed = parser.parse_object(given)
    except ArgumentError as error:
        msg = " ".join(str(error).split())
        raise ValueError(msg) from error
    return {name: parsed[name] for name in given}


def _make_model(options: Options, other_options: Collection[str] = (), **more: Any) -> DenoisingMixin:
    """Make the model."""
    model_class, extraction = MODELS[options.model], options.extraction
    given = _parsed(options, other_options) | options.comparison | more
    given |= {"backbone": extraction.backbone, "layers": extraction.layers}
    with quiet():
        model = model_class(
            feature_cache=str(extraction.feature_cache),
            noise_report=False,  # the report stage has written one
            pre_processor=model_class.configure_pre_processor(extraction.size),
            **given,
        )
    model.model.tiler = make_tiler(extraction.tiles)
    if "memory_budget" not in given:
        model.model.feature_store.memory_budget = default_memory_budget()
    return model


def make_report(folder: Path, output: Path, options: Options) -> dict[str, Any]:
    """Rank the images of a folder and write ``report/`` into the output folder.

    Returns:
        ``ranked``: names of the images, the most suspicious first; ``unreadable``: reasons by name, also for files that
        are not images; ``largest_value``: value that was read as 1 in images of more than 8 bits per value.
    """
    findings = rank_images(
        folder,
        **vars(options.extraction),
        min_images=options.model_options.get("min_images", "auto"),
        **options.comparison,
        progress=True,
    )
    write_report(findings, output / REPORT)
    write_exports(findings, options.exports, output / REPORT)
    paths = [findings.paths[index] for index in findings.order]
    return {
        "ranked": [Path(path).relative_to(folder).as_posix() for path in paths],
        "unreadable": {Path(path).relative_to(folder).as_posix(): reason for path, reason in findings.skipped},
        "largest_value": findings.largest_value,
    }


def fit(
    paths: Sequence[Path], output: Path, options: Options, false_alarms: float, largest_value: int
) -> dict[str, Any]:
    """Train a model, set its threshold, and write its checkpoint to the output folder.

    Returns:
        ``threshold``: of the raw score, before normalization; ``image_scores`` and ``map_peaks``: those of the training
        images, from which :func:`set_threshold` sets another threshold; ``facts`` and ``scale``: inputs of the
        self-check.

    Raises:
        ValueError: If an option or an image does not fit.
        OSError: If the weights of the backbone are not available, or if the disk is full.
    """
    post_processor, extraction = LabelFreePostProcessor(false_alarms=false_alarms), options.extraction
    device = check_device(extraction.device)  # the device of the report
    try:
        model = _make_model(options, post_processor=post_processor)
    except RuntimeError as error:  # the weights are not available; the message says what to do
        raise OSError(str(error)) from error
    with _working_folder(output) as folder:
        engine = Engine(
            callbacks=[ModelCheckpoint(dirpath=folder, filename="model", auto_insert_metric_name=False)],
            default_root_dir=folder,
            enable_model_summary=False,
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
        )
        with quiet():
            try:
                data = UnlabeledDataModule(paths, extraction.batch_size, extraction.num_workers, largest_value)
                engine.fit(model, datamodule=data)
            except SystemExit as error:  # Lightning's reaction to an interruption by the user
                raise KeyboardInterrupt from error
        (folder / "model.ckpt").replace(output / CHECKPOINT)
    scores = model.model.out_of_bag
    check = model.self_check()
    assert scores is not None
    assert check is not None
    return {
        "threshold": float(post_processor.image_threshold),
        "image_scores": scores.image_scores.tolist(),
        "map_peaks": scores.map_peaks.tolist(),
        "facts": asdict(check.facts),
        "scale": check.scale,
    }


def set_threshold(output: Path, scores: Mapping[str, Any], false_alarms: float) -> float:
    """Set another threshold in the checkpoint, from the scores that :func:`fit` returned.

    Returns:
        The threshold of the raw score, before normalization.
    """
    model = cast("DenoisingMixin", load_model(output / CHECKPOINT))
    post_processor = model.post_processor
    assert isinstance(post_processor, LabelFreePostProcessor)
    post_processor.false_alarms = false_alarms
    tensors = (torch.tensor(scores[name], dtype=torch.float32) for name in ("image_scores", "map_peaks"))
    post_processor.decide_without_labels(OutOfBagScores(*tensors))
    model.save_changed(output / CHECKPOINT, output / CHECKPOINT)
    return float(post_processor.image_threshold)


def export_checkpoint(checkpoint: Path, output: Path, kind: str) -> list[Path]:
    """Export the model of a checkpoint into a folder, in which files appear when they are complete.

    Args:
        checkpoint: Checkpoint of a model of this package.
        output: Folder, made if it does not exist.
        kind: ``onnx``, ``openvino`` or ``torch``.

    Returns:
        The files, the model's first.
    """
    with _working_folder(output) as folder:
        with quiet():
            engine = Engine(default_root_dir=folder, accelerator="cpu")
            path = engine.export(load_model(checkpoint), kind, export_root=folder, onnx_kwargs={"verbose": False})
        assert path is not None
        files = sorted(path.parent.iterdir(), key=lambda file: (file != path, file.name))
        return [file.replace(output / file.name) for file in files]


@contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """Provide an empty folder on the disk of the output. One that a killed process has left is removed first."""
    folder = output / WORKING
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
