"""Beam search against the definition: every live row scored alone, from the whole prompt, with plain attention."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.lm import attention
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.pointer import FADE_POSITIONS, WIDTH
from leadre.lm.prefix import PrefixCache
from leadre.lm.prior import InventoryPrior, PriceExponents
from leadre.lm.runner import Packed, Plain
from leadre.semid.trie import build
from leadre.tune import losses, sft
from leadre.tune.answers import VIEWS, answer
from leadre.tune.batches import Examples

WIDE = 16
QUICK = settings(max_examples=20, deadline=None, derandomize=True)


def beam_search(backbone, threads, width):
    return BeamSearcher(backbone)(threads, BeamPolicy(width))


def ask(backbone, end, objects):
    objects = np.array(sorted(objects), np.int64)
    starts = np.array(backbone.layout.offsets[:-1])
    return BeamRequest(end, build(backbone.objects_OL[objects].numpy() - starts, backbone.layout.sizes), objects)


@st.composite
def threads(draw, backbone, most_live=8):
    """Up to three threads of different lengths; in each up to three requests, some with nothing live."""
    layout, objects = backbone.layout, len(backbone.objects_OL)
    word, thing = st.integers(0, layout.words + layout.codes - 1), st.integers(0, objects - 1)
    entry = word | thing.map(lambda o: int(layout.object(np.array(o))))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        ids = draw(st.lists(entry, min_size=1, max_size=10))
        ends = draw(st.lists(st.integers(0, len(ids) - 1), max_size=3))
        asks = [ask(backbone, end, draw(st.sets(thing, max_size=most_live))) for end in sorted(ends)]
        made.append((np.array(ids, np.int32), asks))
    return made


@torch.no_grad()
def by_definition(backbone, lm, ids, one):
    """{row: log-probability}: each live object's codes appended to the prompt, everything computed anew."""
    layout, start = backbone.layout, backbone.layout.words
    thread = ids[: one.end + 1].tolist()
    codes = backbone.objects_OL[one.objects].tolist()  # rows among the S code rows
    found = {}
    for row, path in enumerate(codes):
        hidden = lm.model(torch.tensor([thread + [start + c for c in path[:-1]]])).last_hidden_state[0]
        scores = lm.lm_head(hidden[one.end :])[:, start : start + layout.codes]
        total, alike = 0.0, codes
        for level, code in enumerate(path):
            live = sorted({other[level] for other in alike})
            p = dict(zip(live, scores[level, live].softmax(0).tolist(), strict=True))[code]
            if backbone.pointer is not None:
                p = mixed(backbone, hidden, one.end + level, p, path[: level + 1], thread, codes)
            total += math.log(p)
            alike = [other for other in alike if other[level] == code]
        found[row] = total
    return found


def mixed(backbone, hidden, at, p_head, path, thread, codes):
    """The probability of ``path[-1]`` when the pointer has its say, from loops over the thread."""
    layout, pointer, level = backbone.layout, backbone.pointer, len(path) - 1
    first = layout.words + layout.codes
    log_count = dict(zip(pointer.count_words_W.tolist(), pointer.log_counts_W.tolist(), strict=True))
    rows = backbone.objects_OL.tolist()
    may = [t for t, i in enumerate(thread) if i >= first and rows[i - first] in codes]
    may = [t for t in may if rows[thread[t] - first][:level] == path[:-1]]
    if not may:
        return p_head
    query = pointer.query(hidden[at]) * WIDTH**-0.5
    scores = [float(query @ pointer.key(hidden[t]) - pointer.fade * (may[-1] - t) / FADE_POSITIONS) for t in may]
    scores = [score + log_count.get(thread[t - 1] if t else None, 0.0) for score, t in zip(scores, may, strict=True)]
    weights = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    p_copy = sum(w for w, t in zip(weights, may, strict=True) if rows[thread[t] - first][level] == path[-1])
    gate = float(torch.sigmoid(pointer.gate(hidden[at])))
    return (1 - gate) * p_head + gate * p_copy


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
def test_wide_beams_give_every_live_row_its_exact_probability(name, request):
    backbone, lm = request.getfixturevalue(name)

    @QUICK
    @given(threads(backbone))
    def check(asked):
        for (ids, asks), answers in zip(asked, beam_search(backbone, asked, WIDE), strict=True):
            assert len(answers) == len(asks)
            for one, got in zip(asks, answers, strict=True):
                wanted = by_definition(backbone, lm, ids, one)
                assert sorted(got.rows.tolist()) == sorted(wanted)
                np.testing.assert_allclose(got.log_p, [wanted[row] for row in got.rows.tolist()], rtol=1e-5, atol=1e-6)
                assert np.all(np.diff(got.log_p) <= 0)
                assert not len(got.rows) or math.isclose(np.exp(got.log_p).sum(), 1, rel_tol=1e-5)

    check()


