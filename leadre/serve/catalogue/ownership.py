"""Accounts of objects: which account may show which object in its ads.

Lists and the model know objects, not ads: an ad that names the object of another account would get the impressions of
that account's ads. So an account has an object by being the first to name it, or by a grant. Ads of imported logs that
share an object get grants; the operator grants others. The objects of the run that no ad shows, such as contents,
belong to `RUN` alone; the operator makes ads of them. IDs that differ in case or Unicode form only count as one object
of one account, as people cannot tell them apart. Rows are never deleted: the objects of ended ads keep their account.
Triggers of ``manage.db`` enforce both rules, of a claim and of an ad, for every writer.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Iterable

from leadre.errors import ConflictError
from leadre.serve.catalogue.validation import check_id

MIGRATION = """
    CREATE TABLE object_accounts (
        object_id TEXT NOT NULL, advertiser_id TEXT NOT NULL, folded_id TEXT NOT NULL, is_granted INTEGER NOT NULL,
        PRIMARY KEY (object_id, advertiser_id)
    ) WITHOUT ROWID;
    CREATE INDEX object_accounts_by_folded_id ON object_accounts (folded_id, advertiser_id);
    INSERT INTO object_accounts
        SELECT DISTINCT json_extract(body, '$.object_id'), advertiser_id, folded(json_extract(body, '$.object_id')), 1
        FROM ads;
    CREATE TRIGGER claim_of_an_object BEFORE INSERT ON object_accounts
        WHEN NOT NEW.is_granted AND EXISTS (
            SELECT 1 FROM object_accounts WHERE folded_id = NEW.folded_id AND advertiser_id <> NEW.advertiser_id)
        BEGIN SELECT RAISE(ABORT, 'an object of another account'); END;
    CREATE TRIGGER object_of_a_new_ad BEFORE INSERT ON ads
        WHEN NOT EXISTS (SELECT 1 FROM object_accounts WHERE object_id = json_extract(NEW.body, '$.object_id')
            AND advertiser_id = json_extract(NEW.body, '$.advertiser_id'))
        BEGIN SELECT RAISE(ABORT, 'an ad with an object of another account'); END;
    CREATE TRIGGER object_of_a_changed_ad BEFORE UPDATE OF body ON ads
        WHEN NOT EXISTS (SELECT 1 FROM object_accounts WHERE object_id = json_extract(NEW.body, '$.object_id')
            AND advertiser_id = json_extract(NEW.body, '$.advertiser_id'))
        BEGIN SELECT RAISE(ABORT, 'an ad with an object of another account'); END
    """
RUN = ""  # the account of all objects of the run
_INSERT = "INSERT INTO object_accounts VALUES (?, ?, ?, ?)"


def folded(text: str) -> str:
    """The text by which IDs are compared: without case, in one Unicode form."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def claim(connection: sqlite3.Connection, object_id: str, advertiser_id: str, *, is_operator: bool) -> None:
    """Give an object to an account that has it, or that is the first to name it. ConflictError for any other account.

    ``is_operator``: an operator names it for the account, also an object of the run. The caller has a transaction open.
    """
    key = (object_id, advertiser_id)
    if connection.execute("SELECT 1 FROM object_accounts WHERE object_id = ? AND advertiser_id = ?", key).fetchone():
        return
    others = "SELECT 1 FROM object_accounts WHERE folded_id = ? AND advertiser_id NOT IN (?, ?)"
    is_of_run = not connection.execute(others, (folded(object_id), advertiser_id, RUN)).fetchone()
    try:
        connection.execute(_INSERT, (*key, folded(object_id), is_operator and is_of_run))
    except sqlite3.IntegrityError as error:
        raise ConflictError(
            f"object_id = {object_id!r}: this or an ID of other case is an object of another account or of the run;"
            " leave object_id out for an object of its own, or let the operator grant it"
            " (PUT /objects/ID/accounts/ACCOUNT)"
        ) from error


def grant(connection: sqlite3.Connection, pairs: Iterable[tuple[str, str]]) -> None:
    """Let accounts show objects, (object ID, account), beside other accounts. The caller has a transaction open."""
    rows = [(object_id, advertiser_id, folded(object_id), True) for object_id, advertiser_id in dict.fromkeys(pairs)]
    connection.executemany(f"{_INSERT} ON CONFLICT DO NOTHING", rows)


def grant_checked(connection: sqlite3.Connection, object_id: str, advertiser_id: str) -> bool:
    """`grant` for IDs that a person wrote; whether it is new. InputError for an invalid ID."""
    check_id("object", "object_id", object_id)
    check_id("object", "advertiser_id", advertiser_id)
    is_new = advertiser_id not in accounts_of(connection, object_id)
    grant(connection, [(object_id, advertiser_id)])
    return is_new


def accounts_of(connection: sqlite3.Connection, object_id: str) -> list[str]:
    """The accounts that may show an object, sorted."""
    query = (
        "SELECT advertiser_id FROM object_accounts WHERE object_id = ? AND advertiser_id <> ? ORDER BY advertiser_id"
    )
    return [account for (account,) in connection.execute(query, (object_id, RUN))]
