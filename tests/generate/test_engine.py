"""The engine against the searcher alone; deadlines, full queues, cancellation and failures."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest

from leadre.errors import BusyError, ClosedError, InputError
from leadre.generate.engine import Engine, LatencyModel
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.prefix import PrefixCache
from leadre.semid.trie import build


class Gate:
    """A runner that waits until the test opens it, and raises if the test sets `fails`."""

    def __init__(self, runner):
        self.runner = runner
        self.layers = runner.layers
        self.heads = runner.heads
        self.dtype = runner.dtype
        self.open = threading.Event()
        self.entered = threading.Event()
        self.fails = False

    def __call__(self, *args):
        self.entered.set()
        assert self.open.wait(20)
        if self.fails:
            raise ArithmeticError("the model broke")
        return self.runner(*args)


@pytest.fixture(scope="module")
def searcher(small):
    return BeamSearcher(small.backbone(seed=7), prefix_cache=PrefixCache(capacity_mb=1, block_size=4))


@pytest.fixture
def gated(searcher):
    gated_searcher = BeamSearcher(searcher.backbone, Gate(searcher.runner))
    yield gated_searcher
    gated_searcher.runner.open.set()


def prompts(searcher, count, seed=0):
    """(ids, request) pairs: prompts of different lengths, some of them equal, over different live sets."""
    backbone = searcher.backbone
    layout = searcher.backbone.layout
    rng = np.random.default_rng(seed)
    objects = len(backbone.objects_OL)
    pairs = []
    starts = np.array(layout.offsets[:-1])
    for n in range(count):
        ids = np.arange(6 + n % 5, dtype=np.int32) + n % 7
        live = np.sort(rng.choice(objects, 12, replace=False))
        mask = build(backbone.objects_OL[live].numpy() - starts, layout.sizes)
        pairs.append((ids, BeamRequest(len(ids) - 1, mask, live)))
    return pairs


def assert_same(result, expected):
    assert result.rows.tolist() == expected.rows.tolist() and result.complete == expected.complete
    np.testing.assert_allclose(result.log_p, expected.log_p, rtol=1e-4, atol=1e-4)


def test_many_clients_get_the_results_of_the_searcher(searcher):
    pairs = prompts(searcher, 40)
    policies = [BeamPolicy(6), BeamPolicy(4, top=3)]
    expected = [searcher([(ids, [request])], policies[n % 2])[0][0] for n, (ids, request) in enumerate(pairs)]
    with Engine(searcher, batch=8) as engine, concurrent.futures.ThreadPoolExecutor(8) as clients:
        futures = clients.map(lambda n: engine.submit(*pairs[n], policies[n % 2]), range(len(pairs)))
        for future, result in zip(futures, expected, strict=True):
            assert_same(future.result(timeout=20), result)
    assert searcher.prefix_cache.hits > 0


def test_prompt_is_hashed_once_in_the_thread_of_its_client(searcher, monkeypatch):
    pairs = prompts(searcher, 12)
    expected = [searcher([(ids, [request])], BeamPolicy(4))[0][0] for ids, request in pairs]
    hashed = []
    hashes = PrefixCache.hashes

    def counted(self, ids):
        hashed.append(threading.current_thread())
        return hashes(self, ids)

    monkeypatch.setattr(PrefixCache, "hashes", counted)
    with Engine(searcher, batch=4) as engine:
        futures = [engine.submit(ids, request, BeamPolicy(4), deadline_ms=60_000) for ids, request in pairs]
        for future, result in zip(futures, expected, strict=True):
            assert_same(future.result(timeout=20), result)
    assert hashed == [threading.current_thread()] * len(pairs)


def test_results_arrive_after_the_model_has_run(searcher, gated):
    ids, request = prompts(searcher, 1)[0]
    with Engine(gated) as engine:
        first = engine.submit(ids, request, BeamPolicy(3))
        second = engine.submit(np.arange(9, dtype=np.int32), request, BeamPolicy(3))
        assert not first.done() and not second.done()
        gated.runner.open.set()
        assert {len(f.result().rows) for f in concurrent.futures.as_completed([first, second], timeout=20)} == {3}


def test_request_without_time_for_another_step_gets_its_best_rows(searcher):
    ids, request = prompts(searcher, 1)[0]
    width = 5
    with Engine(searcher) as engine:
        engine.steps.decode_latency.observe(1, 1000.0)  # a step is expected to take a quarter of an hour
        late = engine.submit(ids, request, BeamPolicy(width), deadline_ms=60_000).result(timeout=20)
        rows = late.rows.tolist()
        assert not late.complete and 0 < len(rows) <= width and np.all(np.diff(late.log_p) <= 0)
        assert len(set(rows)) == len(rows) and set(rows) <= set(range(len(request.objects)))
        patient = engine.submit(ids, request, BeamPolicy(width)).result(timeout=20)
        assert_same(patient, searcher([(ids, [request])], BeamPolicy(width))[0][0])


def test_deadline_of_one_request_does_not_cut_the_others(searcher, gated):
    """In one batch, one request is cut short and the others are completed."""
    pairs = prompts(searcher, 4)
    with Engine(gated) as engine:
        blocker = engine.submit(*pairs[0], BeamPolicy(2))
        assert gated.runner.entered.wait(20)  # the next three wait until this batch is done, so they form one
        engine.steps.decode_latency.observe(1, 1000.0)
        deadlines_ms = (None, 60_000, None)
        futures = [
            engine.submit(ids, request, BeamPolicy(5), deadline_ms=deadline_ms)
            for (ids, request), deadline_ms in zip(pairs[1:], deadlines_ms, strict=True)
        ]
        gated.runner.open.set()
        results = [future.result(timeout=20) for future in futures]
        assert [result.complete for result in results] == [True, False, True] and blocker.result().complete
    for result, (ids, request) in zip(results[::2], pairs[1::2], strict=True):
        assert_same(result, searcher([(ids, [request])], BeamPolicy(5))[0][0])


def test_prompt_without_time_for_prefill_gets_an_empty_result(searcher):
    ids, request = prompts(searcher, 1)[0]
    with Engine(BeamSearcher(searcher.backbone)) as engine:
        engine.steps.prefill_latency.observe(1, 1000.0)
        result = engine.submit(ids, request, BeamPolicy(5), deadline_ms=60_000).result(timeout=20)
        assert not result.complete and not len(result.rows) and not len(result.log_p)
        assert not engine.submit(ids, request, BeamPolicy(5), deadline_ms=0).result(timeout=20).complete


def test_full_queue_refuses_requests(searcher, gated):
    pairs = prompts(searcher, 4)
    with Engine(gated, queue=2) as engine:
        engine.submit(*pairs[0], BeamPolicy(2))
        assert gated.runner.entered.wait(20)
        waiting = [engine.submit(*pair, BeamPolicy(2)) for pair in pairs[1:3]]
        with pytest.raises(BusyError, match="2 requests are waiting"):
            engine.submit(*pairs[3], BeamPolicy(2))
        gated.runner.open.set()
        assert [future.result(timeout=20).complete for future in waiting] == [True, True]


def test_cancelled_requests_do_not_affect_the_others(searcher, gated):
    pairs = prompts(searcher, 3)
    with Engine(gated) as engine:
        running = engine.submit(*pairs[0], BeamPolicy(5))
        assert gated.runner.entered.wait(20)
        waiting, kept = (engine.submit(*pair, BeamPolicy(5)) for pair in pairs[1:])
        assert running.cancel() and waiting.cancel()
        gated.runner.open.set()
        ids, request = pairs[2]
        assert_same(kept.result(timeout=20), searcher([(ids, [request])], BeamPolicy(5))[0][0])


@pytest.mark.parametrize("drain", [True, False])
def test_close_drains_or_cancels_submitted_requests(searcher, gated, drain):
    pairs = prompts(searcher, 3)
    engine = Engine(gated, batch=1)
    futures = [engine.submit(*pair, BeamPolicy(3)) for pair in pairs]
    assert gated.runner.entered.wait(20)
    closing = threading.Thread(target=engine.close, kwargs={"drain": drain})
    closing.start()
    while not engine._closed or (not drain and not futures[-1].cancelled()):
        time.sleep(0.001)
    with pytest.raises(ClosedError, match="closed"):
        engine.submit(*pairs[0], BeamPolicy(3))
    gated.runner.open.set()
    closing.join(timeout=20)
    assert [future.cancelled() for future in futures] == [not drain] * 3
    assert all(len(future.result().rows) == 3 for future in futures if drain)


def test_failing_model_ends_every_future_with_an_error(searcher, gated):
    pairs = prompts(searcher, 2)
    gated.runner.fails = True
    engine = Engine(gated, batch=1)
    futures = [engine.submit(*pair, BeamPolicy(3)) for pair in pairs]
    gated.runner.open.set()
    for future in futures:
        with pytest.raises(ClosedError, match="has stopped"):
            future.result(timeout=20)
    with pytest.raises(ArithmeticError, match="the model broke"):
        engine.close()


def test_invalid_requests_are_refused_on_submit(searcher):
    ids, request = prompts(searcher, 1)[0]
    with Engine(searcher) as engine:
        for invalid_ids in (np.zeros(0, np.int32), np.array([-1], np.int32), np.array([10**6], np.int32)):
            with pytest.raises(InputError, match="a prompt of"):
                engine.submit(invalid_ids, request, BeamPolicy(2))
        with pytest.raises(InputError, match="at position"):
            engine.submit(ids[:3], request, BeamPolicy(2))
        with pytest.raises(InputError, match="label"):
            engine.submit(ids, request, BeamPolicy(2, per_group=1))


def test_latency_model_is_a_line_that_follows_recent_steps():
    latency = LatencyModel()
    assert latency.predict_s(100) == 0
    latency.observe(10, 0.5)
    assert latency.predict_s(20) == pytest.approx(1.0)  # one size measured: in proportion
    latency.observe(30, 0.7)
    assert [latency.predict_s(rows) for rows in (0, 10, 50)] == pytest.approx([0.4, 0.5, 0.9])
    for _ in range(60):
        latency.observe(10, 1.0)
    assert latency.predict_s(10) == pytest.approx(1.0, rel=0.02)
