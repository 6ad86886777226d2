"""Teachers from Hugging Face, ensembles of teachers and folds that cannot be: found before work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.bad_input.case import Case, Place, edited, params

Harm = Callable[[Path], object]

DIGITS = {str(digit): str(digit) for digit in range(10)}
CONFIG = {"model_type": "vit", "num_channels": 1, "id2label": DIGITS}
PROCESSOR = {"size": 8, "rescale_factor": 1 / 16, "image_mean": 0.5, "image_std": 0.5}


def hugging(harm: Harm) -> Harm:
    """`given/`: the files of a Hugging Face teacher, whose weights nobody gets to see, harmed."""

    def arrange(root: Path) -> None:
        folder = root / "given"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        save_file({"weight": np.zeros(4, np.float32)}, folder / "model.safetensors")
        params({"teach.source": "huggingface", "teach.path": "given"})(root)
        harm(folder)

    return arrange


def changed(name: str, values: dict[str, object]) -> Harm:
    """Set dotted keys of a JSON file."""

    def harm(folder: Path) -> None:
        content = edited(json.loads((folder / name).read_text()), values)
        (folder / name).write_text(json.dumps(content))

    return harm


def ensemble(*members: str, harm: Harm = lambda _: None) -> Harm:
    """`teach.members`, and `good/`: the teacher that was trained here, as safetensors."""

    def arrange(root: Path) -> None:
        ours = json.loads((root / "models/teacher/spec.json").read_text())
        spec = {key: ours[key] for key in ("architecture", "normalisation")}
        spec |= {key: ours["data"][key] for key in ("shape", "classes")}
        for name in ("good", "other"):
            (root / name).mkdir()
            (root / name / "spec.json").write_text(json.dumps(spec))
            shutil.copy(root / "models/teacher/weights.safetensors", root / name)
        listed = [{"source": "safetensors", "path": path} for path in members]
        params({"teach.source": "ensemble", "teach.members": listed})(root)
        harm(root)

    return arrange


@contextmanager
def without_transformers(root: Path) -> Iterator[Place]:
    """The optional package is not installed: what is found first cannot be imported."""
    (root / "transformers.py").write_text("raise ImportError('No module named transformers')")
    yield Place(root, ("env",))


ENSEMBLES = (
    Case(
        "a Hugging Face teacher without its package",
        hugging(lambda _: None),
        ("given: a Hugging Face teacher needs the package transformers", "pip install -c"),
        around=without_transformers,
    ),
    Case(
        "a Hugging Face teacher without its preprocessing",
        hugging(lambda folder: (folder / "preprocessor_config.json").unlink()),
        ("given: no preprocessor_config.json here", "as save_pretrained writes them"),
    ),
    Case(
        "a Hugging Face teacher as a pickle",
        hugging(lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")),
        ("given: no model.safetensors here (pytorch_model.bin stays closed", "save_pretrained"),
    ),
    Case(
        "a Hugging Face teacher of other classes",
        hugging(changed("config.json", {"id2label.9": "ten"})),
        ("given/config.json: id2label is not the data's classes", "(9, ten)", "of these classes"),
    ),
    Case(
        "a Hugging Face teacher that normalises more channels than it takes",
        hugging(changed("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]})),
        ("given/preprocessor_config.json: normalises by mean", "takes 1 channels", "write one"),
    ),
    Case(
        "a Hugging Face teacher that scales to another range",
        hugging(changed("preprocessor_config.json", {"rescale_factor": 1 / 255})),
        ("rescale_factor 0.00392157 makes 0.0627451 of the data's highest value 16", "set it so"),
    ),
    Case(
        "a Hugging Face teacher that pads its images",
        hugging(changed("preprocessor_config.json", {"do_pad": True})),
        ("given/preprocessor_config.json: asks for do_pad", "export the model with its"),
    ),
    Case(
        "an ensemble of one",
        ensemble("good"),
        ("params.yaml: teach: 'members' names 1, and an ensemble has two or more", "give each"),
    ),
    Case(
        "an ensemble with a path of its own",
        params({"teach.source": "ensemble", "teach.path": "given"}),
        ("params.yaml: teach: 'path' is needed for a given teacher, and null for",),
    ),
    Case(
        "members without an ensemble",
        params({"teach.members": [{"source": "onnx", "path": "a"}]}),
        ("params.yaml: teach: 'members' belongs to source: ensemble", "set that, or empty it"),
    ),
    Case(
        "a member that is not there",
        ensemble("good", "gone"),
        ("gone: no spec.json here", "a folder with spec.json beside"),
    ),
    Case(
        "a member of other classes",
        ensemble("good", "other", harm=lambda root: _reversed(root / "other/spec.json")),
        ("other/spec.json: its classes are not the data's", "(other order)", "of these classes"),
    ),
    Case(
        "folds of a given teacher",
        params({"teach.source": "onnx", "teach.path": "given", "teach.folds": 3}),
        ("params.yaml: teach: 'folds' needs source: train", "unknown"),
    ),
    Case(
        "more folds than rows",
        params({"teach.folds": 100_000}),
        ("params.yaml: teach.folds: must be less than or equal to 20 (got 100000)",),
    ),
    Case(
        "one fold",
        params({"teach.folds": 1}),
        ("params.yaml: teach.folds: must be greater than or equal to 2 (got 1)",),
    ),
)


def _reversed(path: Path) -> None:
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"classes": spec["classes"][::-1]}))
