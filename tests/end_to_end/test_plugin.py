# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The start-up hook, tested with an installed wheel in fresh virtual environments."""

import json
import os
import textwrap
import zipfile
from pathlib import Path

import pytest

import anomalib_softpatch
from anomalib_softpatch.integration.registration import DATAMODULES, MODELS
from environments import Environment, Run, dependency_folders

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src"
OFF = {"ANOMALIB_SOFTPATCH_AUTOLOAD": "0"}
SMALL_MODEL = {"backbone": "test_resnet", "layers": ["layer3"], "pre_trained": False}


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, run_python: Run, wheel: Path) -> Environment:
    """Return an environment with only the wheel, without torch and Anomalib."""
    environment = Environment(tmp_path_factory.mktemp("bare") / "venv", run_python)
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, run_python: Run, wheel: Path) -> Environment:
    """Return an environment with the wheel and its dependencies."""
    environment = Environment(tmp_path_factory.mktemp("complete") / "venv", run_python)
    environment.install(wheel)
    environment.add_dependencies()
    return environment


# The wheel


def test_wheel_holds_the_package_the_start_up_line_and_nothing_else(wheel: Path) -> None:
    package = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        start_up_line = archive.read("anomalib_softpatch.pth").decode()
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - metadata == package
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert len(start_up_line.splitlines()) == 1


def test_uninstalling_leaves_nothing_behind(tmp_path: Path, run_python: Run, wheel: Path) -> None:
    environment = Environment(tmp_path / "venv", run_python)
    before = environment.files()
    environment.install(wheel)
    environment.run("import anomalib_softpatch")
    assert "anomalib_softpatch.pth" in environment.files()
    environment.pip("uninstall", "--yes", "anomalib-softpatch")
    assert environment.files() == before


def test_editable_installation_has_the_hook_and_leaves_nothing_behind(tmp_path: Path, run_python: Run) -> None:
    environment = Environment(tmp_path / "venv", run_python)
    before = environment.files()
    # nothing is downloaded: the build backend comes from the environment of the tests
    environment.install("--editable", ROOT, env={"PYTHONPATH": os.pathsep.join(dependency_folders())})
    loaded_from = environment.run("import sys; print(sys.modules['anomalib_softpatch'].__file__)").stdout.strip()
    assert Path(loaded_from) == SOURCES / "anomalib_softpatch" / "__init__.py"
    environment.pip("uninstall", "--yes", "anomalib-softpatch")
    assert environment.files() == before


# A Python that does not import Anomalib


def loaded_modules(environment: Environment, **kwargs: object) -> set[str]:
    return set(environment.run("import sys; print(*sys.modules)", **kwargs).stdout.split())


def test_start_up_imports_only_three_small_modules(bare: Environment) -> None:
    """benchmarks/startup.py measures their cost."""
    with_hook, without_hook = loaded_modules(bare), loaded_modules(bare, env=OFF)
    modules = ["anomalib_softpatch", "anomalib_softpatch.integration", "anomalib_softpatch.integration.registration"]
    assert sorted(with_hook - without_hook) == modules


def test_environment_variable_switches_the_hook_off(bare: Environment) -> None:
    code = "import sys; print(len(sys.meta_path), 'anomalib_softpatch' in sys.modules)"
    finders, imported = bare.run(code).stdout.split()
    finders_off, imported_off = bare.run(code, env=OFF).stdout.split()
    assert (imported, imported_off) == ("True", "False")
    assert int(finders_off) == int(finders) - 1


# Failures


def test_broken_hook_does_not_break_python(bare: Environment) -> None:
    with bare.broken("integration/registration.py"):
        result = bare.run("print('alive')")
        assert result.stdout == "alive\n"
        assert "broken on purpose" in result.stderr
        result = bare.run("print('alive')", env=OFF)
        assert (result.stdout, result.stderr) == ("alive\n", "")


STAND_IN = """
    import sys, types
    import anomalib_softpatch

    class StandIn:
        '''Provides `anomalib.models` and `anomalib.data` without the seconds that the real ones take.'''

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "anomalib":
                return importlib.machinery.ModuleSpec(name, self, is_package=True)

        def create_module(self, spec):
            return None

        def exec_module(self, module):
            execute(module)

    import importlib.machinery
    sys.meta_path.append(StandIn())
"""


def test_failure_is_reported_where_warnings_are_errors(bare: Environment) -> None:
    code = textwrap.dedent(STAND_IN) + textwrap.dedent("""
        def execute(module): pass
        import anomalib.models
        print("alive")
    """)
    with bare.broken("models/__init__.py"):
        as_warning, as_error = bare.run(code), bare.run(code, options=("-W", "error"))
    cause = "could not register SoftPatch, SoftPatchPlus in anomalib.models: RuntimeError: broken on purpose"
    assert as_warning.stdout == as_error.stdout == "alive\n"
    assert f"RuntimeWarning: anomalib-softpatch {cause}" in as_warning.stderr
    assert cause in as_error.stderr
    assert "Traceback" not in as_error.stderr


