"""The prefix cache: the same answers as without it, bounded memory, and readers that nobody pulls blocks from."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.prefix import PrefixBlock, PrefixCache
from leadre.lm.runner import Plain
from leadre.semid.trie import build

QUICK = settings(max_examples=15, deadline=None, derandomize=True)


def blocks(count):
    """Blocks of 64 bytes."""
    return [
        PrefixBlock(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.full((2, 4), float(n)))
        for n in range(count)
    ]


def ids(*numbers):
    return np.array(numbers, np.int32)


def asked(backbone, thread, ends, live):
    layout, objects = backbone.layout, np.array(sorted(live), np.int64)
    trie = build(backbone.objects_OL[objects].numpy() - np.array(layout.offsets[:-1]), layout.sizes)
    return thread, [BeamRequest(end, trie, objects) for end in ends]


def test_a_block_is_named_by_all_that_stands_before_its_end():
    names = PrefixCache(capacity_mb=1, positions=2).names
    one = names(ids(1, 2, 3, 4, 5))
    assert len(one) == 2 and names(ids(1, 2, 3, 4)) == one and names(ids(1, 2, 3, 9))[0] == one[0]
    assert names(ids(9, 2, 3, 4))[1] != one[1] and names(ids(3, 4))[0] != one[1]
    assert names(ids(1, 2).astype(np.int64)) == one[:1]  # the numbers count, not their type


def test_the_least_recently_used_goes_first_and_a_first_block_last():
    prefixes = PrefixCache(capacity_mb=4 * 64 / 2**20, positions=2)  # room for four
    old, new = prefixes.names(ids(1, 2, 3, 4)), prefixes.names(ids(5, 6, 7, 8))
    prefixes.put(old, blocks(2))
    prefixes.put(new, blocks(2))
    assert (prefixes.bytes, prefixes.evictions) == (256, 0)
    prefixes.put(old, prefixes.get(old))  # used again, so the others are older now
    prefixes.put(prefixes.names(ids(0, 0)), blocks(1))
    assert (len(prefixes.get(old)), len(prefixes.get(new))) == (2, 1)
    assert (prefixes.hits, prefixes.misses, prefixes.evictions, prefixes.bytes) == (5, 1, 1, 256)
    assert [prefixes.cached(each) for each in (ids(1, 2, 3, 4, 5), ids(5, 6, 7, 8), ids(7, 8))] == [4, 2, 0]


def test_what_does_not_fit_is_not_kept():
    prefixes = PrefixCache(capacity_mb=0, positions=2)
    prefixes.put(prefixes.names(ids(1, 2, 3, 4)), blocks(2))
    assert (prefixes.bytes, prefixes.cached(ids(1, 2, 3, 4))) == (0, 0)


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
@pytest.mark.parametrize("runner", [None, Plain])
def test_answers_with_a_cache_are_those_without(name, runner, request):
    backbone, _ = request.getfixturevalue(name)
    made = runner and runner(backbone.body, torch.float64)
    plain, layout = BeamSearcher(backbone, made), backbone.layout
    objects = len(backbone.objects_OL)
    entry = st.integers(0, layout.words + layout.codes + objects - 1)
    start = np.random.default_rng(0).integers(layout.words, layout.words + layout.codes + objects, 12).astype(np.int32)

    @QUICK
    @given(st.data(), st.integers(1, 5), st.integers(1, 6))
    def check(data, positions, width):
        warm = BeamSearcher(
            backbone, made, PrefixCache(capacity_mb=data.draw(st.sampled_from([0.01, 1])), positions=positions)
        )
        for _ in range(4):
            threads = []
            for _ in range(data.draw(st.integers(1, 3))):
                shared = data.draw(st.integers(0, 12))
                thread = np.append(start[:shared], data.draw(st.lists(entry, min_size=shared == 0, max_size=6)))
                thread = thread.astype(np.int32)
                ends = sorted({data.draw(st.integers(0, len(thread) - 1)), len(thread) - 1})
                threads.append(asked(backbone, thread, ends, data.draw(st.sets(st.integers(0, objects - 1)))))
            policy = BeamPolicy(width)
            for _ in range(2):  # the second time every whole block is known, at times the whole text
                for got, wanted in zip(warm(threads, policy), plain(threads, policy), strict=True):
                    for one, other in zip(got, wanted, strict=True):
                        assert one.rows.tolist() == other.rows.tolist()
                        np.testing.assert_allclose(one.log_p, other.log_p, rtol=1e-6, atol=1e-6)
        assert warm.prefixes.bytes <= warm.prefixes.capacity_bytes

    check()


def test_a_prompt_that_is_known_as_a_whole_is_not_read(with_pointer):
    backbone, _ = with_pointer
    searcher = BeamSearcher(backbone, prefixes=PrefixCache(capacity_mb=1, positions=4))
    threads = [asked(backbone, np.arange(8, dtype=np.int32), [3, 7], [1, 2, 3])]
    first = searcher(threads, BeamPolicy(1))
    read, positions = searcher.runner, []

    class Counting:
        layers, heads, dtype = read.layers, read.heads, read.dtype

        def __call__(self, rows_ND, positions_N, attend):
            positions.append(positions_N.tolist())
            return read(rows_ND, positions_N, attend)

    searcher.runner = Counting()
    again = searcher(threads, BeamPolicy(1))
    assert [one.log_p.tolist() for one in again[0]] == [one.log_p.tolist() for one in first[0]]
    assert min(map(min, positions), default=8) >= 4  # codes behind the ends, no position of the prompt
    assert searcher.prefixes.hits == 2


def test_threads_may_share_a_cache_that_is_far_too_small(with_pointer):
    backbone, _ = with_pointer
    plain, rng = BeamSearcher(backbone), np.random.default_rng(3)
    start = rng.integers(0, backbone.layout.words, 16).astype(np.int32)
    threads = [
        [asked(backbone, np.append(start[: 4 * n % 17], [n]).astype(np.int32), [4 * n % 17], range(12))]
        for n in range(12)
    ]
    wanted = [plain(each, BeamPolicy(4))[0][0] for each in threads]
    block = 2 * 2 * 2 * 2 * 8 * 8 + 2 * 32 * 8  # bytes: layers, keys and values, heads, positions, width
    searcher = BeamSearcher(backbone, plain.runner, PrefixCache(capacity_mb=5 * block / 2**20, positions=2))
    wrong = []

    def client(seed):
        for n in np.random.default_rng(seed).integers(0, len(threads), 25).tolist():
            got = searcher(threads[n], BeamPolicy(4))[0][0]
            if got.rows.tolist() != wanted[n].rows.tolist() or np.abs(got.log_p - wanted[n].log_p).max() > 1e-6:
                wrong.append((seed, n))

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    prefixes = searcher.prefixes
    assert not wrong and prefixes.hits > 0 and prefixes.evictions > 0 and prefixes.bytes <= prefixes.capacity_bytes