@pytest.mark.parametrize("cached", [False, True])
def test_beams_are_those_of_transformers(without_pointer, cached):
    backbone, lm = without_pointer
    searcher = BeamSearcher(backbone, prefixes=PrefixCache(capacity_mb=1, positions=2) if cached else None)
    start = np.random.default_rng(0).integers(0, backbone.layout.words, 8).astype(np.int32)

    @settings(QUICK, max_examples=60)
    @given(threads(backbone, most_live=20), st.integers(0, 8), st.integers(2, 16))
    def check(asked, shared, width):
        asked = [(np.append(start[:shared], ids), [later(one, shared) for one in asks]) for ids, asks in asked]
        for (ids, asks), answers in zip(asked, searcher(asked, BeamPolicy(width)), strict=True):
            for one, got in zip(asks, answers, strict=True):
                wanted = of_transformers(backbone, lm, ids[: one.end + 1], one, width)
                assert got.rows.tolist() == list(wanted)
                np.testing.assert_allclose(got.log_p, list(wanted.values()), rtol=1e-5, atol=1e-6)

    check()
    assert not cached or searcher.prefixes.hits > 60


def later(one, shared):
    return BeamRequest(one.end + shared, one.trie, one.objects)


def of_transformers(backbone, lm, ids, one, width):
    """{row: score}, best first, of `generate` held to the live paths by its own callback."""
    words, length = backbone.layout.words, len(ids)
    paths = (words + backbone.objects_OL[one.objects]).tolist()
    if not paths:
        return {}

    def may_follow(_, so_far):
        begun = so_far[length:].tolist()
        live = sorted({path[len(begun)] for path in paths if path[: len(begun)] == begun})
        return live or [0]  # beams that never were alive stay at -inf, whatever follows

    out = lm.generate(
        torch.from_numpy(ids[None]).long(),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        prefix_allowed_tokens_fn=may_follow,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=len(backbone.layout.sizes),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        length_penalty=0.0,
        renormalize_logits=True,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = zip(out.sequences[:, length:].tolist(), out.sequences_scores.tolist(), strict=True)
    return {paths.index(path): score for path, score in found if score > -1e8}


def test_other_threads_and_requests_change_nothing(with_pointer):
    backbone, _ = with_pointer

    @QUICK
    @given(threads(backbone))
    def check(asked):
        together = beam_search(backbone, asked, 3)
        for (ids, asks), answers in zip(asked, together, strict=True):
            for one, got in zip(asks, answers, strict=True):
                ((alone,),) = beam_search(backbone, [(ids, [one])], 3)
                assert got.rows.tolist() == alone.rows.tolist()
                np.testing.assert_allclose(got.log_p, alone.log_p, rtol=1e-5)
                # nor does what stands after the position where the answer is asked for
                ((cut,),) = beam_search(backbone, [(ids[: one.end + 1], [one])], 3)
                assert got.rows.tolist() == cut.rows.tolist()
                np.testing.assert_allclose(got.log_p, cut.log_p, rtol=1e-5)

    check()


def test_narrow_beams_never_return_a_dead_row(with_pointer):
    backbone, lm = with_pointer

    @QUICK
    @given(threads(backbone, most_live=20), st.lists(st.integers(1, 4), min_size=3, max_size=3))
    def check(asked, widths):
        for (ids, asks), answers in zip(asked, beam_search(backbone, asked, tuple(widths)), strict=True):
            for one, got in zip(asks, answers, strict=True):
                rows = got.rows.tolist()
                assert len(set(rows)) == len(rows) <= widths[-1]
                assert all(0 <= row < len(one.objects) for row in rows)
                assert bool(rows) == bool(len(one.objects))
                exact = by_definition(backbone, lm, ids, one)  # a beam may miss a row, but not misjudge one
                np.testing.assert_allclose(got.log_p, [exact[row] for row in rows], rtol=1e-5, atol=1e-6)

    check()


def test_nothing_live_gives_an_empty_answer(with_pointer):
    backbone, _ = with_pointer
    ids = np.arange(4, dtype=np.int32)
    some, none = ask(backbone, 2, [3, 5]), ask(backbone, 2, [])
    ((first, second),) = beam_search(backbone, [(ids, [none, some])], 4)
    assert (len(first.rows), len(first.log_p)) == (0, 0)
    assert sorted(second.rows.tolist()) == [0, 1]
    assert [len(a.rows) for (a,) in beam_search(backbone, [(ids, [none]), (ids, [none])], 4)] == [0, 0]
    assert beam_search(backbone, [(ids, []), (ids, [])], 4) == [[], []]
    assert beam_search(backbone, [], 4) == []


def test_no_row_is_likelier_for_being_asked_about_twice(with_pointer):
    backbone, _ = with_pointer
    ids = np.array([1, 2, int(backbone.layout.object(np.array(7))), 3], np.int32)
    one = ask(backbone, 3, range(12))
    ((a, b, c),) = beam_search(backbone, [(ids, [one, one, one])], WIDE)
    assert a.rows.tolist() == b.rows.tolist() == c.rows.tolist()
    np.testing.assert_allclose(np.stack([b.log_p, c.log_p]), np.stack([a.log_p, a.log_p]), rtol=1e-6)


@pytest.mark.parametrize(("name", "money"), [("with_pointer", 0.0), ("with_pointer", 0.5), ("without_pointer", 0.5)])
def test_serving_ranks_by_the_number_that_training_lowers(name, money, small, request):
    """The log-likelihood of every target in a training batch is the score of its row in a wide beam search."""
    backbone, _ = request.getfixturevalue(name)
    live = InventoryPrior(small.logs, small.codebook, money=PriceExponents(money, money))
    examples = Examples(small.threads(), live, small.layout, new_weight=0.5)
    windows = examples.threads.training(seed=0)[:6]
    scored = {
        (one.r, one.view, int(o)): p
        for one in answer(BeamSearcher(backbone), examples.threads, live, windows, VIEWS, width=64)
        for o, p in zip(one.objects, one.log_p.tolist(), strict=True)
    }
    batch = examples.batch(windows)
    with torch.no_grad():
        log_p_N = losses.log_likelihood(sft.level_log_p(backbone, batch), batch.targets_NL).tolist()
    expected, order = [], {tuple(c): o for o, c in enumerate(small.live.codes_OL.tolist())}
    codes = iter(batch.targets_NL.tolist())
    for r in np.concatenate([window.requests for window in windows]).tolist():
        targets = examples.targets(r)
        expected += [scored[r, VIEWS[view], order[tuple(next(codes))]] for view in targets.view_N]
    assert {view for _, view, _ in scored} == set(VIEWS)
    assert len(expected) == len(log_p_N) > 20
    np.testing.assert_allclose(log_p_N, expected, rtol=1e-5)


def test_both_runners_give_the_same_answers(with_pointer):
    """Ours for Llama layers, and the one that drives any other Hugging Face body."""
    backbone, _ = with_pointer
    rng, objects = np.random.default_rng(5), len(backbone.objects_OL)
    asked = []
    for length in (3, 9, 9):
        ids = rng.integers(0, backbone.layout.words + backbone.layout.codes + objects, length).astype(np.int32)
        asked.append((ids, [ask(backbone, end, range(0, objects, 2)) for end in (length - 2, length - 1)]))
    found = []
    for runner in (Packed, Plain):
        search = BeamSearcher(backbone, runner(backbone.body, torch.float64))
        found.append([one for answers in search(asked, BeamPolicy(4)) for one in answers])
    for one, other in zip(*found, strict=True):
        assert one.rows.tolist() == other.rows.tolist() and len(one.rows) == 4
        np.testing.assert_allclose(one.log_p, other.log_p, rtol=1e-6)


def test_generation_keeps_the_scale_of_bodies_that_have_their_own():
    """What a layer asks of training's attention and of the runner's must be the same numbers."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    layer = SimpleNamespace(layer_idx=0)

    def attend(_, query_NHE, key_NGE, value_NGE):
        keys, values = (part.transpose(0, 1).repeat_interleave(2, dim=0) for part in (key_NGE, value_NGE))
        queries = query_NHE.transpose(0, 1)
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(0, 1)

    for scaling in (None, 8**-0.5, 0.9):
        expected, _ = attention._attend(layer, query, key, value, None, scaling=scaling, causal_until=6)
        got, _ = attention._attend(layer, query, key, value, None, scaling=scaling, attend=attend)
        torch.testing.assert_close(got, expected)
