"""Queries of one snapshot of a PostgreSQL database -> a Parquet file each, in batches.

The driver converts the binary rows of ``COPY`` into Arrow batches of some 16 MB, so memory does not grow with a table.
Amounts stay exact (numeric is a decimal), and each type that a table cannot hold is refused with its cast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import adbc_driver_manager
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_postgresql import dbapi

from leadre.data.fetch import copies, secrets
from leadre.data.sources import scan
from leadre.errors import InputError

# One snapshot for all queries, in which no statement can write.
_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
_MAX_DIGITS = 38  # of decimal128
_SCALE = 9  # of a numeric without one, such as a sum: billionths, as money has
# The driver shifts the epoch from 2000 to 1970, also of the numbers that mean infinity.
_INFINITIES = {
    "timestamptz": (-(2**63) + 946_684_800_000_000 - 1, -(2**63) + 946_684_800_000_000),
    "date": (-(2**31) + 10_957 - 1, -(2**31) + 10_957),
}
# Types that would be misread or that no table has -> the cast that gives a type that one has.
_CASTS = {
    "timestamp": "{} AT TIME ZONE 'UTC', or its own zone",
    "money": "{}::numeric",
    "bytea": "encode({}, 'hex')",
}
# Reasons for which no server is reached. The driver's text can have a part of the password, as the name of a host.
_UNREACHED = {
    "refused": "no server listens at this host and port",
    "translate host name": "its host name is unknown",
    "timeout": "the server does not answer",
    "timed out": "the server does not answer",
    "ssl": "TLS failed: see sslmode and sslrootcert",
    "certificate": "the certificate of the server is not trusted: see sslmode and sslrootcert",
}


def copy(address: str, variable: str, queries: Mapping[str, str], folder: Path) -> None:
    """Write the rows of each query into ``folder/NAME.parquet``.

    ``variable``: the environment variable of the address, for messages. Raises InputError for a connection or a query
    that fails, and for a column whose type no table can hold. No message has the password.
    """
    hidden = secrets.of_address(address)
    try:
        connection = dbapi.connect(address)
    except adbc_driver_manager.Error as error:
        raise InputError(f"data fetch: {variable}: {_unreached(str(error), hidden)}") from None
    with connection, connection.cursor() as cursor:
        try:
            cursor.execute(_BEGIN)
        except adbc_driver_manager.Error as error:  # of a server that is not quite PostgreSQL
            raise InputError(f"data fetch: {variable}: no read-only snapshot: {_failed(error, '', hidden)}") from None
        for name, query in queries.items():
            _copy_query(cursor, name, query, folder / f"{name}.parquet", hidden)


def _copy_query(cursor: dbapi.Cursor, name: str, query: str, path: Path, hidden: set[str]) -> None:
    """Write the rows of one query."""
    place = f"[data-fetch.queries] {name}"
    query = query.rstrip().rstrip(";").rstrip() + "\n"  # the driver adds a bracket, which a comment must not hide
    try:
        cursor.execute(query)
        with cursor.fetch_record_batch() as batches:
            schema = _schema(batches.schema, place)
            copies.write(path, schema, (_batch(batch, schema, place) for batch in batches))
    except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:  # the last two of a row, by its server
        raise InputError(f"{place}: {_failed(error, query, hidden)}") from None


def _batch(batch: pa.RecordBatch, schema: pa.Schema, place: str) -> pa.RecordBatch:
    """The rows in the types of the file."""
    fields = zip(batch.schema, batch.columns, schema, strict=True)
    columns = [_converted(values, field, to, place) for field, values, to in fields]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _schema(schema: pa.Schema, place: str) -> pa.Schema:
    """The types of the file. Raises InputError for a column that cannot be read, or that exists twice."""
    copies.check_names(schema.names, place)
    return pa.schema([pa.field(field.name, _type(field, place)) for field in schema])


def _type(field: pa.Field, place: str) -> pa.DataType:
    of_database = _type_name(field)
    kind = getattr(field.type, "storage_type", field.type)
    if of_database == "numeric":
        return _decimal(int((field.metadata or {}).get(b"POSTGRESQL:typmod", b"-1")))
    if of_database in ("uuid", "json", "jsonb"):
        return pa.string()
    if of_database not in _CASTS and (_is_plain(kind) or (pa.types.is_list(kind) and _is_plain(kind.value_type))):
        return kind
    cast = _CASTS.get(of_database, "{}::text").format(field.name)
    raise InputError(f"{place}: the column {field.name!r} is {of_database}; write {cast}, or leave it out")


def _is_plain(kind: pa.DataType) -> bool:
    types = pa.types
    is_time = types.is_date32(kind) or (types.is_timestamp(kind) and kind.tz is not None)
    is_number = types.is_integer(kind) or types.is_floating(kind)
    return bool(is_time or is_number or types.is_boolean(kind) or types.is_string(kind))


def _decimal(modifier: int) -> pa.DataType:
    """The type of numeric(p, s) by its type modifier, -1 without p and s. Whole numbers that fit are int64."""
    digits = (modifier - 4) >> 16 & 0xFFFF
    scale = (modifier - 4) & 0x7FF
    if modifier < 0 or digits > _MAX_DIGITS or scale > digits:  # a negative scale is a large one here
        return pa.decimal128(_MAX_DIGITS, _SCALE)
    return pa.int64() if scale == 0 and digits <= 18 else pa.decimal128(digits, scale)


def _converted(values: pa.Array, field: pa.Field, to: pa.Field, place: str) -> pa.Array:
    of_database = _type_name(field)
    values = values.storage if isinstance(values, pa.ExtensionArray) else values
    if of_database == "uuid":
        as_hex = pl.Series(values).bin.encode("hex")
        return as_hex.str.replace(r"^(.{8})(.{4})(.{4})(.{4})(.{12})$", "$1-$2-$3-$4-$5").to_arrow().cast(to.type)
    if of_database == "numeric":
        try:
            return values.cast(to.type)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{place}: the column {field.name!r} has a number that is no decimal of {_SCALE} places"
                f" ({scan.first_line(error)}); write round({field.name}, {_SCALE}), and NULLIF for NaN and infinity"
            ) from error
    if of_database in _INFINITIES:  # an open bound
        numbers = values.cast(pa.int32() if of_database == "date" else pa.int64())
        is_infinite = pc.is_in(numbers, pa.array(_INFINITIES[of_database], numbers.type))
        return pc.if_else(is_infinite, pa.scalar(None, values.type), values)
    return values


def _type_name(field: pa.Field) -> str:
    name: bytes = (field.metadata or {}).get(b"POSTGRESQL:type", str(field.type).encode())
    return name.decode()


def _failed(error: Exception, query: str, hidden: set[str]) -> str:
    """The server's message on a query, with the line on which it found the fault."""
    details: dict[bytes, bytes] = dict(getattr(error, "details", None) or ())
    text = str(error)
    message = details.get(b"PG_DIAG_MESSAGE_PRIMARY", b"").decode(errors="replace")
    if not message:
        message = re.sub(r".*?(?:ERROR|FATAL): +", "", text, count=1, flags=re.DOTALL).partition("\n")[0]
    position = int(details.get(b"PG_DIAG_STATEMENT_POSITION", b"0")) - len("COPY (") * ("begin COPY" in text)
    line = query.count("\n", 0, position - 1) + 1
    at = f" (line {line} of the query)" if 0 < position <= len(query) else ""
    return f"{secrets.hide(message, hidden)}{at}; correct the query, or the rights of its user"


def _unreached(message: str, hidden: set[str]) -> str:
    refused = re.search(r"FATAL: +([^\n]*)", message)  # of the server, which never repeats a password
    if refused is not None:
        return f"the server refuses the connection: {secrets.hide(refused[1], hidden)}"
    reason = next((reason for sign, reason in _UNREACHED.items() if sign in message.lower()), "")
    reason = reason or "its form is wrong, or the server refuses it"
    return f"cannot connect: {reason}; check it (%XX for special characters of the password)"
