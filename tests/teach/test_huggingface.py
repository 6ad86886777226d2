"""A Hugging Face directory teaches like any other: checked, counted, and never fetched."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from tasks.core.errors import StillhouseError, TeacherError
from tasks.core.files import write_json
from tasks.core.tables import Schema
from tasks.modalities.vision.huggingface import load_huggingface
from tasks.modalities.vision.scorers import load_scorer, network_scorer
from tasks.modalities.vision.teachers import Given, copy_teachers
from tasks.teach.given import read_given, write_given
from tests.teach.conftest import DATA, PROCESSOR


@pytest.fixture
def given(vit: Path, tmp_path: Path) -> Path:
    """A copy of the tiny transformer, to be spoilt."""
    return Path(shutil.copytree(vit, tmp_path / "given"))


def edit(path: Path, change: dict[str, object]) -> None:
    write_json(path, json.loads(path.read_text()) | change)


def test_it_is_counted_and_answers_as_transformers_does(
    vit: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(vit).eval()
    raw = torch.from_numpy(images.astype(np.float32))
    pixels = F.interpolate(raw, (8, 8), mode="bilinear").repeat(1, 3, 1, 1) / 16
    with torch.no_grad():
        expected = model(pixel_values=(pixels - 0.5) / 0.25).logits.numpy()

    spec = write_given(vit, tmp_path / "teacher", "huggingface", DATA, "teacher")
    found = load_scorer(tmp_path / "teacher")(images)

    assert np.abs(found - expected).max() < 1e-5
    assert np.ptp(found[:, 0]) > 0.1, "the answers must depend on the image"
    assert spec.kind == "huggingface"
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    assert spec.flops is not None
    assert spec.flops > 0


def test_no_socket_is_opened(
    vit: Path, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    write_given(vit, tmp_path / "teacher", "huggingface", DATA, "teacher")
    assert load_scorer(tmp_path / "teacher")(images).shape == (12, 2)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_its_digest_covers_every_file_that_decides_an_answer(
    given: Path, tmp_path: Path, name: str
) -> None:
    write_given(given, tmp_path / "teacher", "huggingface", DATA, "teacher")
    with (tmp_path / "teacher" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(StillhouseError, match="is not the file that"):
        load_scorer(tmp_path / "teacher")


def test_a_missing_package_says_what_to_install(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TeacherError, match=r"needs the package transformers; pip install .*\[hug"):
        read_given(vit, "huggingface", DATA)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("config.json", {"id2label": {"0": "a", "1": "c"}}, r"id2label is not .* \(b, c\)"),
        ("config.json", {"id2label": {"0": "b", "1": "a"}}, r"id2label is not .* \(other order\)"),
        ("config.json", {"num_channels": 4}, "the model takes 4 channels; write one"),
        ("config.json", {"hidden_size": 16}, "not a whole image classifier"),
        ("config.json", {"model_type": "nothing"}, "not a whole image classifier"),
        ("preprocessor_config.json", {"size": {"height": 12, "width": 8}}, "cannot score images"),
        ("preprocessor_config.json", {"size": {"longest_edge": 8}}, "names no height and width"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "takes 3 channels; write one"),
        ("preprocessor_config.json", {"image_std": 0.0}, "std above 0"),
        ("preprocessor_config.json", {"do_pad": True}, "asks for do_pad, which is not done here"),
        ("preprocessor_config.json", {"resample": 1}, "asks for resample 1, .* ONNX and set teach"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 255}, "rescale_factor 0.0039.* makes"),
    ],
)
def test_what_does_not_fit_is_one_line(
    given: Path, file: str, change: dict[str, object], says: str
) -> None:
    edit(given / file, change)
    with pytest.raises(TeacherError, match=says) as caught:
        read_given(given, "huggingface", DATA)
    assert "\n" not in str(caught.value)


def test_images_of_other_channels_are_refused(vit: Path) -> None:
    with pytest.raises(TeacherError, match="takes 3 channels, the data has 2"):
        read_given(vit, "huggingface", Schema(**DATA.model_dump() | {"shape": (2, 4, 4)}))


def test_a_head_that_nobody_trained_is_refused(given: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(given / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if k != "classifier.weight"},
        given / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(TeacherError, match=r"classifier\.weight is not in the file"):
        read_given(given, "huggingface", DATA)


def test_nan_weights_are_refused(given: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(given / "model.safetensors")
    state["classifier.bias"][0] = float("nan")
    save_file(state, given / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match="NaN or infinite weights"):
        read_given(given, "huggingface", DATA)


def test_a_pickle_is_refused_by_name(given: Path, tmp_path: Path) -> None:
    (given / "model.safetensors").rename(given / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"\(pytorch_model\.bin stays closed: a pickle can exec"):
        copy_teachers([Given("huggingface", given)], tmp_path / "raw")


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"nowhere: no model\.safetensors here|nowhere: no conf"):
        copy_teachers([Given("huggingface", tmp_path / "nowhere")], tmp_path / "raw")


def test_only_its_three_files_are_taken(given: Path, tmp_path: Path) -> None:
    (given / "modeling_evil.py").write_text("raise SystemExit")
    copy_teachers([Given("huggingface", given)], tmp_path / "raw")
    names = sorted(p.name for p in (tmp_path / "raw").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_code_that_lies_in_its_folder_never_runs(given: Path) -> None:
    (given / "evil.py").write_text("raise SystemExit('it ran')")
    auto = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"}
    edit(given / "config.json", {"auto_map": auto, "model_type": "evil"})
    with pytest.raises(TeacherError, match="not a whole image classifier"):
        read_given(given, "huggingface", DATA)


def test_a_crop_is_replaced_by_the_size_that_it_leaves(given: Path) -> None:
    crop = {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": 8}
    write_json(given / "preprocessor_config.json", PROCESSOR | crop)
    assert read_given(given, "huggingface", DATA).kind == "huggingface"


@pytest.mark.parametrize(
    ("change", "named", "other"),
    [
        ({}, "BILINEAR", "BICUBIC"),
        ({"resample": 2}, "BILINEAR", "BICUBIC"),
        ({"resample": 3}, "BICUBIC", "BILINEAR"),
    ],
)
@pytest.mark.parametrize("shape", [(20, 12), (5, 6)])
def test_images_are_resized_as_pil_does(
    given: Path, shape: tuple[int, int], change: dict[str, object], named: str, other: str
) -> None:
    edit(given / "preprocessor_config.json", change)
    image = np.random.default_rng(0).integers(0, 17, shape).astype(np.float32)
    net = load_huggingface(given, Schema(**DATA.model_dump() | {"shape": (1, *shape)}))

    def expected(resampling: str) -> NDArray[np.float32]:
        small = np.array(Image.fromarray(image).resize((8, 8), Image.Resampling[resampling]))
        small = small.clip(0, 16)  # PIL itself clips images of 8 bits, to 0 and 255
        pixels = torch.from_numpy(small).expand(1, 3, 8, 8) / 16
        with torch.no_grad():
            return net.model(pixel_values=(pixels - 0.5) / 0.25).logits.numpy()

    found = network_scorer(net)(image[None, None])

    assert np.abs(found - expected(named)).max() < 1e-5
    assert np.abs(found - expected(other)).max() > 1e-3


def test_one_mean_for_all_channels_says_the_same_as_one_for_each(
    given: Path, images: NDArray[np.uint8]
) -> None:
    each = network_scorer(load_huggingface(given, DATA))(images)
    edit(given / "preprocessor_config.json", {"image_mean": 0.5, "image_std": 0.25})
    assert np.array_equal(network_scorer(load_huggingface(given, DATA))(images), each)
