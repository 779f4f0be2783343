"""The pointer against hand-worked numbers: attention weights, mixture, counts, and the rule of agreeing codes."""

import math

import pytest
import torch

from leadre.lm.pointer import FADE_POSITIONS, Pointer, PointerSources, keep_agreeing

NONE = -1


@pytest.fixture
def pointer():
    """A pointer that weighs all sources alike, without fade; the gate is half open."""
    uniform = Pointer(4).double()
    with torch.no_grad():
        for part in (uniform.query.weight, uniform.gate.weight, uniform.gate.bias, uniform.fade):
            part.zero_()
    return uniform


def mix(pointer, codes, is_source, head, level=0, counts=None, value=1.0):
    """Mixture over 3 codes for one request of one thread."""
    bias = (torch.tensor([is_source], dtype=torch.float64) * torch.tensor(value)).log()
    keys = torch.zeros(1, len(codes), 64, dtype=torch.float64)
    sources = PointerSources(
        keys, torch.tensor([codes]), torch.tensor([counts or [1] * len(codes)], dtype=torch.float64).log()
    )
    log_p = torch.tensor([head], dtype=torch.float64).log()
    hidden = torch.zeros(1, 4, dtype=torch.float64)
    with torch.no_grad():
        return pointer.mix(log_p, hidden, sources, torch.tensor([0]), bias, level).exp()[0].tolist()


def test_uniform_pointer_gives_the_users_own_counts(pointer):
    codes = [[0, 0], [NONE, NONE], [1, 0], [0, 1]]
    p = mix(pointer, codes, [True, False, True, True], [0.5, 0.25, 0.25])
    # two thirds of the sources carry code 0, one third code 1; half pointer, half head
    assert p == pytest.approx([(2 / 3 + 0.5) / 2, (1 / 3 + 0.25) / 2, 0.125])
    assert mix(pointer, codes, [True, False, True, True], [0.5, 0.25, 0.25], level=1)[0] == pytest.approx(
        (2 / 3 + 0.5) / 2
    )


def test_position_that_is_no_source_has_no_weight(pointer):
    codes = [[0], [1], [1]]
    assert mix(pointer, codes, [True, False, False], [0.2, 0.3, 0.5]) == pytest.approx([0.6, 0.15, 0.25])


def test_head_decides_without_sources(pointer):
    assert mix(pointer, [[0], [NONE]], [False, False], [0.2, 0.3, 0.5]) == pytest.approx([0.2, 0.3, 0.5])


def test_dead_code_keeps_probability_zero(pointer):
    p = mix(pointer, [[0], [1]], [True, True], [0.4, 0.6, 0.0])
    assert p[2] == 0
    assert sum(p) == pytest.approx(1)


def test_weight_fades_with_distance_to_the_last_source(pointer):
    with torch.no_grad():
        pointer.fade.fill_(2.0)
    p = mix(pointer, [[0], [NONE], [1], [NONE]], [True, False, True, False], [0.5, 0.5, 0.0])
    old = math.exp(-2.0 * 2 / FADE_POSITIONS)  # two positions before the last source
    assert p[0] == pytest.approx((old / (1 + old) + 0.5) / 2)


def test_object_counts_by_its_frequency_word_times_its_value(pointer):
    pointer.start_counts({7: 3.0, 9: 12.0})
    ids = torch.tensor([[5, 100, 7, 101, 9, 102]])
    codes = torch.tensor([[[NONE], [0], [NONE], [1], [NONE], [1]]])
    counts = pointer.sources(torch.zeros(1, 6, 4, dtype=torch.float64), codes, ids).counts_BT.exp()
    assert counts[0, [1, 3, 5]].tolist() == pytest.approx([1, 3, 12])
    p = mix(pointer, [[0], [1]], [True, True], [0.5, 0.5, 0.0], counts=[1, 3])
    assert p[:2] == pytest.approx([(1 / 4 + 0.5) / 2, (3 / 4 + 0.5) / 2])
    p = mix(pointer, [[0], [1]], [True, True], [0.5, 0.5, 0.0], counts=[1, 3], value=[2.0, 1.0])
    assert p[:2] == pytest.approx([(2 / 5 + 0.5) / 2, (3 / 5 + 0.5) / 2])


def test_gate_selects_head_or_pointer(pointer):
    with torch.no_grad():
        pointer.gate.bias.fill_(-40.0)
    assert mix(pointer, [[0]], [True], [0.2, 0.8, 0.0]) == pytest.approx([0.2, 0.8, 0])
    with torch.no_grad():
        pointer.gate.bias.fill_(40.0)
    assert mix(pointer, [[0]], [True], [0.2, 0.8, 0.0]) == pytest.approx([1, 0, 0], abs=1e-12)


def test_target_attends_to_its_own_thread(pointer):
    keys = torch.zeros(2, 1, 64, dtype=torch.float64)
    sources = PointerSources(keys, torch.tensor([[[0]], [[1]]]), torch.zeros(2, 1, dtype=torch.float64))
    log_p = torch.full((3, 2), 0.5, dtype=torch.float64).log()
    bias = torch.zeros(3, 1)
    hidden = torch.zeros(3, 4, dtype=torch.float64)
    with torch.no_grad():
        p = pointer.mix(log_p, hidden, sources, torch.tensor([0, 1, 1]), bias, 0).exp()
    torch.testing.assert_close(p, torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.25, 0.75]], dtype=torch.float64))


def test_gradients_are_finite_for_dead_codes_and_codes_without_source(pointer):
    keys = torch.randn(1, 3, 64, dtype=torch.float64)
    sources = PointerSources(keys, torch.tensor([[[0], [NONE], [1]]]), torch.zeros(1, 3, dtype=torch.float64))
    logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True, True, True, False], [True, False, True, False]])
    kept = logits.masked_fill(~allowed, -torch.inf)
    log_p = torch.where(allowed, kept - kept.logsumexp(-1, keepdim=True), -torch.inf)
    is_source = torch.tensor([[True, False, True], [False, False, False]])
    mixed = pointer.mix(log_p, torch.randn(2, 4, dtype=torch.float64), sources, torch.tensor([0, 0]), is_source, 0)
    mixed[:, 2].sum().backward()  # a code that no source carries
    assert bool(torch.isfinite(logits.grad).all())
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in pointer.parameters())
    assert bool((logits.grad[~allowed] == 0).all())


def test_only_sources_that_agree_with_the_generated_code_keep_their_bias():
    bias = torch.tensor([[0.0, 1.0, -torch.inf, 2.0], [0.0, 1.0, -torch.inf, 2.0]])
    codes = torch.tensor([[3, 5, 3, NONE], [3, 5, 3, NONE]])
    kept = keep_agreeing(bias, codes, torch.tensor([3, 5]))
    dead = -torch.inf
    assert kept.tolist() == [[0.0, dead, dead, dead], [dead, 1.0, dead, dead]]
    beams = keep_agreeing(bias[None], codes[:1, None], torch.tensor([[3, 5]]))  # one row of codes for all beams
    assert torch.equal(beams[0], kept)
