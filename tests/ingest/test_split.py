import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.ingest.params import Shares
from tasks.ingest.split import assign, row_id

SHARES = Shares(train=0.6, val=0.15, test=0.25)


@given(
    st.lists(st.binary(min_size=4, max_size=4), min_size=1),
    st.lists(st.binary(min_size=4, max_size=4)),
)
def test_rows_never_move_when_the_snapshot_grows(now: list[bytes], later: list[bytes]) -> None:
    def sides(pixels: list[bytes]) -> list[str]:
        ids = [row_id(np.frombuffer(p, np.uint8).reshape(1, 2, 2)) for p in pixels]
        return assign(ids, SHARES).tolist()

    assert sides(now + later)[: len(now)] == sides(now)


def test_shares_are_kept_on_many_rows() -> None:
    draw = np.random.default_rng(0)
    ids = [row_id(draw.integers(0, 255, (1, 3, 3)).astype(np.uint8)) for _ in range(20_000)]
    names, counts = np.unique(assign(ids, SHARES), return_counts=True)
    share = dict(zip(names.tolist(), (counts / 20_000).tolist(), strict=True))
    assert abs(share["train"] - 0.60) < 0.015
    assert abs(share["val"] - 0.15) < 0.015


def test_an_id_depends_on_every_pixel_and_on_the_shape() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    touched = image.copy()
    touched[0, 2, 3] += 1
    ids = {row_id(image), row_id(touched), row_id(image.reshape(1, 4, 3))}
    assert len(ids) == 3