def test_loader_that_cannot_be_watched_is_reported(bare: Environment) -> None:
    code = textwrap.dedent(STAND_IN) + textwrap.dedent("""
        class WithoutAttributes:
            __slots__ = ()
            find_spec, create_module, exec_module = StandIn.find_spec, StandIn.create_module, StandIn.exec_module

        def execute(module): pass
        sys.meta_path[-1] = WithoutAttributes()
        import anomalib.models
        print("alive")
    """)
    result = bare.run(code)
    assert result.stdout == "alive\n"
    assert "RuntimeWarning: anomalib-softpatch cannot watch the import of anomalib.models: TypeError" in result.stderr


def test_threads_that_import_at_the_same_time_get_whole_modules(bare: Environment) -> None:
    # The first thread is still executing anomalib.models when the second one has finished anomalib.data.
    code = textwrap.dedent(STAND_IN) + textwrap.dedent("""
        import threading
        registered = []
        from anomalib_softpatch.integration import registration
        registration._register = lambda name, *_: registered.append((name, set(executed)))
        data_is_imported = threading.Event()
        executed = []

        def execute(module):
            if module.__name__ == "anomalib.models":
                second.start()
                data_is_imported.wait(timeout=30)
            executed.append(module.__name__)

        def import_data():
            import anomalib.data
            assert not registered
            data_is_imported.set()

        second = threading.Thread(target=import_data)
        import anomalib.models
        second.join()
        print([name for name, done in registered], all(name in done for name, done in registered))
    """)
    assert bare.run(code).stdout == "['anomalib.data', 'anomalib.models'] True\n"


# Registration in Anomalib


def test_public_names_are_the_registered_ones() -> None:
    assert sorted(anomalib_softpatch.__all__) == sorted(
        [*MODELS, *DATAMODULES, "__version__", "load_memory_bank", "load_model", "rank_images", "save_memory_bank"]
    )
    assert set(anomalib_softpatch.__all__) <= set(dir(anomalib_softpatch))
    with pytest.raises(AttributeError, match="has no attribute 'Unknown'"):
        _ = anomalib_softpatch.Unknown


# Runs each piece of code in its own process, forked from one that has imported Anomalib's dependencies but not
# Anomalib. An import of Anomalib then takes half a second instead of ten. The process starts with the hook off; code
# that begins with `HOOK` does what Python does with the start-up line when it starts.
FORKS = """
    import contextlib, io, json, os, sys, traceback, warnings
    import jsonargparse, kornia, lightning.pytorch.cli, matplotlib.pyplot, omegaconf, pandas, sklearn.metrics
    import skimage.morphology, timm, torch, torchmetrics, torchvision.transforms.v2

    early = [name for name in sys.modules if name.split(".")[0] in ("anomalib", "anomalib_softpatch")]
    assert not early, early
    for code in json.loads(sys.argv[1]):
        child = os.fork()
        if child == 0:
            output = io.StringIO()
            try:
                with contextlib.redirect_stdout(output), warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    exec(code, {})
                error = "".join(str(w.message) for w in caught if "softpatch" in str(w.message))
            except BaseException:
                error = traceback.format_exc()
            sys.__stdout__.write(json.dumps({"output": output.getvalue(), "error": error}) + "\\n")
            sys.__stdout__.flush()
            os._exit(0)
        os.waitpid(child, 0)
"""
HOOK = """
import os, site
del os.environ["ANOMALIB_SOFTPATCH_AUTOLOAD"]
site.addpackage({site_packages!r}, "anomalib_softpatch.pth", set())
"""

# One case for each order in which imports of Anomalib and of this package can meet: which of `anomalib.data` and
# `anomalib.models` is imported first, and what has started the import
FIRST_IMPORTS = [
    "from anomalib.models import Padim, SoftPatch",
    "from anomalib.data import MVTec",
    "import anomalib.engine",
    "import anomalib.pipelines",
    "import anomalib.cli",
    "from anomalib_softpatch import MVTec",
    "from anomalib_softpatch.models import SoftPatch",
]

