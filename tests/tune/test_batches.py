"""Threads and branches as tensors: who sees what, what is predicted where, among which codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from leadre.data.histories import AD, first_seen
from leadre.lm.prior import InventoryPrior
from leadre.tune.batches import Examples
from leadre.tune.prompts import PromptBlocks, PromptWriter
from leadre.tune.threads import ThreadBuilder


@pytest.fixture(scope="module")
def model(small, exact):
    return small.backbone(seed=5, double=True)


@pytest.fixture(scope="module")
def examples(small):
    return small.examples(new_weight=0.5)


@pytest.fixture(scope="module")
def windows(examples):
    """Four windows of different lengths."""
    found = sorted(examples.threads.training(seed=0), key=examples.length)
    return [found[0], found[len(found) // 3], found[len(found) // 2], found[-1]]


@torch.no_grad()
def hidden(model, batch, ids_BT=None):
    ids = batch.ids_BT if ids_BT is None else ids_BT
    return model(ids, batch.positions_BT.clamp(min=0), batch.mask_BNT, batch.thread).flatten(0, 1)


def seen_by(batch, n):
    """Flat positions that target ``n`` may depend on: its thread up to where it is asked, and its own branch."""
    width = batch.ids_BT.shape[1]
    asked, *branch = batch.predicts_NL[n].tolist()
    row = asked // width
    return [*range(row * width, asked + 1), *branch]


@pytest.mark.parametrize("pick", [0.0, 0.3, 0.6, 0.99])
def test_a_branch_sees_its_thread_up_to_the_request_and_itself(model, examples, windows, small, pick):
    batch = examples.batch(windows)
    n = int(pick * len(batch.targets_NL))
    mine = seen_by(batch, n)
    before = hidden(model, batch)[batch.predicts_NL[n]]
    rng = np.random.default_rng(0)
    scrambled = torch.from_numpy(rng.integers(0, small.layout.words + small.layout.codes, batch.ids_BT.shape))
    kept = scrambled.clone().flatten()
    kept[mine] = batch.ids_BT.flatten()[mine]
    after = hidden(model, batch, kept.view_as(scrambled))[batch.predicts_NL[n]]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    # and of what it may see, everything counts
    for position in rng.choice(mine, min(len(mine), 6), replace=False).tolist():
        one = batch.ids_BT.clone().flatten()
        one[position] = (one[position] + 1) % small.layout.words
        moved = hidden(model, batch, one.view_as(batch.ids_BT))[batch.predicts_NL[n, -1]]
        assert float((moved - before[-1]).abs().max()) > 1e-6, f"position {position} does not reach its branch"


def test_a_code_is_predicted_before_it_is_read(model, examples, windows, small):
    """The hidden state that predicts a level must not move with the code of that level."""
    batch = examples.batch(windows)
    before = hidden(model, batch)
    for level in range(batch.targets_NL.shape[1] - 1):
        changed = batch.ids_BT.clone().flatten()
        written = batch.predicts_NL[:, level + 1]  # where this level's code stands
        rows = changed[written] - small.layout.words - small.layout.offsets[level]
        assert torch.equal(rows, batch.targets_NL[:, level])
        changed[written] = 0
        after = hidden(model, batch, changed.view_as(batch.ids_BT))
        torch.testing.assert_close(after[batch.predicts_NL[:, level]], before[batch.predicts_NL[:, level]])


def test_padding_and_neighbours_change_nothing(model, examples, windows):
    together = examples.batch(windows)
    found = hidden(model, together)[together.predicts_NL]
    alone = []
    for window in windows:
        batch = examples.batch([window])
        alone.append(hidden(model, batch)[batch.predicts_NL])
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-9)
    assert together.tokens == sum(examples.batch([window]).tokens for window in windows)
    assert bool(torch.isfinite(hidden(model, together)).all())  # padding too, or gradients become nan


def test_positions_go_on_where_the_request_is_answered(examples, windows):
    batch = examples.batch(windows)
    positions = batch.positions_BT.flatten()[batch.predicts_NL]
    levels = torch.arange(batch.targets_NL.shape[1])
    assert torch.equal(positions, positions[:, :1] + levels)


def by_hand(small, hand, new_weight):
    """User 0 had object 1 and then acts on 1, 2 and 3, while 1, 2, 3, 5 and 6 are live."""
    logs = hand(
        [(0, 10, AD, 1, 0), *((0, 20, AD, o, 0) for o in (1, 2, 3))],
        [(0, 20, "train", [1, 2, 3])],
        live=[1, 2, 3, 5, 6],
        objects=len(small.codebook.object_ids),
    )
    live = InventoryPrior(logs, replace(small.codebook, object_ids=tuple(logs.objects["object_id"].to_list())))
    threads = ThreadBuilder(PromptWriter(logs, small.tokenizer, small.layout, PromptBlocks()))
    return Examples(threads, live, small.layout, new_weight), live


def test_targets_of_both_views_by_hand(small, hand):
    examples, live = by_hand(small, hand, new_weight=0.5)
    targets = examples.targets(0)
    assert targets.codes_NL.tolist() == live.codes_OL[[1, 2, 3, 2, 3]].tolist()
    assert targets.branch_N.tolist() == [0, 1, 2, 1, 2]  # an object is written once, whatever it is ranked among
    assert targets.weights_N.tolist() == pytest.approx([3**-0.5] * 3 + [0.5 * 2**-0.5] * 2)
    assert [objects.tolist() for objects in targets.live] == [[1, 2, 3, 5, 6], [2, 3, 5, 6]]
    assert targets.view_N.tolist() == [0, 0, 0, 1, 1]
    for n in range(5):
        for level in range(3):
            prefix = targets.codes_NL[n, :level]
            among = live.codes_OL[[1, 2, 3, 5, 6] if n < 3 else [2, 3, 5, 6]]
            codes = among[np.all(among[:, :level] == prefix, axis=1), level]
            assert np.flatnonzero(np.isfinite(targets.priors[level][n])).tolist() == sorted(set(codes.tolist()))


def test_without_weight_new_objects_are_not_ranked_apart(small, hand):
    examples, _ = by_hand(small, hand, new_weight=0.0)
    targets = examples.targets(0)
    assert len(targets.codes_NL) == len(targets.weights_N) == 3
    assert all(len(prior) == 3 for prior in targets.priors)


def test_what_the_pointer_may_repeat(small, hand):
    """Object 1 was read before the request; in the view of new objects it is not live."""
    examples, _ = by_hand(small, hand, new_weight=0.5)
    (window,) = examples.threads.training(0)
    batch = examples.batch([window])
    first = int(small.layout.object(np.array(0)))
    read = [t for t, i in enumerate(batch.ids_BT[0, : batch.thread].tolist()) if i >= first]
    end = int(batch.predicts_NL[0, 0])
    assert read and all(t <= end for t in read)
    expected = [[t in read and n < 3 for t in range(batch.thread)] for n in range(5)]
    assert torch.isfinite(batch.log_worth_NT).tolist() == expected


def test_every_target_is_live_and_every_prior_is_of_its_prefix(small, examples, windows):
    batch = examples.batch(windows)
    for level, prior in enumerate(batch.priors):
        assert bool(prior.gather(1, batch.targets_NL[:, level : level + 1]).isfinite().all())
        assert prior.shape == (len(batch.targets_NL), small.layout.sizes[level])
    new = sum(int(first_seen(small.logs, int(r)).any()) for w in windows for r in w.requests)
    assert new > 0
    assert batch.thread_N.tolist() == sorted(batch.thread_N.tolist())


def test_an_epoch_holds_every_window_once(examples):
    batches = examples.epoch(seed=3, tokens=1200)
    key = [(w.user, w.start, w.stop) for batch in batches for w in batch]
    assert sorted(key) == sorted((w.user, w.start, w.stop) for w in examples.threads.training(seed=3))
    assert len(batches) > 3
    for batch in batches:
        longest = max(map(examples.length, batch))
        assert len(batch) == 1 or longest * len(batch) <= 1200
    again = [(w.user, w.start, w.stop) for batch in examples.epoch(seed=3, tokens=1200) for w in batch]
    assert key == again
    lengths = [np.mean(list(map(examples.length, batch))) for batch in batches]
    assert lengths != sorted(lengths)  # shuffled, or the model would first see short threads alone


def test_length_is_about_what_a_window_takes(examples):
    windows = examples.threads.training(seed=0)
    guessed = np.array([examples.length(window) for window in windows])
    taken = np.array([examples.batch([window]).tokens for window in windows])
    assert np.all(np.abs(guessed - taken) < 0.4 * taken + 40)
    assert abs(guessed.sum() / taken.sum() - 1) < 0.2


def test_moving_a_batch_keeps_it_whole(examples, windows):
    batch = examples.batch(windows[:1])
    moved = batch.to(torch.device("cpu"))
    assert moved.thread == batch.thread
    assert all(torch.equal(a, b) for a, b in zip(moved.priors, batch.priors, strict=True))
    assert torch.equal(moved.log_worth_NT, batch.log_worth_NT)
