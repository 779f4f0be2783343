"""Lists generated ahead of time: live, ordered, resumable."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from leadre.data import histories
from leadre.data.histories import TEST, VALID
from leadre.data.moment import inventory_of
from leadre.data.tables import LISTS
from leadre.generate import batch
from leadre.lm.decode import BeamSearcher
from leadre.tune import model as saved
from leadre.tune.answers import Ranked, TunedSearcher


@pytest.fixture(scope="module")
def engine(small):
    return TunedSearcher(BeamSearcher(small.backbone(seed=7)), small.threads(), small.live)


@pytest.fixture(scope="module")
def requests(small):
    return small.logs.requests_of(TEST)[:24]


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    """Several parts; the same for every run, as the last bits of a score hang on who shares its batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "WINDOWS_PER_PART", 5)
        yield


def generate(engine, requests, folder, identity="a"):
    return batch.generate(engine, requests, batch.ResumableParts(folder, identity), beam=12, top=8, seed=0)


@pytest.fixture(scope="module")
def lists(engine, requests, tmp_path_factory):
    return generate(engine, requests, tmp_path_factory.mktemp("lists") / "parts")


def market(ads, ad_object):
    return inventory_of(np.array(ads, np.int32), np.array(ad_object, np.int32))


def ranked(objects, log_p=None):
    log_p = -np.arange(len(objects)) if log_p is None else log_p
    return Ranked(0, "all", np.array(objects, np.int64), np.array(log_p, np.float32))


def test_ads_follow_their_objects_and_a_fixed_order_breaks_ties():
    inventory = market(ads=[0, 1, 2, 4, 5], ad_object=[7, 8, 7, 7, 9, 7])  # ad 3 of object 7 is not live
    key_A = np.array([3, 0, 1, 2, 4, 5])
    ads, scores = batch.ads_of(inventory, ranked([8, 7, 9], [-0.5, -1, -2]), key_A, top=10)
    assert ads == [1, 2, 0, 5, 4]
    assert scores == [-0.5, -1, -1, -1, -2]
    assert batch.ads_of(inventory, ranked([8, 7, 9]), key_A, top=3)[0] == [1, 2, 0]
    assert batch.ads_of(inventory, ranked([8, 7, 9]), key_A[::-1], top=3)[0] == [1, 2, 5]


def test_unranked_object_is_not_listed():
    inventory = market(ads=[0, 1], ad_object=[7, 8])
    assert batch.ads_of(inventory, ranked([8]), np.arange(2), top=5)[0] == [1]
    assert batch.ads_of(inventory, ranked([]), np.arange(2), top=5) == ([], [])


def test_nothing_live_gives_an_empty_list():
    assert batch.ads_of(market([], [7]), ranked([]), np.arange(1), top=5) == ([], [])


def test_every_list_is_live_and_sorted(small, engine, requests, lists):
    logs = small.logs
    assert lists.schema == pl.Schema(LISTS)
    assert lists["request"].unique().sort().to_list() == requests.tolist()
    assert lists.group_by("request").len()["len"].to_list() == [2] * len(requests)
    for r, view, ads, scores in lists.iter_rows():
        assert set(ads) <= set(logs.inventory(r).tolist())
        assert len(set(ads)) == len(ads) <= 8
        assert scores == sorted(scores, reverse=True)
        assert all(np.isfinite(scores)) and all(score <= 0 for score in scores)
        had = set(logs.object_E[logs.history(r)].tolist())
        if view == "new":
            assert not {int(logs.ad_object_A[ad]) for ad in ads} & had
        assert len(ads) == min(8, len(_eligible(logs, r, view, had)))


def _eligible(logs, r, view, had):
    ads = logs.inventory(r).tolist()
    return [ad for ad in ads if view == "all" or int(logs.ad_object_A[ad]) not in had]


