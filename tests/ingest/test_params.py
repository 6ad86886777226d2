import pytest

from tasks.core.errors import ParamsError
from tasks.core.params import check
from tasks.ingest.params import DataParams

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
GIVEN = {"train": 0.9, "val": 0.1, "test": "given"}
IDX = {"source": "idx", "path": "fashion", "split": GIVEN}


def test_a_given_test_split_leaves_train_and_val_to_sum_to_one() -> None:
    found = check(DataParams, IDX | {"classes": ["shirt", "bag"]}, where="data")
    assert (found.split.train, found.split.test) == (0.9, "given")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": SHARES}, "data: idx files bring their own test split; write split.test: given"),
        ({"source": "images"}, "data: images brings no test split; write a share as split.test"),
        ({"split": GIVEN | {"val": 0.2}}, "data.split: train and val must sum to 1 where test is"),
        ({"split": GIVEN | {"test": "givn"}}, r"split.test: must be a share .* \(got 'givn'\)"),
        ({"split": GIVEN | {"test": 1.5}}, r"split.test: must be a share .* \(got 1.5\)"),
        ({"split": SHARES | {"test": True}}, r"split.test: must be a share .* \(got True\)"),
        ({"path": None}, "'path' is needed for images, parquet and idx"),
        ({"classes": ["a", "b", "a"]}, "'classes' holds a name twice"),
        (
            {"source": "images", "split": SHARES, "classes": ["a", "b"]},
            "'classes' names the labels of idx files; remove it",
        ),
    ],
)
def test_a_section_that_the_source_contradicts_is_refused(
    change: dict[str, object], says: str
) -> None:
    with pytest.raises(ParamsError, match=says):
        check(DataParams, IDX | change, where="params.yaml: data")
