"""The live catalogue against a plain dictionary of paths, after every change."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.errors import InputError
from leadre.semid.inventory import Inventory, UnionMask
from leadre.semid.trie import DEAD, build

SIZES = (3, 4, 2, 3)
PATHS = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), axis=-1).reshape(-1, len(SIZES))
NO = -math.inf


def check(mask, live):
    """Every question about every prefix, dead ones too; ``live`` is {row: (path, weight or None)}."""
    states = mask.roots(1)
    prefixes = [()]
    for level, size in enumerate(mask.sizes):
        below = [{row: entry for row, entry in live.items() if entry[0][:level] == prefix} for prefix in prefixes]
        assert mask.rows_below(np.append(states, DEAD)).tolist() == [*map(len, below), 0]
        expected = np.full((len(prefixes), size), NO)
        for b, rows in enumerate(below):
            for code in {path[level] for path, _ in rows.values()}:
                weights = [w for path, w in rows.values() if path[level] == code]
                expected[b, code] = 0 if weights[0] is None else math.log(sum(weights))
        prior = mask.log_prior(np.append(states, DEAD), level)
        assert prior.dtype == np.float32 and np.all(prior[-1] == NO)
        np.testing.assert_allclose(prior[:-1], expected, rtol=1e-6, atol=1e-6)
        following = mask.step(np.repeat(states, size), np.tile(np.arange(size), len(states)), level)
        assert np.array_equal(following == DEAD, np.isneginf(expected.ravel()))
        beams, codes = np.nonzero(np.isfinite(expected))
        prefixes = [(*prefixes[b], int(code)) for b, code in zip(beams, codes, strict=True)]
        states = following[following != DEAD]
    assert mask.rows_below(states).tolist() == [1] * len(live)
    rows = mask.rows(np.append(states, DEAD)).tolist()
    assert dict(zip(rows, [*prefixes, None], strict=True)) == {row: path for row, (path, _) in live.items()} | {
        -1: None
    }


class Model:
    """Reference inventory without a trie."""

    def __init__(self, seed, weighted):
        self.rng = np.random.default_rng(seed)
        self.weighted = weighted
        self.entries = []
        self.status = []
        codes, weights = self.draw(int(self.rng.integers(0, 40)))
        self.inventory = Inventory(codes, SIZES, weights)
        self.note(codes, weights)

    def draw(self, count):
        """Free paths and their weights, over many orders of magnitude."""
        taken = {path for (path, _), status in zip(self.entries, self.status, strict=True) if status != "removed"}
        free = [path for path in PATHS.tolist() if tuple(path) not in taken]
        codes = self.rng.permutation(free)[:count].reshape(-1, len(SIZES)).astype(np.int64)
        return codes, 10.0 ** self.rng.uniform(-9, 9, len(codes)) if self.weighted else None

    def note(self, codes, weights):
        weights = [None] * len(codes) if weights is None else weights.tolist()
        self.entries += zip(map(tuple, codes.tolist()), weights, strict=True)
        self.status += ["live"] * len(codes)

    def some(self, *statuses):
        rows = [row for row, status in enumerate(self.status) if status in statuses]
        return self.rng.permutation(rows)[: self.rng.integers(0, 12)].astype(np.int64)

    def live(self):
        return {row: entry for row, entry in enumerate(self.entries) if self.status[row] == "live"}

    def add(self):
        codes, weights = self.draw(int(self.rng.integers(0, 8)))
        rows = self.inventory.add(codes, weights)
        assert rows.tolist() == list(range(len(self.entries), len(self.entries) + len(codes)))
        self.note(codes, weights)

    def move(self, name, statuses, becomes):
        rows = self.some(*statuses)
        getattr(self.inventory, name)(rows)
        for row in rows.tolist():
            self.status[row] = becomes

    def act(self, action):
        match action:
            case "add":
                self.add()
            case "pause":
                self.move("pause", ["live", "paused"], "paused")
            case "resume":
                self.move("resume", ["live", "paused"], "live")
            case "remove":
                self.move("remove", ["live", "paused"], "removed")
            case "merge":
                self.inventory.merge()
                assert self.inventory.added == 0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weighted=st.booleans(),
    actions=st.lists(st.sampled_from(["add", "add", "pause", "resume", "remove", "merge"]), max_size=8),
)
def test_agrees_with_a_dictionary_after_every_change(seed, weighted, actions):
    model = Model(seed, weighted)
    for action in ["merge", *actions]:
        model.act(action)
        live = model.live()
        inventory = model.inventory
        check(inventory.live, live)
        every = np.arange(len(model.status))
        allowed, denied = (np.sort(model.rng.permutation(every)[: len(every) // share]) for share in (2, 4))
        inside = {row: live[row] for row in allowed.tolist() if row in live}
        check(inventory.restrict(model.rng.permutation(allowed)), inside)
        check(inventory.restrict(np.isin(every, allowed)), inside)
        outside = {row: entry for row, entry in live.items() if row not in denied}
        check(inventory.restrict(denied=np.concatenate([denied, denied])), outside)
        both = {row: entry for row, entry in inside.items() if row not in denied}
        check(inventory.restrict(allowed, denied=np.isin(every, denied)), both)


def test_a_million_switches_leave_no_trace():
    rng = np.random.default_rng(0)
    codes = PATHS
    weights = 10.0 ** rng.uniform(-9, 9, len(PATHS))
    inventory = Inventory(codes, SIZES, weights)
    for _ in range(200):
        rows = rng.integers(0, len(codes), 40)
        inventory.pause(rows)
        inventory.resume(rows)
    inventory.pause(np.flatnonzero(weights > 1e-6))
    check(inventory.live, {row: (tuple(codes[row].tolist()), weights[row]) for row in np.flatnonzero(weights <= 1e-6)})


def test_a_mask_in_use_sees_a_pause_at_its_next_question():
    inventory = Inventory(PATHS[:8], SIZES)
    inventory.add(PATHS[8:12])
    mask = inventory.live
    states = mask.step(mask.roots(2), np.array([0, 0]), 0)
    before = mask.rows_below(states)
    inventory.pause(np.array([0, 9]))
    assert mask.rows_below(states).tolist() == (before - 2).tolist()
    inventory.resume(np.array([9]))
    assert mask.rows_below(states).tolist() == (before - 1).tolist()


def test_states_outlive_additions_and_merges():
    inventory = Inventory(PATHS[:30:3], SIZES)
    inventory.add(PATHS[1:30:3])
    mask = inventory.live
    assert isinstance(mask, UnionMask)
    states = mask.step(mask.roots(1), np.array([0]), 0)
    inventory.add(PATHS[2:30:3])
    inventory.merge()
    for level in (1, 2, 3):
        code = np.isfinite(mask.log_prior(states, level)[0]).nonzero()[0][-1:]
        states = mask.step(states, code, level)
    assert mask.rows(states).tolist() == [PATHS[1:30:3].tolist().index([0, 3, 1, 1]) + 10]


def test_a_row_keeps_its_number_and_a_removed_one_is_never_given_again():
    inventory = Inventory(PATHS[:4], SIZES)
    inventory.remove(np.array([1, 2]))
    assert inventory.add(PATHS[[1]]).tolist() == [4]
    inventory.merge()
    assert inventory.add(PATHS[[2]]).tolist() == [5]
    check(inventory.live, {row: (tuple(PATHS[at].tolist()), None) for row, at in {0: 0, 3: 3, 4: 1, 5: 2}.items()})
    # row 1 is removed and its path belongs to row 4: to deny row 1 does not deny row 4
    assert inventory.restrict(denied=np.array([1])).rows_below(np.array([0])).tolist() == [4]


def test_nothing_allowed_is_an_answer():
    inventory = Inventory(PATHS[:4], SIZES, np.ones(4))
    inventory.pause(np.array([3]))
    for mask in (
        inventory.restrict(np.array([3])),
        inventory.restrict(denied=np.arange(4)),
        inventory.restrict(np.zeros(0)),
    ):
        check(mask, {})
        assert mask.weighted


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (PATHS[[9, 2]], r"path \[0, 0, 0, 2\] is taken"),
        (PATHS[[5]], r"path \[0, 0, 1, 2\] is taken"),
        (PATHS[[8, 8]], r"path \[0, 1, 0, 2\] is taken"),
        (PATHS[[6]], "is taken"),
        (np.array([[0, 4, 0, 0]]), "codes from 0 to 4"),
        (np.array([[0, -1, 0, 0]]), "codes from -1 to 0"),
    ],
)
def test_invalid_additions_are_input_errors(codes, message):
    inventory = Inventory(PATHS[:6], SIZES)
    inventory.add(PATHS[[6]])
    inventory.pause(np.array([5]))  # a paused ad keeps its path
    with pytest.raises(InputError, match=message):
        inventory.add(codes)
    assert inventory.rows == 7


def test_weights_are_all_or_none():
    for weights, given_weights in ((None, np.ones(1)), (np.ones(1), None), (np.ones(1), np.zeros(1))):
        with pytest.raises(InputError, match="weights"):
            Inventory(PATHS[:1], SIZES, weights).add(PATHS[1:2], given_weights)


def test_rows_that_are_not_there():
    inventory = Inventory(PATHS[:4], SIZES)
    inventory.remove(np.array([2]))
    for call in (inventory.pause, inventory.resume, inventory.remove):
        with pytest.raises(InputError, match="row 2 was removed"):
            call(np.array([1, 2]))
        with pytest.raises(InputError, match="rows from 1 to 4; this inventory has 0 to 3"):
            call(np.array([1, 4]))
    with pytest.raises(InputError, match="a mask over 3 rows; this inventory has 4"):
        inventory.restrict(np.ones(3, np.bool_))
    with pytest.raises(InputError, match="rows from -1"):
        inventory.restrict(denied=np.array([-1]))
    assert inventory.live.rows_below(np.array([0])).tolist() == [3]


def test_readers_are_not_disturbed_by_a_writer():
    rng = np.random.default_rng(0)
    inventory = Inventory(PATHS[:36], SIZES)
    faults = []
    done = threading.Event()
    always = PATHS[:12]  # never touched, so every reader has to find them, and nothing that was never there

    def read():
        while not done.is_set():
            mask = inventory.restrict(denied=np.array([13])) if rng.random() < 0.5 else inventory.live
            states = mask.roots(len(PATHS))
            for level in range(len(SIZES)):
                states = mask.step(states, PATHS[:, level], level)
            rows = mask.rows(states)
            if not np.array_equal(rows[: len(always)], np.arange(len(always))) or np.any(rows[40:] >= 0):
                faults.append(rows)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(150):
        rows = 12 + rng.permutation(24)[:5]
        inventory.pause(rows)
        new = inventory.add(PATHS[36:40])
        if turn % 5 == 0:
            inventory.merge()
        inventory.resume(rows)
        inventory.remove(new)
    done.set()
    for reader in readers:
        reader.join()
    assert not faults, faults[0]


def test_the_base_stays_where_it_is():
    inventory = Inventory(PATHS[:20], SIZES)
    base = inventory.live
    rows = inventory.add(PATHS[20:30])
    inventory.pause(rows[:3])
    assert inventory.live.base is base
    inventory.merge()
    fresh = build(PATHS[:30], SIZES)
    assert np.array_equal(inventory.live.child_codes, fresh.child_codes)
    assert inventory.live.rows_beneath[0] == 27
