from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.errors import DataError
from tasks.core.files import (
    canonical,
    digest,
    inside,
    read_json,
    sha256,
    tree_sha256,
    whole,
    write_json,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": True})
    with pytest.raises(RuntimeError), whole(target) as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@given(st.dictionaries(st.text(), JSON))
def test_equal_values_have_equal_bytes_whatever_their_order(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical(value) == canonical(turned)
    assert digest(value) == digest(turned)


def test_nan_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_broken_json_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a":')
    with pytest.raises(DataError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="leads out of"):
        inside(tmp_path / "in", tmp_path / "in" / "link")


def test_a_tree_is_named_by_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("1")
    assert tree_sha256(tmp_path) == {"b/c": sha256(tmp_path / "b" / "c")}
