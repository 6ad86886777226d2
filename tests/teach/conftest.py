"""Tiny teachers of every kind, for images of 4 × 4 grey values from 0 to 16 in two classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tasks.core.files import write_json
from tasks.core.models import Architecture, Normalisation, write_weights
from tasks.core.tables import Schema
from tasks.modalities.vision.networks import ResidualNetwork, build

DATA = Schema(modality="vision", shape=(1, 4, 4), dtype="uint8", range=(0, 16), classes=("a", "b"))
SPEC = {
    "classes": ["a", "b"],
    "shape": [1, 4, 4],
    "architecture": {"widths": [4]},
    "normalisation": {"mean": 8.0, "std": 4.0},
}
PROCESSOR = {
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "do_rescale": True,
    "rescale_factor": 1 / 16,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}


def drawn(seed: int) -> ResidualNetwork:
    """A residual network of random weights."""
    torch.manual_seed(seed)
    return build(Architecture(widths=(4,)), DATA, Normalisation(mean=8, std=4)).eval()


def safetensors(folder: Path, seed: int = 0) -> Path:
    """A sound teacher in safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spec.json", SPEC)
    write_weights(folder / "weights.safetensors", drawn(seed).state_dict())
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network that `safetensors` writes by default, as ONNX."""
    folder = tmp_path_factory.mktemp("onnx")
    write_json(folder / "spec.json", {key: SPEC[key] for key in ("classes", "shape")})
    torch.onnx.export(
        drawn(0),
        (torch.zeros(2, 1, 4, 4),),
        folder / "model.onnx",
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
        dynamo=False,  # the older exporter: a second instead of seven
    )
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer of random weights, as `save_pretrained` writes it."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=3,
        id2label={0: "a", 1: "b"},
        label2id={"a": 0, "b": 1},
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(config).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PROCESSOR)
    return folder


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 17, (12, 1, 4, 4)).astype(np.uint8)
