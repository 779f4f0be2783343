"""Beam search against the definition: each live row scored alone, from the whole prompt, with plain attention."""

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
from leadre.lm.runner import EagerRunner, PackedRunner
from leadre.semid.trie import build
from leadre.tune import losses, sft
from leadre.tune.answers import VIEWS, TunedSearcher
from leadre.tune.batches import Examples

WIDE = 16
QUICK = settings(max_examples=20, deadline=None, derandomize=True)


def beam_search(backbone, threads, width):
    return BeamSearcher(backbone)(threads, BeamPolicy(width))


def request_of(backbone, end, objects):
    objects = np.array(sorted(objects), np.int64)
    starts = np.array(backbone.layout.offsets[:-1])
    return BeamRequest(end, build(backbone.objects_OL[objects].numpy() - starts, backbone.layout.sizes), objects)


@st.composite
def threads(draw, backbone, max_live=8):
    """Up to three threads of different lengths; in each up to three requests, some with nothing live."""
    layout = backbone.layout
    word = st.integers(0, layout.words + layout.codes - 1)
    an_object = st.integers(0, len(backbone.objects_OL) - 1)
    entry = word | an_object.map(lambda o: int(layout.object(np.array(o))))
    drawn = []
    for _ in range(draw(st.integers(1, 3))):
        ids = draw(st.lists(entry, min_size=1, max_size=10))
        ends = draw(st.lists(st.integers(0, len(ids) - 1), max_size=3))
        live_sets = st.sets(an_object, max_size=max_live)
        beam_requests = [request_of(backbone, end, draw(live_sets)) for end in sorted(ends)]
        drawn.append((np.array(ids, np.int32), beam_requests))
    return drawn


@torch.no_grad()
def by_definition(backbone, lm, ids, request):
    """{row: log-probability}: one forward pass over prompt and codes for each live object, without any cache."""
    layout = backbone.layout
    start = backbone.layout.words
    thread = ids[: request.end + 1].tolist()
    codes = backbone.objects_OL[request.objects].tolist()  # rows among the S code rows
    log_p_of = {}
    for row, path in enumerate(codes):
        hidden = lm.model(torch.tensor([thread + [start + c for c in path[:-1]]])).last_hidden_state[0]
        scores = lm.lm_head(hidden[request.end :])[:, start : start + layout.codes]
        total = 0.0
        alike = codes
        for level, code in enumerate(path):
            live = sorted({other[level] for other in alike})
            p = dict(zip(live, scores[level, live].softmax(0).tolist(), strict=True))[code]
            if backbone.pointer is not None:
                p = mixed(backbone, hidden, request.end + level, p, path[: level + 1], thread, codes)
            total += math.log(p)
            alike = [other for other in alike if other[level] == code]
        log_p_of[row] = total
    return log_p_of


def mixed(backbone, hidden, at, p_head, path, thread, codes):
    """The probability of ``path[-1]`` in the mixture with the pointer, from loops over the thread."""
    layout = backbone.layout
    pointer = backbone.pointer
    level = len(path) - 1
    first = layout.words + layout.codes
    log_count = dict(zip(pointer.count_words_W.tolist(), pointer.log_counts_W.tolist(), strict=True))
    rows = backbone.objects_OL.tolist()
    sources = [t for t, i in enumerate(thread) if i >= first and rows[i - first] in codes]
    sources = [t for t in sources if rows[thread[t] - first][:level] == path[:-1]]
    if not sources:
        return p_head
    query = pointer.query(hidden[at]) * WIDTH**-0.5
    fades = [pointer.fade * (sources[-1] - t) / FADE_POSITIONS for t in sources]
    scores = [float(query @ pointer.key(hidden[t]) - fade) for t, fade in zip(sources, fades, strict=True)]
    counts = [log_count.get(thread[t - 1] if t else None, 0.0) for t in sources]
    scores = [score + count for score, count in zip(scores, counts, strict=True)]
    weights = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    p_copy = sum(w for w, t in zip(weights, sources, strict=True) if rows[thread[t] - first][level] == path[-1])
    gate = float(torch.sigmoid(pointer.gate(hidden[at])))
    return (1 - gate) * p_head + gate * p_copy


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
def test_wide_beams_give_exact_probabilities_of_all_live_rows(name, request):
    backbone, lm = request.getfixturevalue(name)

    @QUICK
    @given(threads(backbone))
    def check(drawn):
        for (ids, beam_requests), results in zip(drawn, beam_search(backbone, drawn, WIDE), strict=True):
            assert len(results) == len(beam_requests)
            for beam_request, result in zip(beam_requests, results, strict=True):
                exact = by_definition(backbone, lm, ids, beam_request)
                rows = result.rows.tolist()
                assert sorted(rows) == sorted(exact)
                np.testing.assert_allclose(result.log_p, [exact[row] for row in rows], rtol=1e-5, atol=1e-6)
                assert np.all(np.diff(result.log_p) <= 0)
                assert not rows or math.isclose(np.exp(result.log_p).sum(), 1, rel_tol=1e-5)

    check()


