"""An image classifier as `save_pretrained` writes it: raw values in, logits out.

`transformers` is optional and imported only where such a model is loaded. Nothing is fetched, no
code of the model's folder runs, and weights are read from safetensors alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.core.errors import TeacherError
from tasks.core.files import read_json
from tasks.core.models import FILES, finite
from tasks.core.params import check
from tasks.core.tables import Schema

WEIGHTS, CONFIG, PROCESSOR = FILES["huggingface"]
DONE = {"do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb"}
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # by PIL's number


class Config(BaseModel):
    """What is read of `config.json`."""

    id2label: dict[int, str]
    num_channels: int = 3


class Processor(BaseModel):
    """What is read of `preprocessor_config.json`. A margin that it would crop away stays: the
    whole image is brought to the size that is left after the crop."""

    do_resize: bool = True
    size: int | dict[str, int] | None = None
    resample: int = 2
    do_center_crop: bool = False
    crop_size: int | dict[str, int] | None = None
    do_rescale: bool = True
    rescale_factor: float = Field(default=1 / 255, gt=0)
    do_normalize: bool = True
    image_mean: float | list[float] = 0.0
    image_std: float | list[float] = 1.0

    def wanted(self) -> tuple[int, int] | None:
        """Height and width that the model wants; None where images stay as they are."""
        size = self.crop_size if self.do_center_crop else self.size if self.do_resize else None
        if size is None or isinstance(size, int):
            return None if size is None else (size, size)
        edge = size.get("shortest_edge", 0)
        return size.get("height", edge), size.get("width", edge)

    def normalisation(self) -> tuple[float | list[float], float | list[float]]:
        """Mean and standard deviation, of all channels or of each."""
        return (self.image_mean, self.image_std) if self.do_normalize else (0.0, 1.0)


class HuggingFaceNetwork(nn.Module):
    """`model` behind its own preprocessing: raw values (N, C, H, W) to logits (N, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, processor: Processor, channels: int, limits: tuple[float, float]
    ) -> None:
        super().__init__()
        self.model, self.channels, self.size = model, channels, processor.wanted()
        self.limits = limits
        self.resampling = RESAMPLING[processor.resample]
        self.factor = processor.rescale_factor if processor.do_rescale else 1.0
        shift, scale = processor.normalisation()
        self.register_buffer("mean", torch.tensor(shift).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(scale).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and self.size != x.shape[2:]:
            x = F.interpolate(x, self.size, mode=self.resampling, antialias=True)
            x = x.clamp(*self.limits)  # bicubic goes beyond what it is given; PIL clips, too
        x = (x * self.factor).expand(-1, self.channels, -1, -1)  # grey: the same in each channel
        logits: Tensor = self.model(pixel_values=(x - self.mean) / self.std).logits
        return logits


def load_huggingface(folder: Path, data: Schema) -> HuggingFaceNetwork:
    """The model in `folder`, in eval mode; a `TeacherError` if it does not fit `data`."""
    config = check(Config, _section(folder / CONFIG), where=str(folder / CONFIG))
    _same_classes(folder / CONFIG, config, data)
    channels = config.num_channels
    if data.shape[0] not in (1, channels):
        raise TeacherError(
            f"{folder / CONFIG}: takes {channels} channels, the data has {data.shape[0]}; "
            "give a teacher of these images"
        )
    processor = _processor(folder / PROCESSOR, channels, data)
    net = HuggingFaceNetwork(_model(folder), processor, channels, data.range).eval()
    if not finite(net.state_dict()):
        raise TeacherError(f"{folder / WEIGHTS}: holds NaN or infinite weights; give sound ones")
    return net


def _section(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise TeacherError(f"{path}: is not a JSON object; save the model again")
    return content


def _same_classes(path: Path, config: Config, data: Schema) -> None:
    named = tuple(config.id2label.get(i, "") for i in range(len(config.id2label)))
    if named != data.classes:
        odd = sorted(set(named) ^ set(data.classes))
        raise TeacherError(
            f"{path}: id2label is not the data's classes in the same order "
            f"({', '.join(odd[:6]) or 'other order'}); give a teacher of these classes"
        )


def _processor(path: Path, channels: int, data: Schema) -> Processor:
    """The preprocessing that the model was trained behind; what is not done here is refused."""
    content = _section(path)
    others = sorted(k for k, v in content.items() if k.startswith("do_") and v and k not in DONE)
    if others:
        _undone(path, others[0])
    processor = check(Processor, content, where=str(path))
    if processor.resample not in RESAMPLING:
        _undone(path, f"resample {processor.resample}")
    mean, std = (np.atleast_1d(values) for values in processor.normalisation())
    if {len(mean), len(std)} - {1, channels} or min(std) <= 0:
        raise TeacherError(
            f"{path}: normalises by mean {mean.tolist()} and std {std.tolist()}, and the model "
            f"takes {channels} channels; write one number or one for each, std above 0"
        )
    if (size := processor.wanted()) is not None and min(size) < 1:
        raise TeacherError(f"{path}: its size names no height and width; write both")
    top = processor.rescale_factor * data.range[1]
    if processor.do_rescale and not 0.5 <= top <= 2:
        raise TeacherError(
            f"{path}: rescale_factor {processor.rescale_factor:g} makes {top:g} of the data's "
            f"highest value {data.range[1]:g}; set it so that about 1 comes out"
        )
    return processor


def _model(folder: Path) -> nn.Module:
    """The classifier itself, every weight of it from the file."""
    try:
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError:
        raise TeacherError(
            f"{folder}: a Hugging Face teacher needs the package transformers; "
            "pip install -c constraints.txt -e '.[huggingface]'"
        ) from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            str(folder.resolve()),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",  # the one whose operations can be counted
            output_loading_info=True,
        )
    except Exception as error:  # each architecture fails in its own ways
        _unfit(folder, str(error) or type(error).__name__)
    if odd := sorted(map(str, info["missing_keys"])):
        _unfit(folder, f"{odd[0]} is not in the file")
    net: nn.Module = model
    return net


def _undone(path: Path, what: str) -> NoReturn:
    raise TeacherError(
        f"{path}: asks for {what}, which is not done here; export the model with its "
        "preprocessing to ONNX and set teach.source: onnx"
    )


def _unfit(folder: Path, why: str) -> NoReturn:
    raise TeacherError(
        f"{folder / WEIGHTS}: not a whole image classifier of its {CONFIG} "
        f"({' '.join(why.split())[:120]}); save both with save_pretrained"
    ) from None
