"""`params.yaml`, `--set` and `--preset`: what they ask for does not exist or cannot be."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.bad_input.case import REMOVED, Case, params, text, untouched, written


def _two_rungs(root: Path) -> None:
    """A rung that was copied and not renamed."""
    path = root / "params.yaml"
    content = yaml.safe_load(path.read_text())
    first, second = content["distill"]["rungs"]
    text("params.yaml", f"\n    {second}:\n", f"\n    {first}:\n")(root)


RUNGS = "distill.rungs"

PARAMETERS = (
    Case(
        "a key that is mistyped",
        params({"teach.training.epoch": 3}),
        ("params.yaml: teach.training.epoch: unknown key", "did you mean 'epochs'?"),
    ),
    Case(
        "a mistyped key in the place of a needed one",
        params({"teach.training.epochs": REMOVED, "teach.training.epoch": 3}),
        ("params.yaml: teach.training.epoch: unknown key", "did you mean 'epochs'?"),
    ),
    Case(
        "a key in the wrong section",
        params({"teach.epochs": 3}),
        ("params.yaml: teach.epochs: unknown key", "did you mean 'training.epochs'?"),
    ),
    Case(
        "a section that does not exist",
        params({"jugde": {}}),
        ("params.yaml: jugde: unknown key", "did you mean 'judge'?"),
    ),
    Case(
        "a section that is missing",
        params({"judge": REMOVED}),
        ("params.yaml: judge: is missing", "add it"),
    ),
    Case(
        "a section that is a number",
        params({"distill": 3}),
        ("params.yaml: distill: must be a section of keys", "(got 3)"),
    ),
    Case(
        "a section that is a number, and `show`",
        params({"distill": 3}),
        ("params.yaml: distill.ship: must be a list of rungs", "name one"),
        ("show",),
    ),
    Case(
        "a precision that no training has",
        params({"teach.training.precision": "float16"}),
        (
            "params.yaml: teach.training.precision: must be 'float32', 'bfloat16' or 'auto'",
            "'float16'",
        ),
    ),
    Case(
        "quantization-aware training in bfloat16",
        params({"quantize.qat.precision": "bfloat16"}),
        ("params.yaml: quantize.qat: precision must be float32", "bfloat16 cannot hold"),
    ),
    Case(
        "a scheme of quantization that does not exist",
        params({"quantize.schemes": ["float32", "int4"]}),
        ("params.yaml: quantize.schemes.1: must be 'float32'", "'weights4'", "(got 'int4')"),
    ),
    Case(
        "a target that does not exist",
        params({"quantize.target": "riscv"}),
        ("params.yaml: quantize.target: must be 'auto', 'x86-avx2',", "(got 'riscv')"),
    ),
    Case(
        "a sensitivity on no rows",
        params({"quantize.sensitivity": {"rows": 0}}),
        ("params.yaml: quantize.sensitivity.rows: must be greater than or equal to 1", "(got 0)"),
    ),
    Case(
        "a budget of no bytes",
        params({"quantize.bytes": 0}),
        ("params.yaml: quantize.bytes: must be greater than or equal to 1 (got 0)",),
    ),
    Case(
        "a goal of no time",
        params({"quantize.latency_ms_p95": 0.0}),
        ("params.yaml: quantize.latency_ms_p95: must be greater than 0 (got 0.0)",),
    ),
    Case(
        "a word where a number belongs",
        params({"teach.training.epochs": "many"}),
        ("params.yaml: teach.training.epochs: must be a valid integer", "(got 'many')"),
    ),
    Case(
        "`yes` where a number belongs",
        params({"teach.training.epochs": True}),
        ("params.yaml: teach.training.epochs: must be a number", "(got True)"),
    ),
    Case(
        "a value out of range",
        params({"teach.training.epochs": 0}),
        ("params.yaml: teach.training.epochs: must be greater than or equal to 1", "(got 0)"),
    ),
    Case(
        "fewer than no rows on another CPU",
        params({"judge.trial_rows": -1}),
        ("params.yaml: judge.trial_rows: must be greater than or equal to 0", "(got -1)"),
    ),
    Case(
        "a value that is NaN",
        params({"teach.training.learning_rate": float("nan")}),
        ("params.yaml: teach.training.learning_rate: must be a finite number", "(got nan)"),
    ),
    Case(
        "a bank in a type that does not exist",
        params({"teach.bank.dtype": "float8"}),
        ("params.yaml: teach.bank.dtype: must be 'float16' or 'bfloat16'", "(got 'float8')"),
    ),
    Case(
        "a bank of the top 10 of 10 classes",
        params({"teach.bank.top": 10}),
        ("teach.bank.top: 10 is not below the 10 classes", "lower it, or set null"),
    ),
    Case(
        "a choice that does not exist",
        params({"data.source": "bucket"}),
        ("params.yaml: data.source: must be 'digits', 'images', 'parquet' or 'idx'", "'bucket'"),
    ),
    Case(
        "a folder of images without its path",
        params({"data.source": "images"}),
        ("params.yaml: data: 'path' is needed for images",),
    ),
    Case(
        "subgroups of data that have no columns",
        params({"data.subgroups": ["site"]}),
        ("params.yaml: data: 'subgroups' names columns of a Parquet", "remove it, or give one"),
    ),
    Case(
        "shares of the split that do not sum to one",
        params({"data.split.train": 0.9}),
        ("params.yaml: data.split: train, val and test must sum to 1",),
    ),
    Case(
        "idx files and a share of the split for test",
        params({"data.source": "idx", "data.path": "idx"}),
        ("params.yaml: data: idx files bring their own test split", "write split.test: given"),
    ),
    Case(
        "a given test split of a source that gives none",
        params({"data.split": {"train": 0.9, "val": 0.1, "test": "given"}}),
        ("params.yaml: data: digits brings no test split", "write a share as split.test"),
    ),
    Case(
        "shares beside a given test split that do not sum to one",
        params({"data.split.test": "given"}),
        ("params.yaml: data.split: train and val must sum to 1 where test is given",),
    ),
    Case(
        "names of classes for images that are in folders of their classes",
        params({"data.source": "images", "data.path": "x", "data.classes": ["a", "b"]}),
        ("params.yaml: data: 'classes' names the labels of idx files", "remove it"),
    ),
    Case(
        "a name that no model may have",
        params({"name": "My Digits"}),
        ("params.yaml: name: must be a word of a-z, 0-9, _ and -", "(got 'My Digits')"),
    ),
    Case(
        "a rung that learns from nobody there is",
        params({f"{RUNGS}.student.from": "asistant"}),
        ("params.yaml: distill: rung 'student' learns from 'asistant'", "name one of teacher"),
    ),
    Case(
        "rungs that learn from each other in a circle",
        params({f"{RUNGS}.assistant.from": "student"}),
        ("params.yaml: distill: rungs assistant -> student -> assistant", "learn from teacher"),
    ),
    Case(
        "two rungs of one name",
        _two_rungs,
        ("params.yaml: line ", "'assistant' is there already, on line", "rename or remove one"),
    ),
    Case(
        "`ship` that names no rung",
        params({"distill.ship": ["pupil"]}),
        ("params.yaml: distill: ship names 'pupil'", "name one of assistant, student"),
    ),
    Case(
        "`ship` that names a rung twice",
        params({"distill.ship": ["student", "student"]}),
        ("params.yaml: distill: ship names 'student' twice", "name it once"),
    ),
    Case(
        "a loss that does not exist",
        params({f"{RUNGS}.student.losses": {"kdd": 1.0}}),
        ("params.yaml: distill.rungs.student.losses: no loss 'kdd'", "did you mean 'kd'?"),
    ),
    Case(
        "a stress family that does not exist",
        params({"stress.families": ["adversarail"]}),
        ("params.yaml: stress family 'adversarail'", "did you mean 'adversarial'?"),
    ),
    Case(
        "an attack within less than nothing",
        params({"stress.adversarial.linf": [-0.1]}),
        ("params.yaml: stress.adversarial.linf.0: must be greater than 0", "(got -0.1)"),
    ),
    Case(
        "an attack beyond the range of the images",
        params({"stress.adversarial.linf": [0.01, 1.5]}),
        ("params.yaml: stress.adversarial.linf.1: must be less than or equal to 1", "(got 1.5)"),
    ),
    Case(
        "the profile robust at an epsilon that is not attacked",
        params({"stress.adversarial.profile": "robust", "stress.adversarial.robust.epsilon": 0.2}),
        ("params.yaml: stress.adversarial: profile robust asks for epsilon 0.2", "add it"),
    ),
    Case(
        "params.yaml that is not YAML",
        text("params.yaml", "ship: [student]", "ship: [student"),
        ("params.yaml: line ", "is not valid YAML", "mend or restore it"),
    ),
    Case(
        "params.yaml that is not UTF-8",
        written("params.yaml", b"name: digits\n# caf\xe9\n"),
        ("params.yaml: line 2 is not UTF-8 text", "save it as UTF-8"),
    ),
    Case(
        "params.yaml that is empty",
        written("params.yaml", b""),
        ("params.yaml: holds no sections", "restore it from git"),
    ),
    Case(
        "`--set` without a value",
        untouched,
        ("--set teach.training.epochs: write section.key=value",),
        ("run", "--set", "teach.training.epochs"),
    ),
    Case(
        "`--set` of an unknown key",
        untouched,
        ("params.yaml: quantize.calibration.row: unknown key", "did you mean 'rows'?"),
        ("run", "--set", "quantize.calibration.row=64"),
    ),
    Case(
        "`--set` of a value that is not YAML",
        untouched,
        ("--set threads=[1: '[1' is not a YAML value", "quote it"),
        ("run", "--set", "threads=[1"),
    ),
    Case(
        "`--set` through a value",
        untouched,
        ("--set threads.more=1: 'threads' is a value and has no keys", "write --set threads="),
        ("run", "--set", "threads.more=1"),
    ),
    Case(
        "`--set` of a whole section",
        untouched,
        ("--set teach=3: 'teach' is a section", "name one of its keys: source, path"),
        ("run", "--set", "teach=3"),
    ),
    Case(
        "`--preset` that does not exist",
        untouched,
        ("--preset digit: no such preset", "there is digits"),
        ("run", "--preset", "digit"),
    ),
    Case(
        "`--preset` that is a path",
        untouched,
        ("--preset ../params: no such preset", "there is digits"),
        ("run", "--preset", "../params"),
    ),
    Case(
        "a command that does not exist",
        untouched,
        ("No such command 'brew'", "`stillhouse --help` shows what there is"),
        ("brew",),
    ),
    Case(
        "an option that does not exist",
        untouched,
        ("No such option: --sett", "Possible options: --preset, --set"),
        ("run", "--sett", "threads=1"),
    ),
    Case(
        "a student that does not ship",
        untouched,
        ("'nobody' does not ship", "distill.ship names student"),
        ("show", "nobody"),
    ),
)
