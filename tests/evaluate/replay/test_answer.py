"""Comparison of a logged with a replayed decision, in one process."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from leadre.evaluate.replay.answer import ReplayWorld, replay
from leadre.serve.bidding.record import digest
from leadre.serve.ipc.messages import AppendRequest
from leadre.types import Verdict

from ...serve.alone import Alone, banner_request
from ...serve.conftest import make_ad, make_campaign


@pytest.mark.parametrize(
    ("logged", "differences"),
    [
        ((Verdict.BID, Verdict.OUTRANKED), []),
        ((Verdict.BID, Verdict.NOT_SELECTED), []),  # the word of releases up to November 2026
        ((Verdict.BID, Verdict.BELOW_FLOOR), ["verdicts"]),
        ((Verdict.OUTRANKED, Verdict.NOT_SELECTED), ["verdicts"]),
    ],
)
def test_verdicts_of_older_releases_replay_alike(tmp_path, logged, differences):
    with Alone(tmp_path / "state") as alone:
        for name in ("a", "b"):
            alone.campaign_store.put_campaign(make_campaign(f"c-{name}"))
            alone.campaign_store.put_ad(make_ad(name, campaign_id=f"c-{name}"))
        alone.put_list("*", "a", "b")
        alone.renew()
        settings = alone.bidder.settings
        request = banner_request()
        record = alone.record(request, alone.respond(request))
        versions = record.versions | {"options": digest(settings)}
        record = msgspec.structs.replace(record, verdicts={"1": logged}, versions=versions)
        alone.writer.handle([AppendRequest([record])], alone.clock.wall_us)
        world = ReplayWorld(
            log=alone.paths.events,
            settings=settings,
            catalogue=alone.bidder.market.catalogue,
            store=alone.store,
            draws=alone.bidder.draws,
            model=None,
        )
        report = asyncio.run(replay(world, 10))
    assert report.compared == 1 and [difference.what for difference in report.differences] == differences
