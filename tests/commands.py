# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Processes that begin after the slow imports.

A fresh interpreter takes ten seconds or more to import torch and Anomalib. A `Forker` imports them once, and forks a
process for each piece of code. Each process has its own working folder, environment, arguments, outputs and exit
status. Tests need a fresh interpreter if they depend on the environment during an import, or on the time or order of
imports.
"""

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn

# A process with threads cannot be forked safely. OpenVINO's telemetry has one, too, except in continuous integration.
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY"), "1"),
    "CI": "true",
}
IMPORTS = (
    "anomalib.cli.cli", "anomalib.data", "anomalib.deploy", "anomalib.engine", "anomalib.models", "anomalib.pipelines",
    "anomalib_softpatch.benchmark.pipeline", "anomalib_softpatch.benchmark.tables",
    "anomalib_softpatch.cleaning.stages", "anomalib_softpatch.demo.run", "anomalib_softpatch.models",
    "anomalib_softpatch.scoring.command", "anomalib_softpatch.report.ranking",
    "onnx", "onnxruntime", "onnxscript", "openvino", "pandas", "torch._dynamo", "torch.onnx",
)  # fmt: skip
SERVER = "import sys; sys.path[:0] = [{folder!r}]; import commands; sys.path.pop(0); commands.serve()"


class Forker:
    """Starts processes that have imported Anomalib and this package. The first one takes as long as the imports."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0

    def run(
        self, *arguments: object, cwd: Path, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run code and return its exit status and output, like `subprocess.run`.

        Args:
            *arguments: Those of Python: `-c` and code, or the path of a script, and then its arguments.
            cwd: Working folder.
            env: The whole environment.
            timeout: Seconds after which the process is killed.

        Raises:
            subprocess.TimeoutExpired: If the process was killed.
        """
        server = self._started()
        self._count += 1
        outputs = [Path(self._folder.name, f"{self._count}.{name}") for name in ("out", "err")]
        texts = [os.fspath(argument) if isinstance(argument, Path) else str(argument) for argument in arguments]
        request = {"arguments": texts, "cwd": str(cwd), "env": env, "outputs": [*map(str, outputs)], "timeout": timeout}
        print(json.dumps(request), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the forking process has ended with status {server.wait()}")
        printed = [path.read_text() for path in outputs]
        for path in outputs:
            path.unlink()
        status = json.loads(answer)
        if status is None:
            raise subprocess.TimeoutExpired(texts, timeout, *printed)
        return subprocess.CompletedProcess(texts, status, *printed)

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()  # it ends at the end of its input
        self._folder.cleanup()

    def _started(self) -> "subprocess.Popen[str]":
        if self._server is None:
            command = [sys.executable, "-c", SERVER.format(folder=str(Path(__file__).parent))]
            environment = os.environ | ONE_THREAD
            environment.pop("ANOMALIB_SOFTPATCH_AUTOLOAD", None)
            self._server = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        return self._server


def spare_imports() -> None:
    """Exclude everything imported so far, more than a million objects, from future garbage collections."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # what is left is small; exports alone would cause thousands of collections


def serve() -> None:
    """Do the slow imports, then fork a process for each request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for the output of imports
    for name in IMPORTS:
        with suppress(ImportError):  # a part that is not installed
            __import__(name)
    sys.stdout.flush()
    spare_imports()  # a collection in a child would copy all of the memory that it shares with this process
    tasks = Path("/proc/self/task")
    threads = len([*tasks.iterdir()]) if tasks.is_dir() else threading.active_count()
    if threads > 1:
        raise RuntimeError(f"{threads} threads run after the imports: a process with threads must not be forked")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            _run(request)
        print(json.dumps(_wait(child, request["timeout"])), file=answers, flush=True)


def _wait(child: int, timeout: float) -> int | None:
    """Return the exit status of a process, negative for a signal, or `None` if it had to be killed."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def _run(request: dict) -> NoReturn:
    """Run the code of a request, and end as the interpreter does, without tearing down the imported modules."""
    code, status = _become(request), 0
    try:
        exec(code, sys.modules["__main__"].__dict__)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:  # reported like an error of any program
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _become(request: dict) -> CodeType:
    """Set outputs, environment, working folder and arguments from a request, as in a new interpreter."""
    for number, path in zip((1, 2), request["outputs"], strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # to be read again from TMPDIR
    os.chdir(request["cwd"])
    main = sys.modules["__main__"] = ModuleType("__main__")
    given, *arguments = request["arguments"]
    if given == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        return compile(code, "<string>", "exec")
    sys.argv = [given, *arguments]
    sys.path[0] = str(Path(given).parent)
    main.__file__ = given
    return compile(Path(given).read_text(), given, "exec")
