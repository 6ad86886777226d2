"""Edge cases: the contracts of a shipped model, one gate each. They hold or they do not.

Poisoned and out-of-range rows must be declared by `valid`, each alone; what does not fit the
declared input must be refused by ONNX Runtime; and a valid row's logits, however unlike the data it
is, must be finite and the same bit for bit, whatever batch, place, thread count or session it is
scored in.

A wrong scale that stays within the range cannot be refused: an image brought to 0..1 is a dark
image of 0..255. What the student then makes of it is reported under `unit_scale`, without a gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tasks.core.metrics import correct
from tasks.core.params import Section
from tasks.core.reports import at_most
from tasks.core.seeds import generator
from tasks.core.session import open_session, score
from tasks.core.tables import Schema, Table
from tasks.stress.case import Case, Outcome

Images = NDArray[np.float32]
ROWS = 64  # of the sampled rows; contracts are not statistics
BATCHES = (0, 1, 7, 33)


class Params(Section):
    """Contracts have no options."""


@dataclass(frozen=True)
class Contract:
    """What must hold, and how often it was tried and broken."""

    name: str
    what: str
    tried: int
    broken: int


def run(case: Case, params: Params) -> Outcome:  # noqa: ARG001 - every family has this signature
    """Check every contract on the sampled rows and on crafted ones."""
    rows = case.test.take(case.sample(ROWS))
    if len(rows) == 0:
        raise ValueError("there are no test rows to try the contracts on")
    images = rows.images.astype(np.float32)
    random = generator(case.seed, "stress", "edge_cases")
    odd = oddities(images, case.data, random)
    contracts = [
        _signature(case),
        *_declared(case, images, odd, random),
        _isolated(case, images, random),
        _finite(case, np.concatenate([images, odd])),
        _refused(case, images),
        _batch_sizes(case, images),
        *_invariant(case, np.concatenate([images, odd]), random),
    ]
    results = {
        "contracts": {c.name: {"tried": c.tried, "broken": c.broken} for c in contracts},
        "unit_scale": _unit_scale(case, rows),
        "summary": {"contracts": len(contracts), "broken": sum(c.broken > 0 for c in contracts)},
    }
    gates = tuple(
        at_most(
            f"edge_cases.{c.name}",
            float(c.broken),
            0.0,
            f"{c.what}: broken {c.broken} of {c.tried} times.",
        )
        for c in contracts
    )
    return Outcome(len(rows), results, gates, _figure(contracts), {})


def _signature(case: Case) -> Contract:
    """Names and element types, as any consumer may rely on them."""
    found = [(i.name, i.type) for i in (*case.session.get_inputs(), *case.session.get_outputs())]
    wanted = [("input", "tensor(float)"), ("logits", "tensor(float)"), ("valid", "tensor(bool)")]
    broken = len(set(wanted) ^ set(found))
    return Contract(
        "signature", "The file takes `input` and gives `logits` and `valid`", len(wanted), broken
    )


def legal(images: Images, data: Schema) -> NDArray[np.bool_]:
    """Which rows (N,) a model must accept: every value finite and within the declared range.

    >>> data = Schema(modality="vision", shape=(1, 1, 2), dtype="uint8", range=(0, 16),
    ...               classes=("a", "b"))
    >>> legal(np.array([[[[0, 16]]], [[[0, 17]]], [[[0, np.nan]]]], dtype=np.float32), data)
    array([ True, False, False])
    """
    low, high = np.float32(data.range[0]), np.float32(data.range[1])
    return np.asarray(((images >= low) & (images <= high)).all(axis=(1, 2, 3)))


def oddities(images: Images, data: Schema, random: np.random.Generator) -> Images:
    """Valid rows (M, C, H, W) unlike any data: constants, noise, corners of the range; one value
    each a float32 step inside it and, where zero is in the range, -0 and the smallest subnormal."""
    low, high = (np.float32(v) for v in data.range)
    middle = np.float32((data.range[0] + data.range[1]) / 2)
    share = random.random(images.shape, dtype=np.float32)
    spots = [np.nextafter(low, high), np.nextafter(high, low)]
    if low <= 0 <= high:
        tiny = np.nextafter(np.float32(0), high if high > 0 else low)
        spots += [np.float32(-0.0), tiny]
    return np.concatenate(
        [
            np.stack([np.full(images.shape[1:], v, dtype=np.float32) for v in (low, middle, high)]),
            np.clip(low + share * (high - low), low, high),
            np.where(random.random(images.shape) < 0.5, low, high),
            *(_spotted(images[:4], value, random) for value in (low, high, *spots)),
        ]
    )


def _declared(
    case: Case, images: Images, unlike: Images, random: np.random.Generator
) -> list[Contract]:
    """`valid` on poisoned, scaled and extreme rows, mixed with clean ones in one batch."""
    low, high = np.float32(case.data.range[0]), np.float32(case.data.range[1])
    wide = np.float32(high - low)
    infinity = np.float32(np.inf)
    kinds: list[tuple[str, str, Images]] = [
        ("nan", "A row with one NaN is not valid", _spotted(images, np.float32(np.nan), random)),
        (
            "infinity",
            "A row with one infinite value is not valid",
            np.concatenate([_spotted(images, v, random) for v in (infinity, -infinity)]),
        ),
        ("scale", "A row scaled by 255 is not valid", _scaled(images, case.data)),
        (
            "below_range",
            "A row with one value below the range is not valid",
            _spotted(images, low - wide / 100, random),
        ),
        (
            "one_step_outside",
            "A value one float32 step beyond either end is not valid",
            np.concatenate(
                [
                    _spotted(images, np.nextafter(low, -infinity), random),
                    _spotted(images, np.nextafter(high, infinity), random),
                ]
            ),
        ),
        (
            "within_range",
            "Real rows, constants, noise and values at or just inside either end are valid",
            np.concatenate([images, unlike]),
        ),
    ]
    contracts = []
    for name, what, odd in kinds:
        batch = np.concatenate([odd, images])[random.permutation(len(odd) + len(images))]
        _, valid = score(case.session, batch, len(batch))
        contracts.append(
            Contract(name, what, len(batch), int((valid != legal(batch, case.data)).sum()))
        )
    return contracts


def _spotted(images: Images, value: np.float32, random: np.random.Generator) -> Images:
    """The images with `value` in one random place each."""
    spotted = images.copy().reshape(len(images), -1)
    spotted[np.arange(len(images)), random.integers(0, spotted.shape[1], len(images))] = value
    return spotted.reshape(images.shape)


def _scaled(images: Images, data: Schema) -> Images:
    """The images times 255 and, should all of them be zero, a constant far beyond the range."""
    far = np.full((1, *images.shape[1:]), 255 * max(abs(v) for v in data.range), dtype=np.float32)
    return np.concatenate([images * np.float32(255), far])


def _isolated(case: Case, images: Images, random: np.random.Generator) -> Contract:
    """A poisoned row changes nothing for the others in its batch."""
    alone = score(case.session, images, len(images))[0]
    poison = np.array([np.nan, np.inf, -np.inf, 1e30], dtype=np.float32)
    broken = 0
    for value in poison:
        batch = np.concatenate([images, _spotted(images, value, random)])
        broken += _differing(score(case.session, batch, len(batch))[0][: len(images)], alone)
    return Contract(
        "isolation",
        "A poisoned row leaves the others in its batch as they were",
        len(poison) * len(images),
        broken,
    )


def _finite(case: Case, images: Images) -> Contract:
    """Logits of anything that is valid, however unlike the data."""
    logits, _ = score(case.session, images)
    return Contract(
        "finite",
        "Every valid row gets finite logits",
        len(images),
        int((~np.isfinite(logits).all(axis=1)).sum()),
    )


def _unit_scale(case: Case, rows: Table) -> dict[str, float] | None:
    """What becomes of rows brought to 0..1 by mistake: how many are valid, and right as answered.

    None where that is their range.
    """
    low, high = case.data.range
    if (low, high) == (0, 1):
        return None
    scaled = ((rows.images.astype(np.float64) - low) / (high - low)).astype(np.float32)
    logits, valid = score(case.session, scaled)
    return {"valid": float(valid.mean()), "accuracy": float(correct(logits, rows.labels).mean())}


def _refused(case: Case, images: Images) -> Contract:
    """Inputs of another type, rank, shape or layout raise; a score for them would be a lie."""
    name = case.session.get_inputs()[0].name
    n = len(images)
    wrong: list[NDArray[np.generic]] = [
        *(images.astype(kind) for kind in (np.float64, np.float16, np.uint8, np.int64, np.bool_)),
        images[0],
        images[None],
        images.reshape(n, -1),
        *(np.concatenate([images, images.take([0], axis)], axis) for axis in (1, 2, 3)),
        images[:, :, :-1],
        images[:, :, :, :-1],
        *(moved for moved in _layouts(images) if moved.shape != images.shape),
    ]
    scored = sum(not _refuses(case.session, name, odd) for odd in wrong)
    return Contract(
        "refusal", "Another dtype, rank, shape or layout is refused", len(wrong), scored
    )


def _layouts(images: Images) -> list[Images]:
    """Channels last, and height and width swapped; no shape tells the latter of a square image."""
    return [np.ascontiguousarray(images.transpose(o)) for o in ((0, 2, 3, 1), (0, 1, 3, 2))]


def _refuses(session: ort.InferenceSession, name: str, odd: NDArray[np.generic]) -> bool:
    try:
        session.run(None, {name: odd})
    except Exception:
        return True
    return False


def _batch_sizes(case: Case, images: Images) -> Contract:
    """Batches of any size, none included, in their declared shapes."""
    name, classes = case.session.get_inputs()[0].name, len(case.data.classes)
    broken = 0
    for size in BATCHES:
        batch = np.resize(images, (size, *images.shape[1:]))
        try:
            shapes = [out.shape for out in case.session.run(None, {name: batch})]
        except Exception:
            shapes = []
        broken += shapes != [(size, classes), (size,)]
    return Contract(
        "batch_sizes",
        f"Batches of {', '.join(map(str, BATCHES))} rows are scored",
        len(BATCHES),
        broken,
    )


def _invariant(case: Case, images: Images, random: np.random.Generator) -> list[Contract]:
    """The same bits for a row in any batch, place, number of threads, run and session."""
    n, order = len(images), random.permutation(len(images))
    one, two = case.session, open_session(case.model, threads=2)
    fresh = open_session(case.model, threads=1)

    def logits(session: ort.InferenceSession, size: int = n) -> NDArray[np.float32]:
        return score(session, images, size)[0]

    whole, single = logits(one), logits(one, 1)
    shuffled = score(one, images[order], n)[0][np.argsort(order)]
    pairs = {
        "batch_invariance": (
            "A row's logits are the same bits in any batch",
            [(single, whole), (logits(one, 7), whole), (logits(one, 33), whole)],
        ),
        "order_invariance": (
            "A row's logits are the same bits at any place of a batch",
            [(shuffled, whole)],
        ),
        "thread_invariance": (
            "One and two threads give the same bits",
            [(logits(two), whole), (logits(two, 1), single)],
        ),
        "determinism": (
            "A second run and a fresh session give the same bits",
            [(logits(one), whole), (logits(fresh), whole)],
        ),
    }
    return [
        Contract(name, what, n * len(found), sum(_differing(a, b) for a, b in found))
        for name, (what, found) in pairs.items()
    ]


def _differing(a: NDArray[np.float32], b: NDArray[np.float32]) -> int:
    """Rows whose bits differ; a NaN equals the same NaN."""
    return int((a.view(np.uint32) != b.view(np.uint32)).any(axis=1).sum())


def _figure(contracts: list[Contract]) -> Figure:
    """Each contract with the share of trials that broke it."""
    figure = Figure(figsize=(7, 0.8 + 0.34 * len(contracts)), layout="constrained")
    axes = figure.add_subplot()
    shares = [c.broken / c.tried for c in contracts]
    axes.barh(range(len(contracts)), shares, color="black", height=0.6)
    for place, contract in enumerate(contracts):
        text = f"broken {contract.broken} of {contract.tried}" if contract.broken else "holds"
        axes.text(shares[place] + 0.01, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(contracts)), [c.name.replace("_", " ") for c in contracts])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.25), xticks=(0, 0.5, 1), xlabel="share of trials that break the contract")
    return figure