@pytest.mark.parametrize("cached", [False, True])
def test_beams_equal_those_of_transformers(without_pointer, cached):
    backbone, lm = without_pointer
    searcher = BeamSearcher(backbone, prefix_cache=PrefixCache(capacity_mb=1, block_size=2) if cached else None)
    start = np.random.default_rng(0).integers(0, backbone.layout.words, 8).astype(np.int32)

    @settings(QUICK, max_examples=60)
    @given(threads(backbone, max_live=20), st.integers(0, 8), st.integers(2, 16))
    def check(drawn, shared, width):
        moved = [(np.append(start[:shared], ids), [later(r, shared) for r in requests]) for ids, requests in drawn]
        for (ids, requests), results in zip(moved, searcher(moved, BeamPolicy(width)), strict=True):
            for request, result in zip(requests, results, strict=True):
                expected = of_transformers(backbone, lm, ids[: request.end + 1], request, width)
                assert result.rows.tolist() == list(expected)
                np.testing.assert_allclose(result.log_p, list(expected.values()), rtol=1e-5, atol=1e-6)

    check()
    assert not cached or searcher.prefix_cache.hits > 60


def later(request, positions):
    return BeamRequest(request.end + positions, request.mask, request.objects)


def of_transformers(backbone, lm, ids, request, width):
    """{row: score}, best first, of `generate` restricted to the live paths by its own callback."""
    words = backbone.layout.words
    length = len(ids)
    paths = (words + backbone.objects_OL[request.objects]).tolist()
    if not paths:
        return {}

    def next_codes(_, generated_ids):
        prefix = generated_ids[length:].tolist()
        live = sorted({path[len(prefix)] for path in paths if path[: len(prefix)] == prefix})
        return live or [0]  # dead beams stay at -inf

    out = lm.generate(
        torch.from_numpy(ids[None]).long(),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        prefix_allowed_tokens_fn=next_codes,
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
    scored_paths = zip(out.sequences[:, length:].tolist(), out.sequences_scores.tolist(), strict=True)
    return {paths.index(path): score for path, score in scored_paths if score > -1e8}


def test_results_do_not_depend_on_other_threads_and_requests(with_pointer):
    backbone, _ = with_pointer

    @QUICK
    @given(threads(backbone))
    def check(drawn):
        together = beam_search(backbone, drawn, 3)
        for (ids, requests), results in zip(drawn, together, strict=True):
            for request, result in zip(requests, results, strict=True):
                ((alone,),) = beam_search(backbone, [(ids, [request])], 3)
                assert result.rows.tolist() == alone.rows.tolist()
                np.testing.assert_allclose(result.log_p, alone.log_p, rtol=1e-5)
                # nor do the positions behind the request's end change it
                ((cut,),) = beam_search(backbone, [(ids[: request.end + 1], [request])], 3)
                assert result.rows.tolist() == cut.rows.tolist()
                np.testing.assert_allclose(result.log_p, cut.log_p, rtol=1e-5)

    check()


def test_narrow_beams_never_return_a_dead_row(with_pointer):
    backbone, lm = with_pointer

    @QUICK
    @given(threads(backbone, max_live=20), st.lists(st.integers(1, 4), min_size=3, max_size=3))
    def check(drawn, widths):
        for (ids, requests), results in zip(drawn, beam_search(backbone, drawn, tuple(widths)), strict=True):
            for request, result in zip(requests, results, strict=True):
                rows = result.rows.tolist()
                assert len(set(rows)) == len(rows) <= widths[-1]
                assert all(0 <= row < len(request.objects) for row in rows)
                assert bool(rows) == bool(len(request.objects))
                # narrow beams may miss a row; the rows that they return have exact scores
                exact = by_definition(backbone, lm, ids, request)
                np.testing.assert_allclose(result.log_p, [exact[row] for row in rows], rtol=1e-5, atol=1e-6)

    check()


def test_empty_live_set_gives_an_empty_result(with_pointer):
    backbone, _ = with_pointer
    ids = np.arange(4, dtype=np.int32)
    two_live = request_of(backbone, 2, [3, 5])
    none_live = request_of(backbone, 2, [])
    ((first, second),) = beam_search(backbone, [(ids, [none_live, two_live])], 4)
    assert (len(first.rows), len(first.log_p)) == (0, 0)
    assert sorted(second.rows.tolist()) == [0, 1]
    results = beam_search(backbone, [(ids, [none_live]), (ids, [none_live])], 4)
    assert [len(result.rows) for (result,) in results] == [0, 0]
    assert beam_search(backbone, [(ids, []), (ids, [])], 4) == [[], []]
    assert beam_search(backbone, [], 4) == []


def test_equal_requests_of_a_thread_get_equal_results(with_pointer):
    backbone, _ = with_pointer
    ids = np.array([1, 2, int(backbone.layout.object(np.array(7))), 3], np.int32)
    request = request_of(backbone, 3, range(12))
    ((a, b, c),) = beam_search(backbone, [(ids, [request, request, request])], WIDE)
    assert a.rows.tolist() == b.rows.tolist() == c.rows.tolist()
    np.testing.assert_allclose(np.stack([b.log_p, c.log_p]), np.stack([a.log_p, a.log_p]), rtol=1e-6)


@pytest.mark.parametrize("departure", [1.0, 0.5])
@pytest.mark.parametrize(("name", "money"), [("with_pointer", 0.0), ("with_pointer", 0.5), ("without_pointer", 0.5)])
def test_training_and_serving_compute_the_same_log_likelihood(name, money, departure, small, request, monkeypatch):
    """The log-likelihood of every target in a training batch is the score of its row in a wide beam search."""
    backbone, _ = request.getfixturevalue(name)
    monkeypatch.setattr(backbone, "departure", departure)
    live = InventoryPrior(small.logs, small.codebook, money=PriceExponents(money, money))
    examples = Examples(small.threads(), live, small.layout, new_weight=0.5)
    windows = examples.threads.training(seed=0)[:6]
    scored = {
        (ranking.r, ranking.view, int(o)): p
        for ranking in TunedSearcher(BeamSearcher(backbone), examples.threads, live).answer(windows, VIEWS, width=64)
        for o, p in zip(ranking.objects, ranking.log_p.tolist(), strict=True)
    }
    batch = examples.batch(windows)
    with torch.no_grad():
        log_p_N = losses.log_likelihood(sft.level_log_p(backbone, batch), batch.targets_NL).tolist()
    object_of = {tuple(c): o for o, c in enumerate(small.live.codes_OL.tolist())}
    codes = iter(batch.targets_NL.tolist())
    expected = []
    for r in np.concatenate([window.requests for window in windows]).tolist():
        targets = examples.targets(r, small.moments[r])
        expected += [scored[r, VIEWS[view], object_of[tuple(next(codes))]] for view in targets.view_N]
    assert {view for _, view, _ in scored} == set(VIEWS)
    assert len(expected) == len(log_p_N) > 20
    np.testing.assert_allclose(log_p_N, expected, rtol=1e-5)


def test_packed_and_eager_runners_give_the_same_results(with_pointer):
    backbone, _ = with_pointer
    rng = np.random.default_rng(5)
    objects = len(backbone.objects_OL)
    batch = []
    for length in (3, 9, 9):
        ids = rng.integers(0, backbone.layout.words + backbone.layout.codes + objects, length).astype(np.int32)
        batch.append((ids, [request_of(backbone, end, range(0, objects, 2)) for end in (length - 2, length - 1)]))
    by_runner = []
    for runner_type in (PackedRunner, EagerRunner):
        searcher = BeamSearcher(backbone, runner_type(backbone.body, torch.float64))
        by_runner.append([result for results in searcher(batch, BeamPolicy(4)) for result in results])
    for packed, eager in zip(*by_runner, strict=True):
        assert packed.rows.tolist() == eager.rows.tolist() and len(packed.rows) == 4
        np.testing.assert_allclose(packed.log_p, eager.log_p, rtol=1e-6)


def test_generation_applies_the_attention_scale_of_the_body():
    """A layer gets the same numbers from the attention of training and from that of the runner."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, 6, 8)
    key = torch.randn(1, 2, 6, 8)
    value = torch.randn(1, 2, 6, 8)
    layer = SimpleNamespace(layer_idx=0)

    def attend(_, query_NHE, key_NGE, value_NGE, rule):
        assert rule.is_plain
        keys, values = (part.transpose(0, 1).repeat_interleave(2, dim=0) for part in (key_NGE, value_NGE))
        queries = query_NHE.transpose(0, 1)
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(0, 1)

    for scaling in (None, 8**-0.5, 0.9):
        expected, _ = attention._attend(layer, query, key, value, None, scaling=scaling, causal_until=6)
        mixed, _ = attention._attend(layer, query, key, value, None, scaling=scaling, attend=attend)
        torch.testing.assert_close(mixed, expected)
