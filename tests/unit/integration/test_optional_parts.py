# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The models work whatever is wrong with an optional part."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

CODE = """
    import sys, warnings

    OPTIONAL = (
        "anomalib_softpatch.report", "anomalib_softpatch.benchmark", "anomalib_softpatch.demo",
        "anomalib_softpatch.integration.compression", "anomalib_softpatch.anomalib_command.pipelines",
    )

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if any(name == part or name.startswith(part + ".") for part in OPTIONAL):
                raise ImportError(f"{name} is broken on purpose")

    sys.meta_path.insert(0, Blocker())
    sys.modules.update(dict.fromkeys(("nncf", "openvino", "itables")))  # None: not installed
    import anomalib.metrics
    del anomalib.metrics.AUPRO  # as if a later Anomalib had renamed it

    import torch
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from anomalib_softpatch import MVTec, NoisyDataModule, SoftPatch, SoftPatchPlus, load_memory_bank, save_memory_bank

    root, folder = sys.argv[1:]
    for model_class in (SoftPatch, SoftPatchPlus):
        model = model_class(
            backbone="test_resnet", layers=["layer2"], pre_trained=False, coreset_sampling_ratio=0.1, visualizer=False,
            pre_processor=model_class.configure_pre_processor((64, 64)),
        )
        runner = Engine(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False)
        runner.train(model, datamodule=MVTecAD(root=root, category="bottle", num_workers=0))
        assert model.model.bank_ranges
        save_memory_bank(model, folder + "/bank.safetensors")
    assert not [name for name in sys.modules if name.startswith(OPTIONAL)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from anomalib.cli.pipelines import PIPELINE_REGISTRY
    assert PIPELINE_REGISTRY["benchmark"].__name__ == "Benchmark"  # Anomalib's own
    messages = "".join(str(warning.message) for warning in caught)
    assert "could not register anomalib_softpatch.anomalib_command.pipelines" in messages
    print("works")
"""


def test_models_need_no_optional_part(run_python: Callable, mvtec_root: Path, tmp_path: Path) -> None:
    result = run_python("-c", textwrap.dedent(CODE), mvtec_root, tmp_path, cwd=tmp_path, python=sys.executable)
    assert result.stdout.splitlines()[-1] == "works"
