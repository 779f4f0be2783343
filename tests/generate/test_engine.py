"""The engine against the searcher alone, and what clients see when there is too little time or room."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest

from leadre.errors import BusyError, ClosedError, InputError
from leadre.generate.engine import Engine, Pace
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.prefix import PrefixCache
from leadre.semid.trie import build


class Gate:
    """A runner that waits until it may go on, and fails where it is told to."""

    def __init__(self, runner):
        self.runner, self.layers, self.heads, self.dtype = runner, runner.layers, runner.heads, runner.dtype
        self.open, self.entered, self.fails = threading.Event(), threading.Event(), False

    def __call__(self, *args):
        self.entered.set()
        assert self.open.wait(20)
        if self.fails:
            raise ArithmeticError("the model broke")
        return self.runner(*args)


@pytest.fixture(scope="module")
def searcher(small):
    return BeamSearcher(small.backbone(seed=7), prefixes=PrefixCache(capacity_mb=1, positions=4))


@pytest.fixture
def gated(searcher):
    made = BeamSearcher(searcher.backbone, Gate(searcher.runner))
    yield made
    made.runner.open.set()


def prompts(searcher, count, seed=0):
    """(ids, ask) with some prompts twice, of different lengths, over different live sets."""
    backbone, rng, made = searcher.backbone, np.random.default_rng(seed), []
    layout, objects = backbone.layout, len(backbone.objects_OL)
    starts = np.array(layout.offsets[:-1])
    for n in range(count):
        ids = np.arange(6 + n % 5, dtype=np.int32) + n % 7
        live = np.sort(rng.choice(objects, 12, replace=False))
        made.append(
            (ids, BeamRequest(len(ids) - 1, build(backbone.objects_OL[live].numpy() - starts, layout.sizes), live))
        )
    return made


def same(got, wanted):
    assert got.rows.tolist() == wanted.rows.tolist() and got.complete == wanted.complete
    np.testing.assert_allclose(got.log_p, wanted.log_p, rtol=1e-4, atol=1e-4)


def test_many_clients_get_the_answers_of_the_searcher(searcher):
    asked = prompts(searcher, 40)
    policies = [BeamPolicy(6), BeamPolicy(4, top=3)]
    wanted = [searcher([(ids, [ask])], policies[n % 2])[0][0] for n, (ids, ask) in enumerate(asked)]
    with Engine(searcher, batch=8) as engine, concurrent.futures.ThreadPoolExecutor(8) as clients:
        futures = clients.map(lambda n: engine.submit(*asked[n], policies[n % 2]), range(len(asked)))
        for future, one in zip(futures, wanted, strict=True):
            same(future.result(timeout=20), one)
    assert searcher.prefixes.hits > 0


def test_answers_come_as_they_finish(searcher, gated):
    (ids, ask), (others, none) = prompts(searcher, 1)[0], (np.arange(9, dtype=np.int32), prompts(searcher, 1)[0][1])
    with Engine(gated) as engine:
        one, other = engine.submit(ids, ask, BeamPolicy(3)), engine.submit(others, none, BeamPolicy(3))
        assert not one.done() and not other.done()
        gated.runner.open.set()
        assert {len(f.result().rows) for f in concurrent.futures.as_completed([one, other], timeout=20)} == {3}


def test_too_late_for_the_next_code_gets_the_best_so_far(searcher):
    (ids, ask), width = prompts(searcher, 1)[0], 5
    with Engine(searcher) as engine:
        engine.writing.add(1, 1000.0)  # the next code would take a quarter of an hour
        got = engine.submit(ids, ask, BeamPolicy(width), deadline_ms=60_000).result(timeout=20)
        assert not got.complete and 0 < len(got.rows) <= width and np.all(np.diff(got.log_p) <= 0)
        assert len(set(got.rows.tolist())) == len(got.rows) and set(got.rows.tolist()) <= set(range(len(ask.objects)))
        patient = engine.submit(ids, ask, BeamPolicy(width)).result(timeout=20)
        same(patient, searcher([(ids, [ask])], BeamPolicy(width))[0][0])


def test_the_hurry_of_one_is_not_that_of_the_others(searcher, gated):
    """In one batch, one request is cut short and the others are answered in full."""
    asked = prompts(searcher, 4)
    with Engine(gated) as engine:
        blocker = engine.submit(*asked[0], BeamPolicy(2))
        assert gated.runner.entered.wait(20)  # the next three wait until this batch is done, so they form one
        engine.writing.add(1, 1000.0)
        hurry = (None, 60_000, None)
        futures = [engine.submit(*one, BeamPolicy(5), deadline_ms=d) for one, d in zip(asked[1:], hurry, strict=True)]
        gated.runner.open.set()
        got = [future.result(timeout=20) for future in futures]
        assert [one.complete for one in got] == [True, False, True] and blocker.result().complete
    for one, (ids, ask) in zip(got[::2], asked[1::2], strict=True):
        same(one, searcher([(ids, [ask])], BeamPolicy(5))[0][0])


def test_a_prompt_that_cannot_be_read_in_time_gets_an_empty_answer(searcher):
    (ids, ask) = prompts(searcher, 1)[0]
    with Engine(BeamSearcher(searcher.backbone)) as engine:
        engine.reading.add(1, 1000.0)
        got = engine.submit(ids, ask, BeamPolicy(5), deadline_ms=60_000).result(timeout=20)
        assert not got.complete and not len(got.rows) and not len(got.log_p)
        assert not engine.submit(ids, ask, BeamPolicy(5), deadline_ms=0).result(timeout=20).complete


def test_a_full_queue_refuses(searcher, gated):
    asked = prompts(searcher, 4)
    with Engine(gated, queue=2) as engine:
        engine.submit(*asked[0], BeamPolicy(2))
        assert gated.runner.entered.wait(20)
        waiting = [engine.submit(*one, BeamPolicy(2)) for one in asked[1:3]]
        with pytest.raises(BusyError, match="2 requests are waiting"):
            engine.submit(*asked[3], BeamPolicy(2))
        gated.runner.open.set()
        assert [future.result(timeout=20).complete for future in waiting] == [True, True]


def test_cancelled_requests_leave_the_others_alone(searcher, gated):
    asked = prompts(searcher, 3)
    with Engine(gated) as engine:
        running = engine.submit(*asked[0], BeamPolicy(5))
        assert gated.runner.entered.wait(20)
        waiting, kept = (engine.submit(*one, BeamPolicy(5)) for one in asked[1:])
        assert running.cancel() and waiting.cancel()
        gated.runner.open.set()
        ids, ask = asked[2]
        same(kept.result(timeout=20), searcher([(ids, [ask])], BeamPolicy(5))[0][0])


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_or_cancels_what_is_there(searcher, gated, drain):
    asked = prompts(searcher, 3)
    engine = Engine(gated, batch=1)
    futures = [engine.submit(*one, BeamPolicy(3)) for one in asked]
    assert gated.runner.entered.wait(20)
    closing = threading.Thread(target=engine.close, kwargs={"drain": drain})
    closing.start()
    while not engine._closed or (not drain and not futures[-1].cancelled()):
        time.sleep(0.001)
    with pytest.raises(ClosedError, match="closed"):
        engine.submit(*asked[0], BeamPolicy(3))
    gated.runner.open.set()
    closing.join(timeout=20)
    assert [future.cancelled() for future in futures] == [not drain] * 3
    assert all(len(future.result().rows) == 3 for future in futures if drain)


def test_a_broken_model_strands_nobody(searcher, gated):
    asked = prompts(searcher, 2)
    gated.runner.fails = True
    engine = Engine(gated, batch=1)
    futures = [engine.submit(*one, BeamPolicy(3)) for one in asked]
    gated.runner.open.set()
    for future in futures:
        with pytest.raises(ClosedError, match="has stopped"):
            future.result(timeout=20)
    with pytest.raises(ArithmeticError, match="the model broke"):
        engine.close()


def test_what_cannot_be_answered_is_refused_at_once(searcher):
    (ids, ask) = prompts(searcher, 1)[0]
    with Engine(searcher) as engine:
        for wrong in (np.zeros(0, np.int32), np.array([-1], np.int32), np.array([10**6], np.int32)):
            with pytest.raises(InputError, match="a prompt of"):
                engine.submit(wrong, ask, BeamPolicy(2))
        with pytest.raises(InputError, match="at position"):
            engine.submit(ids[:3], ask, BeamPolicy(2))
        with pytest.raises(InputError, match="label"):
            engine.submit(ids, ask, BeamPolicy(2, per_group=1))


def test_a_pace_is_a_line_that_follows_the_machine():
    pace = Pace()
    assert pace.seconds(100) == 0
    pace.add(10, 0.5)
    assert pace.seconds(20) == pytest.approx(1.0)  # nothing but proportion to go by
    pace.add(30, 0.7)
    assert [pace.seconds(rows) for rows in (0, 10, 50)] == pytest.approx([0.4, 0.5, 0.9])
    for _ in range(60):
        pace.add(10, 1.0)
    assert pace.seconds(10) == pytest.approx(1.0, rel=0.02)
