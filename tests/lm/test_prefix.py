"""The prefix cache: the same results as without it, bounded memory, and safe use by several threads."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.prefix import PrefixBlock, PrefixCache
from leadre.lm.runner import EagerRunner
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


def thread_of(backbone, thread, ends, live):
    layout = backbone.layout
    objects = np.array(sorted(live), np.int64)
    trie = build(backbone.objects_OL[objects].numpy() - np.array(layout.offsets[:-1]), layout.sizes)
    return thread, [BeamRequest(end, trie, objects) for end in ends]


def test_block_hash_covers_the_whole_prefix():
    hashes = PrefixCache(capacity_mb=1, block_size=2).hashes
    prompt = hashes(ids(1, 2, 3, 4, 5))
    assert len(prompt) == 2 and hashes(ids(1, 2, 3, 4)) == prompt and hashes(ids(1, 2, 3, 9))[0] == prompt[0]
    assert hashes(ids(9, 2, 3, 4))[1] != prompt[1] and hashes(ids(3, 4))[0] != prompt[1]
    assert hashes(ids(1, 2).astype(np.int64)) == prompt[:1]  # the numbers count, not their type


def test_least_recently_used_blocks_are_evicted_first_and_first_blocks_last():
    prefixes = PrefixCache(capacity_mb=4 * 64 / 2**20, block_size=2)  # room for four
    old = prefixes.hashes(ids(1, 2, 3, 4))
    new = prefixes.hashes(ids(5, 6, 7, 8))
    prefixes.put(old, blocks(2))
    prefixes.put(new, blocks(2))
    assert (prefixes.bytes, prefixes.evictions) == (256, 0)
    prefixes.put(old, prefixes.get(old))  # used again, so the others are older now
    prefixes.put(prefixes.hashes(ids(0, 0)), blocks(1))
    assert (len(prefixes.get(old)), len(prefixes.get(new))) == (2, 1)
    assert (prefixes.hits, prefixes.misses, prefixes.evictions, prefixes.bytes) == (5, 1, 1, 256)
    prompts = ids(1, 2, 3, 4, 5), ids(5, 6, 7, 8), ids(7, 8)
    assert [prefixes.num_cached(prefixes.hashes(prompt)) for prompt in prompts] == [4, 2, 0]


def test_block_beyond_the_capacity_is_not_kept():
    prefixes = PrefixCache(capacity_mb=0, block_size=2)
    hashes = prefixes.hashes(ids(1, 2, 3, 4))
    prefixes.put(hashes, blocks(2))
    assert (prefixes.bytes, prefixes.num_cached(hashes)) == (0, 0)


@pytest.mark.parametrize("name", ["with_pointer", "without_pointer"])
@pytest.mark.parametrize("runner_type", [None, EagerRunner])
def test_results_with_a_cache_are_those_without(name, runner_type, request):
    backbone, _ = request.getfixturevalue(name)
    runner = runner_type and runner_type(backbone.body, torch.float64)
    plain = BeamSearcher(backbone, runner)
    layout = backbone.layout
    objects = len(backbone.objects_OL)
    entry = st.integers(0, layout.words + layout.codes + objects - 1)
    start = np.random.default_rng(0).integers(layout.words, layout.words + layout.codes + objects, 12).astype(np.int32)

    @QUICK
    @given(st.data(), st.integers(1, 5), st.integers(1, 6))
    def check(data, block_size, width):
        capacity_mb = data.draw(st.sampled_from([0.01, 1]))
        warm = BeamSearcher(backbone, runner, PrefixCache(capacity_mb=capacity_mb, block_size=block_size))
        for _ in range(4):
            threads = []
            for _ in range(data.draw(st.integers(1, 3))):
                shared = data.draw(st.integers(0, 12))
                thread = np.append(start[:shared], data.draw(st.lists(entry, min_size=shared == 0, max_size=6)))
                thread = thread.astype(np.int32)
                ends = sorted({data.draw(st.integers(0, len(thread) - 1)), len(thread) - 1})
                threads.append(thread_of(backbone, thread, ends, data.draw(st.sets(st.integers(0, objects - 1)))))
            policy = BeamPolicy(width)
            for _ in range(2):  # the second time every whole block is cached, at times the whole prompt
                for warm_results, plain_results in zip(warm(threads, policy), plain(threads, policy), strict=True):
                    for result, expected in zip(warm_results, plain_results, strict=True):
                        assert result.rows.tolist() == expected.rows.tolist()
                        np.testing.assert_allclose(result.log_p, expected.log_p, rtol=1e-6, atol=1e-6)
        assert warm.prefix_cache.bytes <= warm.prefix_cache.capacity_bytes

    check()


def test_fully_cached_prompt_is_not_prefilled(with_pointer):
    backbone, _ = with_pointer
    searcher = BeamSearcher(backbone, prefix_cache=PrefixCache(capacity_mb=1, block_size=4))
    threads = [thread_of(backbone, np.arange(8, dtype=np.int32), [3, 7], [1, 2, 3])]
    first = searcher(threads, BeamPolicy(1))
    runner = searcher.runner
    positions = []

    class Counting:
        layers = runner.layers
        heads = runner.heads
        dtype = runner.dtype

        def __call__(self, rows_ND, positions_N, attend):
            positions.append(positions_N.tolist())
            return runner(rows_ND, positions_N, attend)

    searcher.runner = Counting()
    again = searcher(threads, BeamPolicy(1))
    assert [result.log_p.tolist() for result in again[0]] == [result.log_p.tolist() for result in first[0]]
    assert min(map(min, positions), default=8) >= 4  # only generated codes, no position of the prompt
    assert searcher.prefix_cache.hits == 2


def test_threads_may_share_a_cache_that_evicts_all_the_time(with_pointer):
    backbone, _ = with_pointer
    plain = BeamSearcher(backbone)
    rng = np.random.default_rng(3)
    start = rng.integers(0, backbone.layout.words, 16).astype(np.int32)
    batches = [
        [thread_of(backbone, np.append(start[: 4 * n % 17], [n]).astype(np.int32), [4 * n % 17], range(12))]
        for n in range(12)
    ]
    expected = [plain(threads, BeamPolicy(4))[0][0] for threads in batches]
    block = 2 * 2 * 2 * 2 * 8 * 8 + 2 * 32 * 8  # bytes: layers, keys and values, heads, positions, width
    searcher = BeamSearcher(backbone, plain.runner, PrefixCache(capacity_mb=5 * block / 2**20, block_size=2))
    wrong = []

    def client(seed):
        for n in np.random.default_rng(seed).integers(0, len(batches), 25).tolist():
            result = searcher(batches[n], BeamPolicy(4))[0][0]
            is_equal = result.rows.tolist() == expected[n].rows.tolist()
            if not is_equal or np.abs(result.log_p - expected[n].log_p).max() > 1e-6:
                wrong.append((seed, n))

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    prefixes = searcher.prefix_cache
    assert not wrong and prefixes.hits > 0 and prefixes.evictions > 0 and prefixes.bytes <= prefixes.capacity_bytes
