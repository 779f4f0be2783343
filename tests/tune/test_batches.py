"""Threads and branches as tensors: the attention mask, the predicting positions, and the candidate codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from leadre.data.histories import AD, first_seen
from leadre.data.moment import of_requests
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
    by_length = sorted(examples.threads.training(seed=0), key=examples.length)
    return [by_length[0], by_length[len(by_length) // 3], by_length[len(by_length) // 2], by_length[-1]]


@torch.no_grad()
def hidden(model, batch, ids_BT=None):
    ids = batch.ids_BT if ids_BT is None else ids_BT
    return model(ids, batch.positions_BT.clamp(min=0), batch.mask_BNT, batch.thread_length).flatten(0, 1)


def visible_to(batch, n):
    """Flat positions that target ``n`` may depend on: its thread up to the request, and its own branch."""
    width = batch.ids_BT.shape[1]
    end, *branch = batch.predicts_NL[n].tolist()
    row = end // width
    return [*range(row * width, end + 1), *branch]


@pytest.mark.parametrize("pick", [0.0, 0.3, 0.6, 0.99])
def test_branch_attends_to_its_thread_up_to_the_request_and_to_itself(model, examples, windows, small, pick):
    batch = examples.batch(windows)
    n = int(pick * len(batch.targets_NL))
    visible = visible_to(batch, n)
    before = hidden(model, batch)[batch.predicts_NL[n]]
    rng = np.random.default_rng(0)
    scrambled = torch.from_numpy(rng.integers(0, small.layout.words + small.layout.codes, batch.ids_BT.shape))
    kept = scrambled.clone().flatten()
    kept[visible] = batch.ids_BT.flatten()[visible]
    after = hidden(model, batch, kept.view_as(scrambled))[batch.predicts_NL[n]]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    # and every visible position has an effect
    for position in rng.choice(visible, min(len(visible), 6), replace=False).tolist():
        changed = batch.ids_BT.clone().flatten()
        changed[position] = (changed[position] + 1) % small.layout.words
        moved = hidden(model, batch, changed.view_as(batch.ids_BT))[batch.predicts_NL[n, -1]]
        assert float((moved - before[-1]).abs().max()) > 1e-6, f"position {position} does not reach its branch"


def test_hidden_state_does_not_depend_on_the_code_it_predicts(model, examples, windows, small):
    batch = examples.batch(windows)
    before = hidden(model, batch)
    for level in range(batch.targets_NL.shape[1] - 1):
        changed = batch.ids_BT.clone().flatten()
        inputs = batch.predicts_NL[:, level + 1]  # the positions of this level's codes
        rows = changed[inputs] - small.layout.words - small.layout.offsets[level]
        assert torch.equal(rows, batch.targets_NL[:, level])
        changed[inputs] = 0
        after = hidden(model, batch, changed.view_as(batch.ids_BT))
        torch.testing.assert_close(after[batch.predicts_NL[:, level]], before[batch.predicts_NL[:, level]])


def test_hidden_states_do_not_depend_on_padding_and_neighbours(model, examples, windows):
    together = examples.batch(windows)
    batched = hidden(model, together)[together.predicts_NL]
    alone = []
    for window in windows:
        batch = examples.batch([window])
        alone.append(hidden(model, batch)[batch.predicts_NL])
    torch.testing.assert_close(batched, torch.cat(alone), rtol=0, atol=1e-9)
    assert together.tokens == sum(examples.batch([window]).tokens for window in windows)
    assert bool(torch.isfinite(hidden(model, together)).all())  # padding too, or gradients become nan


def test_positions_of_a_branch_follow_the_end_of_its_request(examples, windows):
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
    threads = ThreadBuilder(PromptWriter(logs, small.tokenizer, small.layout, PromptBlocks()), of_requests(logs))
    return Examples(threads, live, small.layout, new_weight), live


def test_targets_of_both_views_by_hand(small, hand):
    examples, live = by_hand(small, hand, new_weight=0.5)
    targets = examples.targets(0, examples.threads.moments[0])
    assert targets.codes_NL.tolist() == live.codes_OL[[1, 2, 3, 2, 3]].tolist()
    assert targets.branch_N.tolist() == [0, 1, 2, 1, 2]  # an object has one branch in both views
    assert targets.weights_N.tolist() == pytest.approx([3**-0.5] * 3 + [0.5 * 2**-0.5] * 2)
    assert [objects.tolist() for objects in targets.live] == [[1, 2, 3, 5, 6], [2, 3, 5, 6]]
    assert targets.view_N.tolist() == [0, 0, 0, 1, 1]
    for n in range(5):
        for level in range(3):
            prefix = targets.codes_NL[n, :level]
            among = live.codes_OL[[1, 2, 3, 5, 6] if n < 3 else [2, 3, 5, 6]]
            codes = among[np.all(among[:, :level] == prefix, axis=1), level]
            assert np.flatnonzero(np.isfinite(targets.priors[level][n])).tolist() == sorted(set(codes.tolist()))


def test_new_weight_zero_leaves_the_view_of_new_objects_out(small, hand):
    examples, _ = by_hand(small, hand, new_weight=0.0)
    targets = examples.targets(0, examples.threads.moments[0])
    assert len(targets.codes_NL) == len(targets.weights_N) == 3
    assert all(len(prior) == 3 for prior in targets.priors)


def test_pointer_copies_only_live_objects_before_the_request(small, hand):
    """Object 1 is in the history; in the view of new objects it is not live."""
    examples, _ = by_hand(small, hand, new_weight=0.5)
    (window,) = examples.threads.training(0)
    batch = examples.batch([window])
    first = int(small.layout.object(np.array(0)))
    objects_at = [t for t, i in enumerate(batch.ids_BT[0, : batch.thread_length].tolist()) if i >= first]
    end = int(batch.predicts_NL[0, 0])
    assert objects_at and all(t <= end for t in objects_at)
    expected = [[t in objects_at and n < 3 for t in range(batch.thread_length)] for n in range(5)]
    assert torch.isfinite(batch.pointer_bias_NT).tolist() == expected


def test_every_target_is_live_under_its_prior(small, examples, windows):
    batch = examples.batch(windows)
    for level, prior in enumerate(batch.priors):
        assert bool(prior.gather(1, batch.targets_NL[:, level : level + 1]).isfinite().all())
        assert prior.shape == (len(batch.targets_NL), small.layout.sizes[level])
    new = sum(int(first_seen(small.logs, int(r)).any()) for w in windows for r in w.requests)
    assert new > 0
    assert batch.thread_N.tolist() == sorted(batch.thread_N.tolist())


def test_epoch_contains_every_window_once(examples):
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
    assert lengths != sorted(lengths)  # shuffled: training does not begin with short threads alone


def test_length_estimates_the_positions_of_a_window(examples):
    windows = examples.threads.training(seed=0)
    estimates = np.array([examples.length(window) for window in windows])
    positions = np.array([examples.batch([window]).tokens for window in windows])
    assert np.all(np.abs(estimates - positions) < 0.4 * positions + 40)
    assert abs(estimates.sum() / positions.sum() - 1) < 0.2


def test_batch_moved_to_a_device_keeps_its_content(examples, windows):
    batch = examples.batch(windows[:1])
    moved = batch.to(torch.device("cpu"))
    assert moved.thread_length == batch.thread_length
    assert all(torch.equal(a, b) for a, b in zip(moved.priors, batch.priors, strict=True))
    assert torch.equal(moved.pointer_bias_NT, batch.pointer_bias_NT)
