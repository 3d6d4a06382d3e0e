# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""If the package is installed and not used, nothing changes for other models."""

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Writes the exact scores of Anomalib's models, and how often each function of Anomalib and of this package ran: with
# this package and without it, each in a process forked from one that has imported neither.
CODE = """
    import json, os, sys
    from collections import Counter
    from pathlib import Path

    import jsonargparse, kornia, lightning.pytorch.cli, matplotlib.pyplot, omegaconf, pandas, sklearn.metrics
    import skimage.morphology, timm, torch, torchmetrics, torchvision.transforms.v2
    from lightning import seed_everything

    root, folder = sys.argv[1:]
    assert not [name for name in sys.modules if name.startswith("anomalib")], "imported too early"
    calls, scores = Counter(), {}

    def count(frame, event, _):
        file = frame.f_code.co_filename.replace("\\\\", "/")
        for package in ("/anomalib/", "/anomalib_softpatch/"):
            if event == "call" and package in file:
                calls[package + file.rpartition(package)[2] + ":" + frame.f_code.co_name] += 1

    def observe(hook):
        if hook == "on":
            import anomalib_softpatch
        from anomalib.data import MVTecAD
        from anomalib.engine import Engine
        from anomalib.models import Padim, Patchcore

        assert ("anomalib_softpatch" in sys.modules) == (hook == "on")
        for model_class in (Patchcore, Padim):
            seed_everything(0)
            model = model_class(
                backbone="resnet18", layers=["layer1", "layer2"], pre_trained=False, visualizer=False,
                pre_processor=model_class.configure_pre_processor((64, 64)),
            )
            data = MVTecAD(root=root, category="bottle", num_workers=0, train_batch_size=4)
            engine = Engine(
                default_root_dir=Path(folder, hook), accelerator="cpu", logger=False, enable_progress_bar=False
            )
            sys.setprofile(count)
            engine.fit(model, datamodule=data)
            results = engine.test(model, datamodule=data)
            batches = engine.predict(model, datamodule=data)
            sys.setprofile(None)
            scores[model_class.__name__] = {
                "score": torch.cat([batch.pred_score.flatten() for batch in batches]).numpy().tobytes().hex(),
                "map": torch.cat([batch.anomaly_map.flatten() for batch in batches]).numpy().tobytes().hex(),
                "results": results,
                "devices": engine._cache.args.get("devices"),
            }
        methods = {name: value.__module__ for name, value in vars(Engine).items() if callable(value)}
        found = {"scores": scores, "calls": calls, "methods": methods}
        Path(folder, hook + ".json").write_text(json.dumps(found))

    for hook in ("on", "off"):
        child = os.fork()
        if child == 0:
            observe(hook)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def observed(run_python: Callable, mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    folder = tmp_path_factory.mktemp("observed")
    environment = {"ANOMALIB_SOFTPATCH_AUTOLOAD": "0"}  # the code imports it, however it is installed
    run_python("-c", textwrap.dedent(CODE), mvtec_root, folder, cwd=folder, env=environment)
    return {hook: json.loads((folder / f"{hook}.json").read_text()) for hook in ("on", "off")}


@pytest.mark.parametrize("model", ["Patchcore", "Padim"])
def test_scores_and_maps_are_the_same_bit_by_bit(observed: dict[str, Any], model: str) -> None:
    on, off = (observed[hook]["scores"][model] for hook in ("on", "off"))
    assert len(off["score"]) == 8 * 8  # eight images of four bytes, in hexadecimal
    assert len({off["map"][index : index + 8] for index in range(0, len(off["map"]), 8)}) > 100
    assert on == off


def test_the_same_functions_run_as_often_and_none_of_ours(observed: dict[str, Any]) -> None:
    on, off = (observed[hook]["calls"] for hook in ("on", "off"))
    ours = {name: count for name, count in on.items() if name.startswith("/anomalib_softpatch/")}
    # If modules are imported late, the import hook is called for each.
    assert set(ours) <= {"/anomalib_softpatch/integration/registration.py:find_spec"}
    assert "/anomalib/engine/engine.py:_setup_trainer" in off
    assert {name: count for name, count in on.items() if name not in ours} == off


def test_the_engine_is_anomalibs(observed: dict[str, Any]) -> None:
    assert observed["on"]["methods"] == observed["off"]["methods"]
    assert set(observed["on"]["methods"].values()) == {"anomalib.engine.engine"}
