"""Tensors on disk: written as a stream, mapped or read row by row, whole or not at all."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.core import stored
from tasks.core.errors import DataError
from tasks.core.files import sha256
from tasks.core.stored import OnDisk, read_stored, streamed

VALUES = torch.arange(60, dtype=torch.float32).reshape(20, 3)


def written(path: Path, values: torch.Tensor) -> str:
    with streamed(path, "x", tuple(values.shape), values.dtype) as stream:
        for block in values.split(7):
            stream.write(block)
    return stream.sha256()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int32]
)
@pytest.mark.parametrize("limit", [0, 2**20], ids=["row by row", "mapped"])
def test_what_was_streamed_is_read_back_by_index_and_by_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, limit: int
) -> None:
    monkeypatch.setattr(stored, "MAPPED", limit)
    values = VALUES.to(dtype)
    written(tmp_path / "a", values)
    found = read_stored(tmp_path / "a", "x")
    assert isinstance(found, OnDisk) == (limit == 0)
    index = torch.tensor([19, 0, 7, 7])
    assert torch.equal(found[index], values[index])
    assert torch.equal(found[18:40], values[18:])
    assert tuple(found.shape) == (20, 3)
    assert len(found) == 20


def test_any_reader_of_safetensors_reads_it_and_the_digest_is_the_file_s(tmp_path: Path) -> None:
    digest = written(tmp_path / "a.safetensors", VALUES.half())
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], VALUES.half())
    assert digest == sha256(tmp_path / "a.safetensors")


@pytest.mark.parametrize("rows", [1, 10, 1000])  # headers of three lengths
def test_the_tensor_begins_at_a_multiple_of_eight_bytes(tmp_path: Path, rows: int) -> None:
    written(tmp_path / "a", torch.zeros(rows, 3, dtype=torch.float16))
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0


def test_a_stream_that_ends_early_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="bytes are missing"),
        streamed(tmp_path / "a", "x", (20, 3), torch.float16) as stream,
    ):
        stream.write(VALUES[:19].half())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", [VALUES[:1], torch.ones(21, 3, dtype=torch.float16)])
def test_rows_that_the_header_does_not_announce_are_refused(
    tmp_path: Path, block: torch.Tensor
) -> None:
    with (
        pytest.raises(ValueError, match="does not announce"),
        streamed(tmp_path / "a", "x", (20, 3), torch.float16) as stream,
    ):
        stream.write(block)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"x": {"dtype": "F16", "shape": [20, 3]}}, None),
        ({"x": {"dtype": "F16", "shape": [21, 3]}}, "another number of bytes"),
        ({"x": {"dtype": "F16", "shape": [-20, -3]}}, "another number of bytes"),
        ({"x": {"dtype": "F64", "shape": [20, 3]}}, "not the safetensors file"),
        ({"y": {"dtype": "F16", "shape": [20, 3]}}, "not the safetensors file"),
        ([], "not the safetensors file"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, header: object, says: str | None
) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(120))
    if says is None:
        assert read_stored(tmp_path / "a", "x").shape == (20, 3)
    else:
        with pytest.raises(DataError, match=says):
            read_stored(tmp_path / "a", "x")


def test_a_file_that_becomes_shorter_is_an_error_and_not_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAPPED", 0)
    written(tmp_path / "a", VALUES.half())
    found = read_stored(tmp_path / "a", "x")
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match="became shorter"):
        found[torch.tensor([19])]


def test_a_slice_is_read_whole_however_little_the_system_gives_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "MAPPED", 0)
    written(tmp_path / "a", VALUES.half())
    found, whole = read_stored(tmp_path / "a", "x"), os.pread
    monkeypatch.setattr(os, "pread", lambda handle, count, at: whole(handle, min(count, 7), at))
    assert torch.equal(found[3:18], VALUES[3:18].half())
