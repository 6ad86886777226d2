"""Losses that a rung cannot learn by: found before the teacher trains."""

from __future__ import annotations

from tests.bad_input.case import Case, params

FIRST, SECOND = "distill.rungs.assistant", "distill.rungs.student"
INSIDE = {
    f"{FIRST}.losses": {"kd": 0.5, "hint": 0.5},
    f"{FIRST}.signal": "live",
    f"{FIRST}.layers": {"body.1": "body.1"},
}
ADVERSARY = {"epsilon": 0.0314, "steps": 10, "step": 0.0079}
NONE = {f"{SECOND}.adversary": None}

LOSSES = (
    Case(
        "loss weights that sum to 0",
        params({f"{SECOND}.losses": {"kd": 0.0, "cross_entropy": 0.0}}),
        (f"params.yaml: {SECOND}.losses: loss weights must not be negative", "not sum to 0"),
    ),
    Case(
        "a temperature of 0",
        params({f"{SECOND}.temperature": 0}),
        (f"params.yaml: {SECOND}.temperature: must be greater than 0", "(got 0)"),
    ),
    Case(
        "a white-box loss below a black box",
        params(INSIDE | {"teach.source": "onnx", "teach.path": "given"}),
        (
            f"params.yaml: {FIRST}.layers: a teacher of source onnx is a black box",
            "use losses that read logits",
        ),
    ),
    Case(
        "a projector for a layer that the student lacks",
        params(INSIDE | {f"{FIRST}.layers": {"body.7": "body.1"}}),
        (
            f"params.yaml: {FIRST}.layers: assistant: no layer 'body.7'",
            "there are stem, bn, body, body.0,",
        ),
    ),
    Case(
        "a projector for a layer that the teacher lacks",
        params(INSIDE | {f"{FIRST}.layers": {"body.1": "layer3"}}),
        (
            f"params.yaml: {FIRST}.layers: teacher: no layer 'layer3'",
            "there are stem, bn, body, body.0,",
        ),
    ),
    Case(
        "attention where there is no map",
        params(
            INSIDE
            | {
                f"{FIRST}.losses": {"kd": 0.5, "attention": 0.5},
                f"{FIRST}.layers": {"head": "body.1"},
            }
        ),
        (
            f"params.yaml: {FIRST}.layers: 'head' gives no map, and attention reads maps",
            "name a convolutional layer",
        ),
    ),
    Case(
        "layers without a live signal",
        params(INSIDE | {f"{FIRST}.signal": "bank"}),
        ("params.yaml: distill.rungs.assistant: a bank holds logits", "set signal: live"),
    ),
    Case(
        "a white-box loss without layers",
        params(INSIDE | {f"{FIRST}.layers": {}}),
        (f"params.yaml: {FIRST}: loss 'hint' needs 'layers'", "add it"),
    ),
    Case(
        "layers that no loss reads",
        params(INSIDE | {f"{FIRST}.losses": {"kd": 1.0}}),
        (f"params.yaml: {FIRST}: no loss of this rung reads 'layers'", "add one that does: "),
    ),
    Case(
        "adversarial distillation without an adversary",
        params(NONE | {f"{SECOND}.losses": {"adversarial": 1.0}}),
        (f"params.yaml: {SECOND}: loss 'adversarial' needs 'adversary'", "add it"),
    ),
    Case(
        "an adversary that may change nothing",
        params(
            {
                f"{SECOND}.losses": {"adversarial": 1.0},
                f"{SECOND}.adversary": ADVERSARY | {"epsilon": 0},
            }
        ),
        (f"params.yaml: {SECOND}.adversary.epsilon: must be greater than 0", "(got 0)"),
    ),
    Case(
        "dense guidance where nothing is handed on",
        params(NONE | {f"{SECOND}.losses": {"dense": 1.0}}),
        (
            "params.yaml: distill: rung 'student': dense learns from all models above",
            "set hand_on in 'assistant', or use kd",
        ),
    ),
    Case(
        "a live teacher where labels are asked for out of fold",
        params({f"{FIRST}.signal": "live", "teach.folds": 3}),
        (f"params.yaml: {FIRST}.signal: a live teacher has seen every", "set signal: bank"),
    ),
)
