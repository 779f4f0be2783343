"""A campaign store in a folder of its own, and campaigns and ads that pass validation."""

from __future__ import annotations

from pathlib import Path

import pytest

from leadre import database
from leadre.__main__ import main
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase
from leadre.serve.events.tokens import Token, nonce
from leadre.types import Ad, Campaign

from .bidder import Bidder


def make_campaign(campaign_id="c1", **fields):
    usual = {"advertiser_id": "acme", "name": "Autumn", "bid_type": "cpm", "bid_nanos": 2_000_000}
    return Campaign(**{"campaign_id": campaign_id} | usual | fields)


def make_ad(ad_id="a1", **fields):
    account = fields.get("advertiser_id", "acme")
    usual = {"object_id": "o1" if account == "acme" else f"o-{account}", "campaign_id": "c1", "advertiser_id": account}
    usual |= {"title": "Shoes"}
    return Ad(**{"ad_id": ad_id, "landing_url": "https://www.acme.test/shoes"} | usual | fields)


def make_token(now_us, nanos, **fields):
    """The event token of a bid of ``nanos`` for the ad of `make_ad`, valid for ten minutes."""
    usual = {"bid_id": "b", "request_id": "r", "imp_id": "1", "ad_id": "a1", "campaign_id": "c1", "user_id": ""}
    usual |= {"charge_type": "cpm", "price_cap_nanos": nanos, "charge_nanos": nanos, "currency": "USD"}
    usual |= {"lease_id": 0, "reserved_nanos": nanos, "cap_id": "", "nonce": nonce()}
    usual |= {"issued_at_us": now_us, "expires_at_us": now_us + 600_000_000}
    usual |= {"is_test": False, "may_measure": True, "may_profile": True}
    return Token(**usual | fields)


@pytest.fixture
def campaign():
    return make_campaign


@pytest.fixture
def ad():
    return make_ad


@pytest.fixture
def manage_db(tmp_path: Path) -> Path:
    return tmp_path / "state" / "manage.db"


@pytest.fixture
def manage_database(manage_db):
    opened = ManageDatabase(manage_db)
    yield opened
    opened.close()


@pytest.fixture
def campaign_store(manage_database):
    return CampaignStore(manage_database)


@pytest.fixture
def reader(manage_database, manage_db):
    """A read-only connection, as bid workers have."""
    connection = database.connect(manage_db, records.MIGRATIONS, read_only=True)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def ranked_work(tmp_path_factory):
    """A work folder with the run `served`: the synthetic market, and a ranker of conversions per impression."""
    work = tmp_path_factory.mktemp("ranked")
    shared = ["--work", str(work), "--run", "served", "--threads", "1"]
    size = ["--world-users", "80", "--world-ads", "60", "--world-contents", "12"]
    assert main(["data", *shared, "--source", "world", *size]) == 0
    assert main(["rank", "train", *shared, "--rows", "shown", "--negatives", "1", "--rounds", "20"]) == 0
    assert main(["rank", "calibrate", *shared, "--resamples", "2"]) == 0
    return work


@pytest.fixture(scope="session")
def bidder(work, tmp_path_factory):
    """Two workers without a language model. Tests share it, so each makes campaigns of its own."""
    with Bidder(work, tmp_path_factory.mktemp("bidder") / "state", "--workers", "2", "--generate", "false") as running:
        yield running
