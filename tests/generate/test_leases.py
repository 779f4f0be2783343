"""Batches that workers lease from each other, and a store that is waited for."""

import pytest

from leadre import progress
from leadre.errors import StoreDown
from leadre.generate import lists


def test_a_batch_is_leased_to_one_and_done_once(tmp_path):
    one, two = (lists.Leases(tmp_path / "leases.db", "v") for _ in range(2))
    one.start(3)
    assert [one.take("a", 0, 10), two.take("b", 0, 10), one.take("a", 0, 20), two.take("b", 9, 20)] == [0, 1, 2, None]
    assert one.finish(0, 5) and not two.finish(0, 6)
    assert two.take("b", 10, 20) == 1  # its lease ran out
    assert one.finish(1, 11) and not two.finish(1, 12) and one.left() == 1
    two.start(3)
    assert one.take("a", 11, 20) == 2
    other = lists.Leases(tmp_path / "leases.db", "another")
    other.start(1)
    assert (other.left(), one.left()) == (1, 1)
    for leases in (one, two, other):
        leases.close()


def test_patience_has_an_end(monkeypatch):
    monkeypatch.setattr(progress, "say", lambda text: None)
    calls = []

    def down():
        calls.append(1)
        raise StoreDown("down")

    with pytest.raises(StoreDown):
        lists.patiently(down, 0.6)
    assert len(calls) >= 3
    assert lists.patiently(lambda: 7, 0) == 7
