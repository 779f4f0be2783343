"""Queries of one snapshot of a MySQL or MariaDB database -> a Parquet file each, in batches.

PyMySQL reads row by row from the server, so memory does not grow with a table. Amounts stay exact, as it gives
decimals. Each type that a table cannot hold is refused with its cast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pymysql
from pymysql.constants import FIELD_TYPE
from pymysql.cursors import SSCursor

from leadre.data.fetch import copies, secrets
from leadre.data.sources import scan
from leadre.errors import InputError

# TIMESTAMP is an instant, which the server shows in the zone of the session.
_BEGIN = (
    "SET time_zone = '+00:00'",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET SESSION TRANSACTION READ ONLY",  # also of statements outside a transaction
    "START TRANSACTION WITH CONSISTENT SNAPSHOT",  # one for all queries
)
_BATCH_ROWS = 10_000
_TIMEOUT_S = 60
_MAX_DIGITS = 38  # of decimal128
_MAX_WHOLE_DIGITS = 18  # of an int64
_TLS: Mapping[str, Mapping[str, bool]] = {  # `ssl-mode` of an address, as in MySQL's own clients
    "DISABLED": {"ssl_disabled": True},
    "PREFERRED": {},
    "VERIFY_CA": {"ssl_verify_cert": True},
    "VERIFY_IDENTITY": {"ssl_verify_cert": True, "ssl_verify_identity": True},
}
_KINDS: Mapping[int, pa.DataType] = {
    **dict.fromkeys(
        (
            *(FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG),
            FIELD_TYPE.YEAR,
        ),
        pa.int64(),
    ),
    **dict.fromkeys((FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE), pa.float64()),
    FIELD_TYPE.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    FIELD_TYPE.DATETIME: pa.timestamp("us"),
    FIELD_TYPE.DATE: pa.date32(),
    **dict.fromkeys(
        (
            *(FIELD_TYPE.VARCHAR, FIELD_TYPE.VAR_STRING, FIELD_TYPE.STRING, FIELD_TYPE.ENUM, FIELD_TYPE.SET),
            *(FIELD_TYPE.TINY_BLOB, FIELD_TYPE.BLOB, FIELD_TYPE.MEDIUM_BLOB, FIELD_TYPE.LONG_BLOB, FIELD_TYPE.JSON),
            FIELD_TYPE.NULL,
        ),
        pa.string(),  # a text has the type of a blob; bytes are refused when they come
    ),
}
_CASTS = {FIELD_TYPE.BIT: "{} + 0", FIELD_TYPE.GEOMETRY: "ST_AsText({})"}
_NAMES = {code: name.lower() for name, code in vars(FIELD_TYPE).items() if isinstance(code, int)}


def copy(address: str, variable: str, queries: Mapping[str, str], folder: Path) -> None:
    """Write the rows of each query into ``folder/NAME.parquet``.

    ``variable``: the environment variable of the address, for messages. Raises InputError for a connection or a query
    that fails, and for a column whose type no table can hold. No message has the password.
    """
    hidden = secrets.of_address(address)
    with _connect(address, variable, hidden) as connection:
        try:
            for statement in _BEGIN:
                connection.query(statement)
        except pymysql.MySQLError as error:
            raise InputError(f"data fetch: {variable}: no read-only snapshot: {_failed(error, hidden)}") from None
        for name, query in queries.items():
            cursor = connection.cursor()
            try:
                _copy_query(cursor, name, query, folder / f"{name}.parquet", hidden)
            except (InputError, KeyboardInterrupt):
                with suppress(pymysql.MySQLError, InputError), _connect(address, variable, hidden) as other:
                    other.query(f"KILL QUERY {connection.thread_id()}")  # which else sends all of its rows
                raise
            finally:
                with suppress(pymysql.MySQLError):  # of the killed query
                    cursor.close()


def _connect(address: str, variable: str, hidden: set[str]) -> pymysql.Connection[SSCursor]:
    try:
        parts = urlsplit(address)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        tls = _TLS[options.pop("ssl-mode", "PREFERRED")]
        certificates = options.pop("ssl-ca", None)
        if options or not parts.hostname or parts.fragment:
            raise ValueError(options)
        port = parts.port or 0
    except (ValueError, KeyError):
        raise InputError(
            f"data fetch: {variable}: its form is wrong; write mysql://USER:PASSWORD@HOST:PORT/NAME, with %XX for"
            " special characters of the password; after it may come"
            f" ?ssl-mode={'|'.join(_TLS)}&ssl-ca=FILE"
        ) from None
    try:
        return pymysql.connect(
            host=parts.hostname,
            port=port,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or "").encode(),  # a text would be Latin-1
            database=unquote(parts.path.removeprefix("/")) or None,
            charset="utf8mb4",
            cursorclass=SSCursor,
            connect_timeout=_TIMEOUT_S,
            autocommit=True,
            ssl_ca=certificates,
            **tls,
        )
    except (
        pymysql.MySQLError,
        OSError,
        RuntimeError,
    ) as error:  # the last: a package for a kind of password is missing
        raise InputError(f"data fetch: {variable}: {_unreached(error, hidden)}") from None


def _copy_query(cursor: SSCursor, name: str, query: str, path: Path, hidden: set[str]) -> None:
    """Write the rows of one query."""
    place = f"[data-fetch.queries] {name}"
    try:
        cursor.execute(query)
        if cursor.description is None:
            raise InputError(f"{place}: has no rows; write a SELECT")
        names = [column[0] for column in cursor.description]
        copies.check_names(names, place)
        schema = pa.schema([pa.field(column[0], _type(column, place)) for column in cursor.description])
        copies.write(path, schema, _batches(cursor, schema, place))
    except pymysql.MySQLError as error:
        raise InputError(f"{place}: {_failed(error, hidden)}") from None


def _type(column: tuple[Any, ...], place: str) -> pa.DataType:
    """The type of a column by its description: name, type, (none), length, length, digits after the point."""
    name, code, _, _, length, scale = column[:6]
    if code in (FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL):
        digits = length - (scale > 0)  # the length has the point, and the sign of a column that has one
        is_whole = scale == 0 and digits <= _MAX_WHOLE_DIGITS
        return pa.int64() if is_whole else pa.decimal128(_MAX_DIGITS, min(scale, _MAX_DIGITS))
    if code in _KINDS:
        return _KINDS[code]
    cast = _CASTS.get(code, "CAST({} AS CHAR)").format(name)
    raise InputError(f"{place}: the column {name!r} is {_NAMES.get(code, code)}; write {cast}, or leave it out")


def _batches(cursor: SSCursor, schema: pa.Schema, place: str) -> Iterator[pa.RecordBatch]:
    while rows := cursor.fetchmany(_BATCH_ROWS):
        values = zip(*rows, strict=True)
        columns = [_converted(column, field, place) for column, field in zip(values, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _converted(values: tuple[Any, ...], field: pa.Field, place: str) -> pa.Array:
    """The values of a column. Raises InputError for bytes, a date that is none, and a number that does not fit."""
    kind = field.type
    if pa.types.is_string(kind) and any(isinstance(value, bytes) for value in values):
        raise InputError(f"{place}: the column {field.name!r} is bytes; write HEX({field.name}), or leave it out")
    if pa.types.is_timestamp(kind) or pa.types.is_date32(kind):
        wrong = next((value for value in values if not isinstance(value, datetime | date | None)), None)
        if wrong is not None:  # 0000-00-00
            raise InputError(
                f"{place}: the column {field.name!r} has the date {wrong!r}, which is none; write"
                f" NULLIF({field.name}, 0)"
            )
    if pa.types.is_integer(kind):
        values = tuple(None if value is None else int(value) for value in values)  # a whole decimal
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise InputError(
            f"{place}: the column {field.name!r} has a value that does not fit into {kind} ({scan.first_line(error)});"
            f" write CAST({field.name} AS CHAR), or round it"
        ) from None


def _failed(error: pymysql.MySQLError, hidden: set[str]) -> str:
    """The server's message on a statement, which has the line of a fault in its syntax."""
    return f"{secrets.hide(str(error.args[-1]), hidden)}; correct the query, or the rights of its user"


def _unreached(error: Exception, hidden: set[str]) -> str:
    """The reason. The text of an error of the client may have a part of the password, as the name of a host."""
    code = error.args[0] if isinstance(error, pymysql.MySQLError) and error.args else 0
    message = str(error)
    if isinstance(code, int) and 1000 <= code < 2000:
        return f"the server refuses the connection: {secrets.hide(str(error.args[-1]), hidden)}"
    if "certificate" in message.lower():
        reason = "the certificate of the server is not trusted: see ssl-mode and ssl-ca"
    elif re.search(r"\bssl\b|TLS", message, re.IGNORECASE):
        reason = "TLS failed: see ssl-mode and ssl-ca"
    elif "cryptography" in message or "PyNaCl" in message:
        reason = "its kind of password needs TLS, or the package PyMySQL[rsa] or PyMySQL[ed25519]"
    elif "getaddrinfo" in message or "Name or service" in message:
        reason = "its host name is unknown"
    elif "refused" in message:
        reason = "no server listens at this host and port"
    elif "timed out" in message:
        reason = "the server does not answer"
    else:
        reason = "its form is wrong, or the server refuses it"
    return f"cannot connect: {reason}; check it (%XX for special characters of the password)"
