"""Objects hidden until training ends: drawn by their IDs, gone from all that training reads, live afterwards."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from leadre import artifact
from leadre.data import hidden, histories, world
from leadre.data import run as stage
from leadre.data.histories import train_end_us
from leadre.errors import InputError
from leadre.lm.prior import response_rates
from leadre.semid import codebook as codebooks
from leadre.semid import embed, rkmeans
from leadre.semid import run as semid

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


def test_an_object_decides_by_its_own_id():
    ids = pl.Series([f"object-{n}" for n in range(2000)])
    drawn = hidden.draw(ids, 0.05, 0)
    assert 70 < len(drawn) < 130 and drawn.is_sorted() and drawn.n_unique() == len(drawn)
    assert set(hidden.draw(ids[:500], 0.05, 0)) == set(drawn) & set(ids[:500]), "the rest of the catalogue decides"
    assert set(drawn) < set(hidden.draw(ids, 0.2, 0)) and set(drawn) != set(hidden.draw(ids, 0.05, 1))
    assert not len(hidden.draw(ids, 0.0, 0))


def test_nothing_of_them_is_there_before_training_ends(cold):
    late = np.flatnonzero(cold.hidden_O)
    assert 5 <= len(late) <= 20
    assert set(late) <= set(cold.ad_object_A.tolist()), "what nobody advertises cannot be missed"
    early_E = cold.at_us_E < train_end_us(cold)
    assert not cold.hidden_O[cold.object_E[early_E]].any()
    for r in cold.requests_of(histories.TRAIN).tolist():
        assert len(cold.relevant(r)[0]), "a request that lost its conversions is still there"
        for ads in (cold.inventory(r), cold.relevant(r)[0]):
            assert not cold.hidden_O[cold.ad_object_A[ads]].any()


def test_they_are_like_any_other_afterwards(work, cold):
    plain = load(work / "plain" / "data")
    for split in (histories.VALID, histories.TEST):
        before, after = plain.requests_of(split), cold.requests_of(split)
        assert len(before) == len(after)
        for r, s in zip(before.tolist(), after.tolist(), strict=True):
            assert plain.inventory(r).tolist() == cold.inventory(s).tolist()
            assert plain.relevant(r)[0].tolist() == cold.relevant(s)[0].tolist()
    bought = np.concatenate([cold.relevant(int(r))[0] for r in cold.requests_of(histories.TEST)])
    assert cold.hidden_O[cold.ad_object_A[bought]].any()


def test_the_prior_gives_them_the_mean(cold):
    rates = response_rates(cold)[cold.hidden_O]
    assert np.ptp(rates) == 0 and rates[0] > 0


def test_no_hidden_objects_means_the_same_bytes(work, cold):
    made = artifact.read(work / "plain" / "data", artifact.TABLES)
    assert histories.HIDDEN not in made.meta["files"]
    assert not load(work / "plain" / "data").hidden_O.any()


def test_splits_that_share_an_inventory_part_ways():
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    one = tables.inventories["inventory_id"][0]
    requests = tables.requests.with_columns(inventory_id=pl.lit(one))
    everything = pl.DataFrame({"inventory_id": one, "ad_id": tables.ads["ad_id"]})
    shared = dataclasses.replace(tables, requests=requests, inventories=everything)
    ids = tables.ads["object_id"][:4].unique()
    made = hidden.launch_late(shared, ids, positive="conversion", keep_empty=False)
    of_split = dict(made.requests.group_by("split").agg(pl.col("inventory_id").unique().first()).iter_rows())
    assert of_split == {"train": f"{one}-before-launch", "valid": one, "test": one}
    sizes = dict(made.inventories.group_by("inventory_id").len().iter_rows())
    gone = tables.ads["object_id"].is_in(ids.implode()).sum()
    assert sizes == {one: 40, f"{one}-before-launch": 40 - gone}


def test_requests_without_an_answer_stay_if_asked():
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    ids = tables.ads["object_id"][:10].unique()
    dropped, kept = (
        hidden.launch_late(tables, ids, positive="conversion", keep_empty=keep_empty) for keep_empty in (False, True)
    )
    assert len(dropped.requests) < len(kept.requests) == len(tables.requests)


def test_errors_teach(tmp_path):
    with pytest.raises(InputError, match="wants a share from 0"):
        stage.run(stage.Config(run="x", work=tmp_path, hide=1.0, **SMALL))
    tables = world.read(seed=3, users=24, ads=40, contents=12)
    training = dataclasses.replace(tables, requests=tables.requests.filter(pl.col("split") == "train"))
    with pytest.raises(InputError, match="no validation or test requests"):
        hidden.launch_late(training, tables.ads["object_id"], positive="conversion", keep_empty=False)


def test_they_get_their_ids_from_a_codebook_that_was_fitted_without_them(work, cold, tiny_encoder):
    options = {"work": work, "encoder": str(tiny_encoder), "levels": (8, 4), "collisions": 24}
    semid.run(semid.Config(run="cold", collaborative=0.5, collaborative_dim=6, **options))
    book = codebooks.load(artifact.read(work / "cold" / "semid", artifact.CODEBOOK))
    rows_O = book.rows(cold.objects["object_id"].to_list())
    known = int((~cold.hidden_O).sum())
    assert (rows_O[~cold.hidden_O] < known).all() and (rows_O[cold.hidden_O] >= known).all()
    assert not book.embeddings_OD[known:, 16:].any()
    text_OD = embed.embed(cold.objects["text"].to_list(), str(tiny_encoder))
    assert np.allclose(book.embeddings_OD[rows_O, :16], text_OD, atol=1e-6), "an ID of another object's text"
    # the centroids are those of a catalogue in which they never were
    alone = rkmeans.fit(book.embeddings_OD[:known], (8, 4), 0)
    assert all(np.array_equal(a, b) for a, b in zip(alone.centroids, book.centroids, strict=True))