ALL_IS_REGISTERED = """
import sys
import anomalib.cli.pipelines, anomalib.data, anomalib.models, anomalib_softpatch

watchers = [finder for finder in sys.meta_path if type(finder).__name__ == "ImportWatcher"]
assert [watcher._pending for watcher in watchers] == [{}]
assert anomalib.cli.pipelines.PIPELINE_REGISTRY["benchmark"].__module__ == "anomalib_softpatch.benchmark.pipeline"
for name in anomalib_softpatch.integration.registration.MODELS:
    assert getattr(anomalib.models, name) is getattr(anomalib_softpatch, name)
    assert name in anomalib.models.list_models("pascal")
for name in anomalib_softpatch.integration.registration.DATAMODULES:
    assert getattr(anomalib.data, name) is getattr(anomalib_softpatch, name)
assert "soft_patch" in anomalib.models.list_models()
assert "anomalib_softpatch" in anomalib.models.ALLOWED_MODULES
"""

BY_NAME = f"""
from anomalib.data import get_datamodule
from anomalib.models import get_model
from anomalib_softpatch import MVTec, SoftPatch

small = {SMALL_MODEL}
assert type(get_model("soft_patch", **small)) is SoftPatch
for class_path in ("SoftPatch", "anomalib.models.SoftPatch", "anomalib_softpatch.SoftPatch"):
    assert type(get_model({{"class_path": class_path, "init_args": small}})) is SoftPatch
for class_path in ("MVTec", "anomalib.data.MVTec", "anomalib_softpatch.MVTec"):
    assert type(get_datamodule({{"class_path": class_path}})) is MVTec
"""

ONLY_DATA = """
import sys
from anomalib.data import get_datamodule
assert get_datamodule({"class_path": "MVTec", "init_args": {"category": "screw"}}).name == "MVTecAD"
assert "anomalib.models" not in sys.modules
"""


# The stock command, with bare names of classes
NAMES = ["--model", "SoftPatch", "--data", "MVTec", "--print_config"]
BARE_NAMES = [
    *([command, *NAMES] for command in ("train", "fit", "validate", "test", "predict")),
    ["export", "--export_type", "torch", *NAMES],
    ["train", "--config", "bare.yaml", "--print_config"],
]
BARE_FILE = "model: {class_path: SoftPatch}\ndata: {class_path: MVTec}\n"
DOTTED_NAMES = [
    ["train", "--model", "anomalib_softpatch.SoftPatch", "--print_config"],
    ["train", "--config", "dotted.yaml", "--print_config"],
]
DOTTED_FILE = "model: {class_path: anomalib_softpatch.SoftPatch}\ndata: {class_path: anomalib_softpatch.MVTec}\n"


def printed_configurations(commands: list[list[str]]) -> str:
    return f"""
from anomalib.cli import AnomalibCLI
for arguments in {commands!r}:
    try: AnomalibCLI(arguments)
    except SystemExit: pass
"""


IMPORTED = {
    "not imported": "from anomalib.models import list_models; assert 'soft_patch' not in list_models()",
    "imported": f"import anomalib_softpatch\n{ALL_IS_REGISTERED}{BY_NAME}",
    "imported late": f"import anomalib.models\nimport anomalib_softpatch\n{ALL_IS_REGISTERED}",
}

COMMAND = """
import os, sys
os.chdir({folder!r})
sys.argv = ["anomalib", *{arguments!r}]
{before}
from anomalib.cli.cli import main
main()
print("anomalib_softpatch" in sys.modules)
"""
BENCHMARK = ("benchmark", "--config", "benchmark.yaml")
TRAIN = (
    "train", "--model", "SoftPatch", "--data", "MVTec", "--data.num_workers=0",
    "--model.backbone=test_resnet", "--model.layers=[layer3]", "--model.pre_trained=false",
)  # fmt: skip

# The file is restored before the next code runs
BROKEN = """
from pathlib import Path
import anomalib_softpatch

file = Path(anomalib_softpatch.__file__).parent / "models" / "__init__.py"
text = file.read_text()
file.write_text("raise RuntimeError('broken on purpose')\\n")
try:
    import anomalib.data, anomalib.models
finally:
    file.write_text(text)
print(*anomalib.models.list_models())
"""


def write_benchmark(folder: Path, model: str, data: str, root: Path) -> None:
    models = {"class_path": model, "init_args": SMALL_MODEL}
    datasets = {"class_path": data, "init_args": {"root": str(root), "num_workers": 0}}
    config = {"accelerator": "cpu", "benchmark": {"seed": 0, "model": models, "data": datasets}}
    folder.mkdir()
    (folder / "benchmark.yaml").write_text(json.dumps(config))  # JSON is YAML


