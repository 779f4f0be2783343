"""Hidden objects: drawn by their IDs, absent from the training data, live afterwards."""

import dataclasses
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.data import hidden, histories, world
from leadre.data import run as stage
from leadre.data.histories import train_end_us
from leadre.data.tables import always_live
from leadre.errors import InputError
from leadre.lm.prior import response_rates
from leadre.semid import codebook as codebooks
from leadre.semid import embed, rkmeans
from leadre.semid import run as semid
from tests.data.conftest import live_ads

SMALL = {"source": "world", "world_users": 60, "world_ads": 60, "world_contents": 12}


def load(folder):
    return histories.load(artifact.read(folder, artifact.TABLES))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Runs `plain` and `cold`: the same log, in the second a fifth of the objects hidden."""
    folder = tmp_path_factory.mktemp("work")
    stage.run(stage.Config(run="plain", work=folder, **SMALL))
    stage.run(stage.Config(run="cold", work=folder, hide=0.2, **SMALL))
    return folder


@pytest.fixture(scope="module")
def cold(work):
    return load(work / "cold" / "data")


def test_draw_depends_on_each_id_alone():
    ids = pl.Series([f"object-{n}" for n in range(2000)])
    drawn = hidden.draw(ids, 0.05, 0)
    assert 70 < len(drawn) < 130 and drawn.is_sorted() and drawn.n_unique() == len(drawn)
    assert set(hidden.draw(ids[:500], 0.05, 0)) == set(drawn) & set(ids[:500]), "the draw depends on other objects"
    assert set(drawn) < set(hidden.draw(ids, 0.2, 0)) and set(drawn) != set(hidden.draw(ids, 0.05, 1))
    assert not len(hidden.draw(ids, 0.0, 0))


def test_hidden_objects_are_absent_before_training_ends(cold):
    late = np.flatnonzero(cold.hidden_O)
    assert 5 <= len(late) <= 20
    assert set(late) <= set(cold.ad_object_A.tolist()), "a hidden object has no ad"
    early_E = cold.at_us_E < train_end_us(cold)
    assert not cold.hidden_O[cold.object_E[early_E]].any()
    for r in cold.requests_of(histories.TRAIN).tolist():
        assert len(cold.relevant(r)[0]), "a request without conversions is left"
        for ads in (cold.inventory(r), cold.relevant(r)[0]):
            assert not cold.hidden_O[cold.ad_object_A[ads]].any()


def test_held_out_requests_are_unchanged(work, cold):
    plain = load(work / "plain" / "data")
    for split in (histories.VALID, histories.TEST):
        before = plain.requests_of(split)
        after = cold.requests_of(split)
        assert len(before) == len(after)
        for r, s in zip(before.tolist(), after.tolist(), strict=True):
            assert plain.inventory(r).tolist() == cold.inventory(s).tolist()
            assert plain.relevant(r)[0].tolist() == cold.relevant(s)[0].tolist()
    bought = np.concatenate([cold.relevant(int(r))[0] for r in cold.requests_of(histories.TEST)])
    assert cold.hidden_O[cold.ad_object_A[bought]].any()


def test_prior_of_hidden_objects_is_the_mean(cold):
    rates = response_rates(cold)[cold.hidden_O]
    assert np.ptp(rates) == 0 and rates[0] > 0


def test_run_without_hidden_objects_writes_no_hidden_file(work, cold):
    tables = artifact.read(work / "plain" / "data", artifact.TABLES)
    assert histories.HIDDEN not in tables.meta["files"]
    assert not load(work / "plain" / "data").hidden_O.any()


def test_shared_windows_of_hidden_ads_begin_at_the_launch():
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    everywhere = always_live(tables.ads.select(pl.lit(None, pl.String).alias("inventory_id"), "ad_id"))
    ids = tables.ads["object_id"][:4].unique()
    ads = set(tables.ads.filter(pl.col("object_id").is_in(ids.implode()))["ad_id"])
    late = hidden.launch_late(
        dataclasses.replace(tables, inventories=everywhere), ids, positive="conversion", keep_empty=False
    )
    assert len(late.inventories) == len(everywhere)
    everything = set(tables.ads["ad_id"])
    live = dict(zip(late.requests["split"], live_ads(late.requests, late.inventories), strict=True))
    assert {split: set(ads) for split, ads in live.items()} == {
        "train": everything - ads,
        "valid": everything,
        "test": everything,
    }


def test_launch_some_days_before_training_ends():
    """From the launch on, hidden ads are live and in events of training requests; before it, in neither."""
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    ids = tables.ads["object_id"][:10].unique()
    ads = tables.ads.filter(pl.col("object_id").is_in(ids.implode()))["ad_id"].implode()
    days = 5
    late, at_end = (
        hidden.launch_late(tables, ids, positive="conversion", keep_empty=False, days=days) for days in (days, 0)
    )
    launched_at = tables.requests.filter(pl.col("split") != "train")["at"].min() - timedelta(days=days)
    hidden_events = late.events.filter(pl.col("item_id").is_in(ads) | pl.col("item_id").is_in(ids.implode()))
    before_launch = late.requests.filter(pl.col("at") < launched_at)["request_id"]
    assert (hidden_events["at"] >= launched_at).all()
    assert not hidden_events["request_id"].is_in(before_launch.implode()).any()
    assert len(late.events) > len(at_end.events)
    early: set[str] = set()
    recent: set[str] = set()
    training = late.requests.filter(pl.col("split") == "train")
    for at, shown in zip(training["at"], live_ads(training, late.inventories), strict=True):
        (early if at < launched_at else recent).update(shown)
    assert not early & set(ads.item()) and recent & set(ads.item())


def test_days_without_a_hidden_object_are_refused(tmp_path):
    with pytest.raises(InputError, match="--hide-days 7: no object is hidden; set --hide above 0"):
        stage.run(stage.Config(run="x", work=tmp_path, hide_days=7, **SMALL))


def test_keep_empty_keeps_requests_without_an_outcome():
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    ids = tables.ads["object_id"][:10].unique()
    dropped, kept = (
        hidden.launch_late(tables, ids, positive="conversion", keep_empty=keep_empty) for keep_empty in (False, True)
    )
    assert len(dropped.requests) < len(kept.requests) == len(tables.requests)
    emptied = set(dropped.empty_requests["request_id"]) - set(tables.empty_requests["request_id"])
    assert emptied == set(kept.requests["request_id"]) - set(dropped.requests["request_id"])
    for late in (dropped, kept):
        known = pl.concat([late.inventories, late.empty_inventories])["inventory_id"]
        training = late.empty_requests.filter(pl.col("split") == "train")
        assert training["inventory_id"].is_in(known.implode()).all()
        ads = tables.ads.filter(pl.col("object_id").is_in(ids.implode()))["ad_id"]
        live = live_ads(training, pl.concat([late.inventories, late.empty_inventories]))
        assert not set(ads) & {ad for shown in live for ad in shown}


def test_empty_requests_stay_empty_and_lose_the_hidden_ads_of_training():
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    is_empty = pl.int_range(pl.len()) % 3 == 0
    parts = {"requests": tables.requests.filter(~is_empty), "empty_requests": tables.requests.filter(is_empty)}
    ids = tables.ads["object_id"][:4].unique()
    late = hidden.launch_late(dataclasses.replace(tables, **parts), ids, positive="conversion", keep_empty=True)
    assert set(late.empty_requests["request_id"]) == set(parts["empty_requests"]["request_id"])
    assert set(late.requests["request_id"]) == set(parts["requests"]["request_id"])
    live = pl.concat([late.inventories, late.empty_inventories])
    assert live.is_unique().all()
    sets = zip(late.empty_requests["split"], live_ads(late.empty_requests, live), strict=True)
    ads = set(tables.ads.filter(pl.col("object_id").is_in(ids.implode()))["ad_id"])
    assert {split for split, shown in sets if ads & set(shown)} == {"valid", "test"}


def test_invalid_shares_and_logs_are_rejected(tmp_path):
    with pytest.raises(InputError, match="hide: must be at least 0 and below 1"):
        stage.run(stage.Config(run="x", work=tmp_path, hide=1.0, **SMALL))
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    training = dataclasses.replace(tables, requests=tables.requests.filter(pl.col("split") == "train"))
    with pytest.raises(InputError, match="no validation or test requests"):
        hidden.launch_late(training, tables.ads["object_id"], positive="conversion", keep_empty=False)


def test_hidden_objects_get_ids_from_a_codebook_fitted_without_them(work, cold, tiny_encoder):
    options = {"work": work, "encoder": str(tiny_encoder), "levels": (8, 4), "collisions": 24}
    semid.run(semid.Config(run="cold", collaborative=0.5, collaborative_dim=6, **options))
    codebook = codebooks.load(artifact.read(work / "cold" / "semid", artifact.CODEBOOK))
    rows_O = codebook.rows(cold.objects["object_id"].to_list())
    known = int((~cold.hidden_O).sum())
    assert (rows_O[~cold.hidden_O] < known).all() and (rows_O[cold.hidden_O] >= known).all()
    assert not codebook.embeddings_OD[known:, 16:].any()
    text_OD = embed.embed(cold.objects["text"].to_list(), str(tiny_encoder))
    assert np.allclose(codebook.embeddings_OD[rows_O, :16], text_OD, atol=1e-6), "an embedding of another object's text"
    # the centroids equal those of a catalogue without the hidden objects
    alone = rkmeans.fit(codebook.embeddings_OD[:known], (8, 4), 0)
    assert all(np.array_equal(a, b) for a, b in zip(alone.centroids, codebook.centroids, strict=True))
