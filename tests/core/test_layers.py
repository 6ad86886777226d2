"""What losses see of a network's layers, and a live teacher in the place of a bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.core.bank import BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.errors import ParamsError
from tasks.core.kd import kd
from tasks.core.layers import Taps, evaluating, layer_shapes, pairs, same_size
from tasks.core.live import live_network, live_scorer
from tasks.core.models import Architecture, Normalisation
from tasks.core.rows import Rows, in_memory
from tasks.core.seeds import derived, deterministic
from tasks.core.signal import Batch, Outputs, Signal, Student
from tasks.core.tables import Schema, Table
from tasks.core.trainer import Training, train
from tasks.modalities.vision.networks import ResidualNetwork, build
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views

SCHEMA = Schema(
    modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16), classes=("a", "b", "c")
)
VIEWS = Views(count=3, seed=3, shift=1, flip=True)


@pytest.fixture
def rows() -> Rows:
    draw = np.random.default_rng(1)
    labels = np.arange(60) % 3
    images = draw.integers(0, 6, (60, 1, 8, 8)) + 5 * labels[:, None, None, None]
    names = np.array([f"{derived(0, i):016x}" + "0" * 48 for i in range(60)])
    return in_memory(Table(names, labels, images.astype(np.uint8)))


def network(*widths: int, seed: int = 0) -> ResidualNetwork:
    torch.manual_seed(seed)
    return build(Architecture(widths=widths), SCHEMA, Normalisation(mean=8, std=5))


def test_taps_show_what_left_each_layer_in_the_latest_pass() -> None:
    net, first, second = network(4, 8).eval(), torch.ones(2, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    with torch.no_grad(), Taps(net, ["stem", "body.1"]) as taps:
        net(first)
        before = taps.features
        logits = net(second)
        stem = net.stem((second - net.mean) / net.std)
    assert torch.equal(taps.features["stem"], stem)
    assert torch.equal(net.head(taps.features["body.1"].mean((2, 3))), logits)
    assert len(before["stem"]) == 2, "what was taken before stays"


def test_taps_leave_no_hook_behind_even_after_an_error() -> None:
    net = network(4)
    with pytest.raises(ZeroDivisionError), Taps(net, ["stem"]):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_that_does_not_exist_is_met_by_those_that_do() -> None:
    with pytest.raises(ParamsError, match=r"no layer 'bodi.0'; did you mean 'body.0'\? .* head$"):
        Taps(network(4), ["stem", "bodi.0"])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_layer_that_gives_no_tensor_is_named() -> None:
    net = nn.Sequential(Pair())
    with pytest.raises(ParamsError, match="'0' gives a tuple, no tensor; name another"):
        layer_shapes(net, ["0"], (2,))


def test_shapes_are_of_one_row_and_asking_for_them_changes_nothing() -> None:
    net = network(4, 8).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert layer_shapes(net, ["stem", "body.1", "head"], SCHEMA.shape) == {
        "stem": (4, 8, 8),
        "body.1": (8, 4, 4),
        "head": (3,),
    }
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_each_module_gets_its_own_mode_back() -> None:
    net = network(4).train()
    net.bn.eval()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not any(module.training for module in net.modules())
        raise ZeroDivisionError
    assert [name for name, module in net.named_modules() if not module.training] == ["bn"]


def test_pairs_are_the_named_layers_in_float32_or_the_logits() -> None:
    half = Outputs(torch.zeros(2, 3), {"a": torch.ones(2, 4, dtype=torch.bfloat16)})
    other = Outputs(torch.ones(2, 3), {"b": torch.zeros(2, 5)})
    ((ours, theirs),) = pairs({"a": "b"}, half, other)
    assert (ours.shape, ours.dtype, theirs.shape) == ((2, 4), torch.float32, (2, 5))
    ((ours, theirs),) = pairs({}, half, other)
    assert (float(ours.sum()), float(theirs.sum())) == (0, 6)


def test_maps_of_two_sizes_meet_at_the_smaller_one() -> None:
    big = torch.arange(16.0).reshape(1, 1, 4, 4)
    first, second = same_size(big, torch.zeros(1, 1, 2, 2))
    assert first.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert second.shape == first.shape


def test_a_live_teacher_neither_trains_nor_keeps_a_gradient() -> None:
    net = network(4).train()
    signal = live_network(net, ["body.0"])
    (said,) = signal(torch.ones(2, 1, 8, 8), torch.arange(2), 0)
    assert not net.training
    assert not said.logits.requires_grad
    assert not said.features["body.0"].requires_grad
    net.bn.train()
    with pytest.raises(AssertionError, match="a teacher trains"):
        signal(torch.ones(2, 1, 8, 8), torch.arange(2), 0)


def test_a_live_black_box_says_what_its_network_would() -> None:
    net, images = network(4, 8).eval(), torch.rand(5, 1, 8, 8) * 16
    (white,), (black,) = (
        signal(images.to(memory_format=torch.channels_last), torch.arange(5), 0)
        for signal in (live_network(net), live_scorer(network_scorer(net)))
    )
    assert torch.allclose(white.logits, black.logits, atol=1e-6)
    assert black.features == {}


def taught(rows: Rows, signal: Signal, history: Path, what: str) -> dict[str, Tensor]:
    """A student's weights after a few epochs under a teacher."""
    deterministic(0, threads=1)
    net = network(4, seed=7)

    def loss(student: Student, batch: Batch) -> Tensor:
        return batch.mean(kd(student.logits, batch.teacher.logits, 4.0))

    train(
        net,
        rows,
        loss,
        Training(epochs=6, batch=20, learning_rate=0.01),
        view=viewer(rows, VIEWS, SCHEMA),
        validate=lambda: 0.5,
        history=history,
        what=what,
        signal=signal,
    )
    return net.state_dict()


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_a_student_learns_the_same_from_a_live_teacher_and_from_its_bank(
    rows: Rows, tmp_path: Path
) -> None:
    teacher, views, view = network(8, 12).eval(), VIEWS.model_dump(), viewer(rows, VIEWS, SCHEMA)
    score = network_scorer(teacher)
    write_bank(tmp_path, rows, "teacher", views, view, lambda images, _: score(images))
    bank = read_bank(tmp_path, rows, "teacher", views, BankForm())

    live = taught(rows, live_network(teacher), tmp_path / "a", "live")
    black = taught(rows, live_scorer(score), tmp_path / "b", "black")
    banked = taught(rows, bank.signal, tmp_path / "c", "banked")
    wrong = taught(rows, lambda *a: bank.signal(a[0], a[1], a[2] + 1), tmp_path / "d", "wrong")

    assert apart(live, black) < 1e-5
    assert apart(live, banked) < 1e-3, "float16 rounds"
    assert apart(live, wrong) > 1e-2, "another view's logits would show"
