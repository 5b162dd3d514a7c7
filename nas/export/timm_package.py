"""config.json and model.safetensors, as timm's `local-dir:` source reads them, and the standalone module."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.data.bundle import DataBundle
from nas.export.standalone import standalone_source
from search_spaces.architecture import Architecture
from search_spaces.network import MetaFormerNet, bound_size, network_kwargs


def write_timm_package(
    folder: Path,
    name: str,
    folded: MetaFormerNet,
    arch: Architecture,
    bundle: DataBundle,
    section: Mapping[str, Any],
) -> None:
    """Write NAME.py, config.json and model.safetensors.

    folded: in deploy form; its float weights are shipped. section: goes into config.json under "nas".
    """
    from timm.models._hub import save_for_hf

    size = arch.resolution
    pretrained_cfg = {
        "num_classes": bundle.num_classes,
        "input_size": (bundle.in_chans, size, size),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": tuple(bundle.mean),
        "std": tuple(bundle.std),
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
    }
    if any(bound_size(block.mixer, 1) for stage in arch.stages for block in stage.blocks):
        pretrained_cfg["fixed_input_size"] = True
    arguments = network_kwargs(arch) | {"deploy": True}
    description = f"""{name}: a searched network, for timm. Written by nas export.

{arch}

    import timm, {name}
    model = timm.create_model("local-dir:FOLDER", pretrained=True)
"""
    source = standalone_source(name, description, arguments, pretrained_cfg)
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    model: Any = copy.deepcopy(folded)
    weights = {key: value.contiguous() for key, value in folded.state_dict().items()}  # not channels-last
    model.load_state_dict(weights, assign=True)
    model.pretrained_cfg = pretrained_cfg | {"architecture": name}
    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": list(bundle.class_names)},
        model_args=arguments,
        safe_serialization=True,
    )
    config_path = folder / "config.json"
    (folder / "model.safetensors").chmod(config_path.stat().st_mode)  # safetensors makes it private
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["nas"] = dict(section)
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
