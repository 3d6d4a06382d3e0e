# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Makes this package's classes known to Anomalib by their bare names.

Anomalib has no plugin entry point. It finds a class by its bare name among the imported subclasses of its base classes
(command line, YAML, ``get_model("soft_patch")``), and as an attribute of ``anomalib.models`` or ``anomalib.data``
(``anomalib benchmark``). So the classes must be imported, and the attributes set, as soon as those modules exist:

1. The wheel carries ``anomalib_softpatch.pth``, a line that Python runs when it starts. Unless the environment variable
   ``ANOMALIB_SOFTPATCH_AUTOLOAD`` is ``0``, it imports this package, which takes a fraction of a millisecond.
2. Importing this package puts an :class:`ImportWatcher` on ``sys.meta_path``. It finds no modules of its own. It waits
   until ``anomalib.models`` and ``anomalib.data`` have been imported in any way, and registers the classes.

Rejected: torch's ``torch.backends`` entry points run at every ``import torch`` and break it if one of them fails;
there is one ``sitecustomize`` per environment, which is the user's; another command would not be the stock
``anomalib``.

Every start of Python imports this module, so it imports only ``sys`` at its top.
"""

import sys

TYPE_CHECKING = False  # like typing.TYPE_CHECKING, without the cost of importing typing at every start of Python
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MODELS = ("SoftPatch", "SoftPatchPlus")
DATAMODULES = ("MVTec", "NoisyDataModule")

# Anomalib's module -> our module, and its classes to add to Anomalib's; without any, its function register() is called
_CLASSES = {
    "anomalib.data": ("anomalib_softpatch.data", DATAMODULES),
    "anomalib.models": ("anomalib_softpatch.models", MODELS),
    "anomalib.cli.pipelines": ("anomalib_softpatch.anomalib_command.pipelines", ()),
    "anomalib.cli": ("anomalib_softpatch.anomalib_command.checkpoint_options", ()),
    "anomalib.cli.cli": ("anomalib_softpatch.anomalib_command.last_words", ()),
}


def register_with_anomalib() -> None:
    """Register the classes now if Anomalib's modules are already imported, otherwise as soon as they are.

    Calling it again is harmless. It never raises: a registration that fails is reported as a ``RuntimeWarning``.
    """
    if not any(isinstance(finder, ImportWatcher) for finder in sys.meta_path):
        watcher = ImportWatcher()
        sys.meta_path.insert(0, watcher)
        watcher.register_imported()


class ImportWatcher:
    """Meta-path finder that registers our classes once Anomalib's modules have been imported.

    Anomalib's modules import each other, and ours import them. So registration at the end of ``anomalib.models`` would
    find half-imported modules if another module, such as ``anomalib.engine`` or one of ours, had started that import.
    Therefore the watcher waits until no import of either package is under way, in any thread.
    """

    def __init__(self) -> None:
        self._pending = dict(_CLASSES)
        self._running: set[str] = set()  # the watched imports that are under way

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Find a module of either package with the finders that follow, and have its execution watched.

        Of nested imports, only the outermost one and those of Anomalib's modules in the table need watching.
        """
        if not self._pending or not name.startswith(("anomalib.", "anomalib_softpatch.")):
            return None
        if self._running and name not in self._pending:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                try:
                    self._watch(spec.loader)
                except Exception as error:  # the module must stay importable in any case
                    _warn(f"anomalib-softpatch cannot watch the import of {name}", error)
                return spec
        return None

    def _watch(self, loader: "Any") -> None:
        """Have the loader register the classes after the module that it executes next."""
        # None for a folder without __init__.py; perhaps already watched: all modules of a zip file share one
        if loader is None or "exec_module" in vars(loader):
            return
        exec_module = loader.exec_module

        def exec_module_and_register(module: "ModuleType") -> None:
            vars(loader).pop("exec_module", None)
            self._running.add(module.__name__)
            try:
                exec_module(module)
            finally:
                self._running.discard(module.__name__)
            if not self._running:
                self.register_imported()

        loader.exec_module = exec_module_and_register

    def register_imported(self) -> None:
        """Register the classes whose Anomalib modules are imported by now."""
        for anomalib_name, (own_name, names) in _CLASSES.items():
            if anomalib_name in sys.modules and self._pending.pop(anomalib_name, False):
                try:
                    _register(anomalib_name, own_name, names)
                except Exception as error:  # Anomalib must keep working in any case
                    what = ", ".join(names) or own_name
                    _warn(f"anomalib-softpatch could not register {what} in {anomalib_name}", error)


def _register(anomalib_name: str, own_name: str, names: tuple[str, ...]) -> None:
    """Import our classes, which makes them subclasses that Anomalib finds, and set them as attributes of its module."""
    from importlib import import_module  # noqa: PLC0415  # not needed when Python starts

    anomalib_module = sys.modules[anomalib_name]
    own_module = import_module(own_name)
    for name in names:
        if not hasattr(anomalib_module, name):  # a later Anomalib may have its own class, which must stay
            setattr(anomalib_module, name, getattr(own_module, name))
    if not names:
        own_module.register()
    if hasattr(anomalib_module, "ALLOWED_MODULES"):  # the modules that get_model accepts in a dotted path
        anomalib_module.ALLOWED_MODULES.update({"anomalib_softpatch", own_name})


def _warn(message: str, error: Exception) -> None:
    """Report an error as a warning that names its cause, even where warnings are turned into errors."""
    import warnings  # noqa: PLC0415  # not needed when Python starts

    text = (
        f"{message}: {type(error).__name__}: {error}. Anomalib itself is not affected. "
        "ANOMALIB_SOFTPATCH_AUTOLOAD=0 switches the registration off."
    )
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        sys.stderr.write(f"{text}\n")
