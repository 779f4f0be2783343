"""A worker's ranker follows the published versions, and forgets its users when one of them is erased."""

from __future__ import annotations

import asyncio
import json

import pytest

from leadre import artifact
from leadre.clock import SystemClock
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.paths import StatePaths
from leadre.serve.processes.ranker_follower import RankerFollower
from leadre.serve.processes.renewals import Renewals
from leadre.serve.processes.worker_state import WorkerState
from leadre.serve.rankers.published import NONE, PublishedRankers
from leadre.serve.settings import Settings
from leadre.store import open_store
from leadre.store.contract import Profile, ProfileEvent

from ..conftest import make_ad, make_campaign


@pytest.fixture
def paths(ranked_work, tmp_path, campaign_store):
    """A state with one ad and a published ranker."""
    run = ranked_work / "served"
    paths = StatePaths(folder=tmp_path / "state", store=f"lmdb:{tmp_path / 'state' / 'lists'}")
    campaign_store.put_campaign(make_campaign())
    objects = json.loads((run / "rank-train" / "objects.json").read_text())
    campaign_store.put_ad(make_ad(object_id=objects[0]))
    PublishedRankers(paths.rankers).publish(
        artifact.read(run / "rank-train", artifact.RANKER),
        artifact.read(run / "rank-calibrate", artifact.CALIBRATION),
        objects,
    )
    open_store(paths.store).close()
    return paths


def test_states_are_dropped_when_a_user_is_erased(paths):
    erased = ErasedUsers(paths.erased)

    async def run():
        state = WorkerState(
            paths, Settings(public_url="https://ads.test"), has_model=False, clock=SystemClock(), ranks=True
        )
        renewals = Renewals(state, 60.0)
        await renewals.follow_ranker()
        states = state.bidder.market.ranker.served.states
        event = ProfileEvent(state.bidder.market.catalogue.ads[0].object_id, 5, "ad")
        state.bidder.market.ranker.served.state(Profile("u", (event,)), 9, state.clock.monotonic_s())
        await renewals._refresh_erased_users()
        await renewals.follow_ranker()
        assert len(states) == 1 and "ranker" not in state.degraded()
        erased.add("another")
        await renewals._refresh_erased_users()
        assert len(states) == 0
        await state.close()

    asyncio.run(run())


def test_a_version_that_cannot_be_loaded_leaves_the_last_one(paths, capsys):
    follower = RankerFollower(paths.rankers)
    rankers = PublishedRankers(paths.rankers)

    async def run():
        assert await follower.follow() and not await follower.follow()
        served = follower.served
        trees = paths.rankers / "other" / "ranker"
        trees.mkdir(parents=True)
        (paths.rankers / "current.json").write_text(json.dumps([served.version, "other"]))
        assert not await follower.follow() and not await follower.follow()
        assert follower.served is served and follower.is_behind
        rankers.switch(NONE)
        assert await follower.follow() and follower.served is None and not follower.is_behind
        (paths.rankers / "current.json").write_text("[")
        assert not await follower.follow() and follower.is_behind

    asyncio.run(run())
    said = capsys.readouterr().err
    assert said.count("there is no published-ranker artifact here") == 1
    assert "bids go on without a ranker" in said and "damaged" in said


def test_a_folder_without_versions_is_no_ranker(tmp_path):
    follower = RankerFollower(tmp_path / "rankers")
    assert asyncio.run(follower.follow()) is True and follower.served is None and not follower.is_behind
