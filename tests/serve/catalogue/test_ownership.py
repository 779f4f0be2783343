"""An account cannot take the placements of another by naming its object."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import msgspec
import pytest

from leadre import database
from leadre.errors import ConflictError, InputError
from leadre.serve.catalogue import database as records
from leadre.serve.catalogue import ownership
from leadre.serve.catalogue.audit import Author
from leadre.serve.catalogue.campaigns import CampaignStore
from leadre.serve.catalogue.database import ManageDatabase

from ..conftest import make_ad, make_campaign


@pytest.fixture
def two(campaign_store):
    """A store with a campaign of the accounts acme and bolt each; acme has an ad of the object "Shoe é"."""
    for account in ("acme", "bolt"):
        campaign_store.put_campaign(make_campaign(f"c-{account}", advertiser_id=account))
    campaign_store.put_ad(ad_of("acme", "a1", "Shoe \xe9"))
    return campaign_store


def ad_of(account, ad_id, object_id, **fields):
    return make_ad(ad_id, campaign_id=f"c-{account}", advertiser_id=account, object_id=object_id, **fields)


@pytest.mark.parametrize("object_id", ["Shoe \xe9", "sHOE \xe9", "Shoe e\u0301", "\uff33hoe \xe9"])
def test_object_of_another_account_is_refused_in_any_case_and_form(two, object_id):
    with pytest.raises(ConflictError, match="an object of another account"):
        two.put_ad(ad_of("bolt", "b1", object_id))
    assert two.ad("b1") is None


def test_ad_cannot_change_to_an_object_of_another_account(two):
    two.put_ad(ad_of("bolt", "b1", "own"))
    with pytest.raises(ConflictError, match="another account"):
        two.put_ad(ad_of("bolt", "b1", "Shoe \xe9", title="Better"))
    assert two.ad("b1").object_id == "own"
    two.put_ad(ad_of("bolt", "b1", "own", title="Better"))
    two.put_ad(ad_of("acme", "a2", "Shoe \xe9"))  # one account, several ads


def test_object_of_ended_ads_keeps_its_account(two):
    two.set_ad_status("a1", "ended")
    two.set_campaign_status("c-acme", "ended")
    with pytest.raises(ConflictError):
        two.put_ad(ad_of("bolt", "b1", "Shoe \xe9"))


def test_imported_ads_share_objects_and_grants_are_of_one_spelling(two, manage_database):
    shared = [ad_of("acme", "i1", "tea"), ad_of("bolt", "i2", "tea"), ad_of("bolt", "i3", "TEA")]
    assert two.add([], shared).ads == 3
    two.put_ad(ad_of("bolt", "b2", "tea"))
    with pytest.raises(ConflictError):
        two.put_ad(ad_of("acme", "a2", "TEA"))  # bolt's alone
    with manage_database.writing():
        ownership.grant_checked(manage_database.connection, "TEA", "acme")
    two.put_ad(ad_of("acme", "a2", "TEA"))
    assert ownership.accounts_of(manage_database.connection, "TEA") == ["acme", "bolt"]
    with pytest.raises(InputError, match="object_id"), manage_database.writing():
        ownership.grant_checked(manage_database.connection, " ", "acme")


def test_object_of_the_run_is_for_no_account_but_by_the_operator(two, manage_database):
    """A content that users like would give the ads of any account its impressions."""
    with manage_database.writing():
        ownership.grant(manage_database.connection, [("film", ownership.RUN), ("Shoe \xe9", ownership.RUN)])
    account = CampaignStore(manage_database, Author(key_id="k", account="bolt"))
    with pytest.raises(ConflictError, match="of the run"):
        account.put_ad(ad_of("bolt", "b1", "Film"))
    two.put_ad(ad_of("bolt", "b1", "film"))  # the operator
    account.put_ad(ad_of("bolt", "b2", "film"))
    with pytest.raises(ConflictError):
        two.put_ad(ad_of("acme", "a2", "film"))
    two.put_ad(ad_of("acme", "a2", "Shoe \xe9"))
    assert ownership.accounts_of(manage_database.connection, "film") == ["bolt"]


def test_of_two_accounts_at_once_one_gets_the_object(two, manage_db):
    """Each writer has a connection of its own, as two processes have."""

    def name(number):
        with closing(ManageDatabase(manage_db)) as own:
            account = "acme" if number % 2 else "bolt"
            try:
                CampaignStore(own).put_ad(ad_of(account, f"n{number}", f"new {number // 2}"))
            except ConflictError:
                return 0
            return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(name, range(40))) == 20


def test_database_refuses_what_the_code_would_let_pass(two, manage_database):
    connection = manage_database.connection
    with pytest.raises(sqlite3.IntegrityError, match="an object of another account"), manage_database.writing():
        connection.execute("INSERT INTO object_accounts VALUES ('SHOE \xe9', 'bolt', ?, 0)", ["shoe \xe9"])
    for change in ("'$.object_id', 'no one has it'", "'$.advertiser_id', 'bolt'"):
        with pytest.raises(sqlite3.IntegrityError, match="another account"), manage_database.writing():
            connection.execute(f"UPDATE ads SET body = json_set(body, {change}) WHERE ad_id = 'a1'")


def test_objects_of_an_older_database_stay_with_their_accounts(tmp_path):
    """Accounts that shared an object before share it still; no other joins."""
    path = tmp_path / "manage.db"
    with closing(database.connect(path, records.MIGRATIONS[:1])) as old, database.transaction(old):
        for account in ("acme", "bolt", "cold"):
            campaign = msgspec.json.encode(make_campaign(f"c-{account}", advertiser_id=account)).decode()
            old.execute(
                "INSERT INTO campaigns (campaign_id, body, version) VALUES (?, ?, 1)", [f"c-{account}", campaign]
            )
            ad = msgspec.json.encode(ad_of(account, f"a-{account}", "\xc9")).decode()
            if account != "cold":
                old.execute("INSERT INTO ads (ad_id, body, version) VALUES (?, ?, 1)", [f"a-{account}", ad])
    with closing(ManageDatabase(path)) as now:
        store = CampaignStore(now)
        for account in ("acme", "bolt"):
            store.put_ad(ad_of(account, f"new-{account}", "\xc9"))
        for object_id in ("\xc9", "\xe9"):
            with pytest.raises(ConflictError):
                store.put_ad(ad_of("cold", "new-cold", object_id))