@pytest.fixture(scope="module")
def ran(complete: Environment, mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Return the output and errors of each piece of code, with our warnings, and the folder in which they ran."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    folder = tmp_path_factory.mktemp("ran")
    (folder / "bare.yaml").write_text(BARE_FILE)
    (folder / "dotted.yaml").write_text(DOTTED_FILE)
    (folder / "train" / "datasets").mkdir(parents=True)
    (folder / "train" / "datasets" / "MVTecAD").symlink_to(mvtec_root)  # the default folder of MVTecAD and MVTec
    write_benchmark(folder / "bare", "SoftPatch", "MVTec", mvtec_root)
    codes = {"by name": BY_NAME, "only data": ONLY_DATA, "bare names": printed_configurations(BARE_NAMES)}
    codes |= {statement: f"{statement}\n{ALL_IS_REGISTERED}" for statement in FIRST_IMPORTS}
    codes["benchmark"] = COMMAND.format(folder="bare", arguments=BENCHMARK, before="")
    codes["train"] = COMMAND.format(folder="train", arguments=TRAIN, before="")
    codes["broken"] = BROKEN
    hook = HOOK.format(site_packages=str(complete.site_packages))
    codes = {name: f"{hook}\n{code}" for name, code in codes.items()}

    codes |= IMPORTED | {"dotted names": printed_configurations(DOTTED_NAMES)}
    for name, before in (("benchmark, off", ""), ("benchmark, imported", "import anomalib_softpatch")):
        write_benchmark(folder / name, "anomalib_softpatch.SoftPatch", "MVTecAD", mvtec_root)
        codes[name] = COMMAND.format(folder=name, arguments=BENCHMARK, before=before)
    result = complete.run(FORKS, json.dumps([*codes.values()]), cwd=folder, env=OFF)
    return dict(zip(codes, map(json.loads, result.stdout.splitlines()), strict=True)), folder


def test_registered_whatever_is_imported_first(ran: tuple[dict, Path]) -> None:
    results, _ = ran
    errors = {code: results[code]["error"] for code in ("by name", "only data", *FIRST_IMPORTS)}
    assert not any(errors.values()), errors


def test_bare_names_in_every_subcommand_and_in_configuration_files(ran: tuple[dict, Path]) -> None:
    result = ran[0]["bare names"]
    assert result["error"] == ""
    assert result["output"].count("class_path: anomalib_softpatch.SoftPatch\n") == len(BARE_NAMES)
    assert result["output"].count("class_path: anomalib_softpatch.MVTec\n") == len(BARE_NAMES)


def test_train_through_the_stock_command(ran: tuple[dict, Path]) -> None:
    results, folder = ran
    assert "image_AUROC" in results["train"]["output"], results["train"]
    assert (folder / "train/results/SoftPatch/MVTecAD/bottle/v0/weights/lightning/model.ckpt").is_file()


def test_bare_names_in_a_benchmark_configuration(ran: tuple[dict, Path]) -> None:
    results, folder = ran
    assert results["benchmark"]["output"].splitlines()[-1] == "True", results["benchmark"]
    (table,) = (folder / "bare" / "runs").rglob("results.csv")
    header, row = table.read_text().splitlines()
    assert "image_AUROC" in header
    assert "SoftPatch" in row


def test_broken_registration_does_not_break_anomalib(ran: tuple[dict, Path]) -> None:
    result = ran[0]["broken"]
    models = result["output"].split()
    assert "patchcore" in models
    assert "soft_patch" not in models
    cause = "could not register SoftPatch, SoftPatchPlus in anomalib.models: RuntimeError: broken on purpose"
    assert cause in result["error"]
    assert "Traceback" not in result["error"]


def test_with_the_hook_off_the_package_registers_when_it_is_imported(ran: tuple[dict, Path]) -> None:
    results, _ = ran
    assert {results[name]["error"] for name in (*IMPORTED, "dotted names")} == {""}
    printed = results["dotted names"]["output"]
    assert printed.count("class_path: anomalib_softpatch.SoftPatch\n") == 2
    assert printed.count("class_path: anomalib_softpatch.MVTec\n") == 1


def test_with_the_hook_off_benchmark_needs_an_import(ran: tuple[dict, Path]) -> None:
    """The stock command cannot import the package then.

    `train` imports the class of a dotted path. `benchmark` checks such a path against a list of Anomalib's own modules
    before it imports anything, reads its configuration as plain data, and has no other option.
    """
    results, folder = ran
    assert results["benchmark, off"]["output"].splitlines()[-1] == "False", results["benchmark, off"]
    runs = folder / "benchmark, off" / "runs"
    assert "Module import from 'anomalib_softpatch' is not allowed" in (runs / "pipeline.log").read_text()
    assert not list(runs.rglob("results.csv"))
    assert results["benchmark, imported"]["output"].splitlines()[-1] == "True", results["benchmark, imported"]
    (table,) = (folder / "benchmark, imported" / "runs").rglob("results.csv")
    assert "anomalib_softpatch.SoftPatch" in table.read_text()