def test_killed_run_resumes_with_the_next_part(engine, requests, lists, tmp_path, monkeypatch):
    answer = batch._answer
    calls = []

    def killed_at_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "_answer", killed_at_third)
        with pytest.raises(KeyboardInterrupt):
            generate(engine, requests, tmp_path / "parts")
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.parquet")) == ["00000.parquet", "00001.parquet"]
    before = len(calls)
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_answer", lambda *args: calls.append(1) or answer(*args))
        resumed = generate(engine, requests, tmp_path / "parts")
    windows = len(engine.threads.serving(requests))
    assert len(calls) - before == -(-windows // 5) - 2
    assert resumed.equals(lists)


def test_parts_of_another_run_are_removed(engine, requests, lists, tmp_path, monkeypatch):
    wrong = pl.DataFrame([(-1, "all", [0], [0.0])], schema=LISTS, orient="row")
    batch.ResumableParts(tmp_path / "parts", "another").put(0, wrong)
    assert pl.read_parquet(tmp_path / "parts" / "00000.parquet").equals(wrong)
    assert generate(engine, requests, tmp_path / "parts", "a").equals(lists)


def test_incomplete_part_is_written_again(engine, requests, lists, tmp_path):
    parts = batch.ResumableParts(tmp_path / "parts", "a")
    (parts.folder / ".part.tmp").write_bytes(b"half")
    assert not parts.path(0).exists()
    assert generate(engine, requests, tmp_path / "parts").equals(lists)
    parts.remove()
    assert not parts.folder.exists()


def test_seed_draws_the_users(small):
    logs = small.logs
    everyone = histories.choose_requests(logs, split="valid", users=0, seed=0)
    assert everyone.tolist() == logs.requests_of(VALID).tolist()
    some = histories.choose_requests(logs, split="valid", users=5, seed=0)
    assert len(np.unique(logs.request_user_R[some])) == 5
    assert set(some.tolist()) == {r for r in everyone.tolist() if logs.request_user_R[r] in logs.request_user_R[some]}
    assert some.tolist() == histories.choose_requests(logs, split="valid", users=5, seed=0).tolist()
    assert some.tolist() != histories.choose_requests(logs, split="valid", users=5, seed=1).tolist()
    assert histories.choose_requests(logs, split="valid", users=10_000, seed=0).tolist() == everyone.tolist()


def test_visits_of_a_user_are_bounded(small):
    logs = small.logs
    everyone = histories.choose_requests(logs, split="train", users=0, seed=0)
    some = histories.choose_requests(logs, split="train", users=0, visits=3, seed=0)
    before, after = (np.bincount(logs.request_user_R[requests]) for requests in (everyone, some))
    assert before.max() > 3
    assert after.tolist() == np.minimum(before, 3).tolist()
    assert set(some.tolist()) <= set(everyone.tolist()) and (np.diff(some) > 0).all()
    assert some.tolist() != histories.choose_requests(logs, split="train", users=0, visits=3, seed=1).tolist()


def test_cases_show_prompt_and_ads(small, engine, lists, tmp_path):
    batch.write_cases(engine, lists, tmp_path / "cases.jsonl", seed=0)
    cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(cases) == batch.CASES
    for case in cases:
        assert case["prompt"].startswith("Choose ads") and case["prompt"].endswith(":")
        rows = lists.filter((pl.col("request") == case["request"]) & (pl.col("view") == "all"))
        assert [ad["ad_id"] for ad in case["generated"]] == small.logs.ads["ad_id"].gather(rows["ads"][0]).to_list()


def test_ids_are_permuted_as_for_training(small):
    def model(shuffled):
        return SimpleNamespace(meta={"config": {"shuffle_ids": shuffled, "seed": 3}})

    assert saved.tuned_ids(small.codebook, model(False)) is small.codebook
    codes = saved.tuned_ids(small.codebook, model(True)).codes_OL
    assert sorted(codes.tolist()) == sorted(small.codebook.codes_OL.tolist())
    assert not np.array_equal(codes, small.codebook.codes_OL)
