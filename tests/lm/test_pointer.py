"""The pointer by hand: where it looks, what it adds, and that it can always be finished."""

import math

import pytest
import torch

from leadre.lm.pointer import FADE_POSITIONS, Pointer, PointerSources

NONE = -1


@pytest.fixture
def pointer():
    """A pointer without taste: every source is alike but for its distance; the gate is half open."""
    made = Pointer(4).double()
    with torch.no_grad():
        for part in (made.query.weight, made.gate.weight, made.gate.bias, made.fade):
            part.zero_()
    return made


def mix(pointer, codes, may, head, level=0, counts=None, worth=1.0):
    """Mixture over 3 codes for one request of one thread."""
    log_worth = (torch.tensor([may], dtype=torch.float64) * torch.tensor(worth)).log()
    keys = torch.zeros(1, len(codes), 64, dtype=torch.float64)
    sources = PointerSources(
        keys, torch.tensor([codes]), torch.tensor([counts or [1] * len(codes)], dtype=torch.float64).log()
    )
    log_p = torch.tensor([head], dtype=torch.float64).log()
    hidden, thread = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0])
    with torch.no_grad():
        return pointer.mix(log_p, hidden, sources, thread, log_worth, level).exp()[0].tolist()


def test_without_taste_it_answers_with_the_users_own_counts(pointer):
    codes = [[0, 0], [NONE, NONE], [1, 0], [0, 1]]
    got = mix(pointer, codes, [True, False, True, True], [0.5, 0.25, 0.25])
    # two thirds of the sources carry code 0, one third code 1; half pointer, half head
    assert got == pytest.approx([(2 / 3 + 0.5) / 2, (1 / 3 + 0.25) / 2, 0.125])
    assert mix(pointer, codes, [True, False, True, True], [0.5, 0.25, 0.25], level=1)[0] == pytest.approx(
        (2 / 3 + 0.5) / 2
    )


def test_what_may_not_be_repeated_has_no_weight(pointer):
    codes = [[0], [1], [1]]
    assert mix(pointer, codes, [True, False, False], [0.2, 0.3, 0.5]) == pytest.approx([0.6, 0.15, 0.25])


def test_with_nothing_to_repeat_the_head_decides(pointer):
    assert mix(pointer, [[0], [NONE]], [False, False], [0.2, 0.3, 0.5]) == pytest.approx([0.2, 0.3, 0.5])


def test_a_dead_code_stays_dead(pointer):
    got = mix(pointer, [[0], [1]], [True, True], [0.4, 0.6, 0.0])
    assert got[2] == 0
    assert sum(got) == pytest.approx(1)


def test_what_was_read_long_before_the_last_source_counts_less(pointer):
    with torch.no_grad():
        pointer.fade.fill_(2.0)
    got = mix(pointer, [[0], [NONE], [1], [NONE]], [True, False, True, False], [0.5, 0.5, 0.0])
    old = math.exp(-2.0 * 2 / FADE_POSITIONS)  # two positions before the last source
    assert got[0] == pytest.approx((old / (1 + old) + 0.5) / 2)


def test_an_object_counts_as_often_as_the_word_before_it_says_times_its_worth(pointer):
    pointer.start_counts({7: 3.0, 9: 12.0})
    ids = torch.tensor([[5, 100, 7, 101, 9, 102]])
    codes = torch.tensor([[[NONE], [0], [NONE], [1], [NONE], [1]]])
    counts = pointer.sources(torch.zeros(1, 6, 4, dtype=torch.float64), codes, ids).counts_BT.exp()
    assert counts[0, [1, 3, 5]].tolist() == pytest.approx([1, 3, 12])
    got = mix(pointer, [[0], [1]], [True, True], [0.5, 0.5, 0.0], counts=[1, 3])
    assert got[:2] == pytest.approx([(1 / 4 + 0.5) / 2, (3 / 4 + 0.5) / 2])
    got = mix(pointer, [[0], [1]], [True, True], [0.5, 0.5, 0.0], counts=[1, 3], worth=[2.0, 1.0])
    assert got[:2] == pytest.approx([(2 / 5 + 0.5) / 2, (3 / 5 + 0.5) / 2])


def test_the_gate_shuts_and_opens(pointer):
    with torch.no_grad():
        pointer.gate.bias.fill_(-40.0)
    assert mix(pointer, [[0]], [True], [0.2, 0.8, 0.0]) == pytest.approx([0.2, 0.8, 0])
    with torch.no_grad():
        pointer.gate.bias.fill_(40.0)
    assert mix(pointer, [[0]], [True], [0.2, 0.8, 0.0]) == pytest.approx([1, 0, 0], abs=1e-12)


def test_each_target_looks_at_its_own_thread(pointer):
    keys = torch.zeros(2, 1, 64, dtype=torch.float64)
    sources = PointerSources(keys, torch.tensor([[[0]], [[1]]]), torch.zeros(2, 1, dtype=torch.float64))
    log_p = torch.full((3, 2), 0.5, dtype=torch.float64).log()
    log_worth = torch.zeros(3, 1)
    hidden = torch.zeros(3, 4, dtype=torch.float64)
    with torch.no_grad():
        got = pointer.mix(log_p, hidden, sources, torch.tensor([0, 1, 1]), log_worth, 0).exp()
    torch.testing.assert_close(got, torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.25, 0.75]], dtype=torch.float64))


def test_gradients_are_finite_where_codes_are_dead_or_beyond_reach(pointer):
    keys = torch.randn(1, 3, 64, dtype=torch.float64)
    sources = PointerSources(keys, torch.tensor([[[0], [NONE], [1]]]), torch.zeros(1, 3, dtype=torch.float64))
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, True, True, False], [True, False, True, False]])
    kept = logits.masked_fill(~allowed, -torch.inf)
    log_p = torch.where(allowed, kept - kept.logsumexp(-1, keepdim=True), -torch.inf)
    may = torch.tensor([[True, False, True], [False, False, False]])
    mixed = pointer.mix(log_p, torch.randn(2, 4, dtype=torch.float64), sources, torch.tensor([0, 0]), may, 0)
    mixed[:, 2].sum().backward()  # a code that no source carries
    assert bool(torch.isfinite(logits.grad).all())
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in pointer.parameters())
    assert bool((logits.grad[~allowed] == 0).all())
