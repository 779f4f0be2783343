"""A log of any layout -> the tables: the files of each table, and an SQL expression for each of its columns.

In the config of a run ``[data.columns.TABLE]`` maps ads, contents, users, inventory or requests, and ``[data.events]``
the events. A key that is no setting (`TableMapping`) is a column of the table; its value is an expression of Polars'
SQL over the columns of the file: ``user_id = "cookie"``, ``domain = "'ad'"``; the fields of an object within a row are
columns ``"column.field"``. Expressions compute values and read no files. One row of a log may be several events: each
entry of ``actions`` gives one, with its own columns, where its ``where`` is true.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

import polars as pl

from leadre import config
from leadre.data import lists
from leadre.data.sources.options import TIME_UNITS
from leadre.data.tables import LIST_MARK, ROW, SCHEMAS, TEXT, TEXTS, FileColumns, plain_name, raw_columns
from leadre.errors import InputError

_LAYOUTS = resources.files("leadre.data.sources") / "layouts"
ROW_NUMBER = "row_number"  # in expressions: the number of the row in its table, from 1
_TYPES = {"str": "a text", "bool": "true or false", "tuple[str, ...]": "a list of texts", "Join | None": "a table"}


@dataclass(frozen=True, kw_only=True)
class Join:
    """A second file whose columns expressions can name: of each row, those of the row with the same ``on``."""

    file: str
    on: str
    header: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TableMapping:
    """The mapping of one table. The fields but ``table`` and ``columns`` are the settings of its section."""

    table: str
    columns: Mapping[str, str]  # column of the schema -> expression
    file: str = ""  # path or pattern below the folder of the logs; "": files with the name of the table
    header: tuple[str, ...] = ()  # names of the columns of files without a header
    quoted: bool = True  # in separated files, quotes around a field are no text
    where: str = ""  # condition of the rows that are read
    explode: str = ""  # column with a list in each cell; one row for each entry
    explode_separator: str = " "
    list_separator: str = ""  # in text cells of columns that are lists, such as category_path
    distinct: bool = False  # of rows with one ID the first is kept
    unordered: bool = False  # sort the events by time
    time_unit: str = ""
    time_zone: str = ""
    time_origin: str = ""
    join: Join | None = None
    actions: tuple[Mapping[str, str], ...] = field(default=())  # of events: columns and `where` of each kind of event

    @property
    def place(self) -> str:
        """The section of the config, for messages."""
        return "[data.events]" if self.table == "events" else f"[data.columns.{self.table}]"

    def file_columns(self) -> FileColumns:
        """The columns that the expressions read; those of a joined file among them."""
        kinds = raw_columns(self.table)
        known: dict[str, pl.DataType] = {}
        for column, expression in self._expressions():
            for name in self._parsed(column, expression).meta.root_names():
                may_be_list = kinds.get(column) == TEXTS or self._is_of_profile(column)
                is_list = may_be_list and plain_name(name) not in known
                known[plain_name(name)] = TEXTS if is_list else TEXT
        for name in (self.explode, *([self.join.on] if self.join else [])):
            if name:
                known[plain_name(name)] = TEXTS if name == self.explode else TEXT
        return FileColumns(table=self.table, known=known, header=self.header, quoted=self.quoted)

    def rows(self, frame: pl.DataFrame, joined: pl.DataFrame | None, file: str, rows_before: int) -> pl.DataFrame:
        """The rows of a file in columns of the schema, each with the ROW from which it comes.

        ``rows_before``: of the table, in earlier files. Raises InputError for a column that no file has, and for an
        expression that cannot be computed.
        """
        if ROW_NUMBER not in frame.columns:
            frame = frame.with_columns((pl.int_range(pl.len()) + rows_before + 1).alias(ROW_NUMBER))
        if self.join is not None and joined is not None:
            self._check_names([self.join.on], frame.columns, file)
            key = pl.col(self.join.on).cast(pl.String)  # Parquet has numbers where a CSV has digits
            frame = frame.with_columns(key).join(joined, on=self.join.on, how="left", maintain_order="left")
        if self.explode:
            self._check_names([self.explode], frame.columns, file)
            frame = self._exploded(frame, file)
        if not frame.height:
            return pl.DataFrame(schema={ROW: pl.Int64})
        frame = _unnested(frame, self.file_columns().parents, file)
        if self.where:
            frame = self._filtered(frame, self.where, file)
        frames = []
        for action in self.actions or ({},):
            part = self._filtered(frame, action["where"], file) if action.get("where") else frame
            columns = {**self.columns, **{key: value for key, value in action.items() if key != "where"}}
            frames.append(self._selected(part, columns, file))
        return pl.concat(frames, how="diagonal_relaxed").sort(ROW, maintain_order=True)

    def _selected(self, frame: pl.DataFrame, columns: Mapping[str, str], file: str) -> pl.DataFrame:
        kinds = raw_columns(self.table)
        series = [frame[ROW]]
        for column, expression in columns.items():
            values = self._computed(frame, column, expression, file).alias(column)
            if self.list_separator and kinds.get(column) == TEXTS and values.dtype == TEXT:
                values = lists.entries(values.replace("", None), self.list_separator)
            if self._is_of_profile(column) and values.dtype == TEXT:
                values = values.str.strip_prefix(LIST_MARK).str.replace_all(LIST_MARK, ", ", literal=True)
            series.append(values)
        return pl.DataFrame(series)

    def _filtered(self, frame: pl.DataFrame, condition: str, file: str) -> pl.DataFrame:
        mask = self._computed(frame, "where", condition, file)
        if mask.dtype not in (pl.Boolean, pl.Null):
            raise InputError(f"{self.place} where = {condition!r}: is no condition but gives {mask.dtype}")
        return frame.filter(mask.cast(pl.Boolean).fill_null(False))

    def _computed(self, frame: pl.DataFrame, column: str, expression: str, file: str) -> pl.Series:
        parsed = self._parsed(column, expression)
        self._check_names(parsed.meta.root_names(), frame.columns, file)
        try:
            return frame.select(pl.col(ROW), parsed.alias("value"))["value"]
        except pl.exceptions.PolarsError as error:
            message = str(error).strip().split("\n")[0][:200]
            raise InputError(
                f"{self.place} {column} = {expression!r}: cannot be computed for {file} ({message}); cells of CSV and"
                " JSON are text: TRY_CAST(column AS DOUBLE) gives a number"
            ) from error

    def _exploded(self, frame: pl.DataFrame, file: str) -> pl.DataFrame:
        values = pl.col(self.explode)
        kind = frame.schema[self.explode]
        if kind == pl.Null:
            return frame.clear()
        if kind != TEXT and not isinstance(kind, pl.List):
            raise InputError(f"{self.place} explode = {self.explode!r}: is no list in {file} but {kind}")
        if kind == TEXT:
            marked = values.str.contains(LIST_MARK, literal=True)
            plain = values.str.split(self.explode_separator)
            values = pl.when(marked).then(values.str.split(LIST_MARK).list.slice(1)).otherwise(plain)
        return frame.with_columns(values).explode(self.explode, empty_as_null=False, keep_nulls=False)

    def _is_of_profile(self, column: str) -> bool:
        """Whether the column is one of a user's profile, in which lists are texts joined by commas."""
        return SCHEMAS[self.table].others and column not in raw_columns(self.table) and column != "where"

    def _parsed(self, column: str, expression: str) -> pl.Expr:
        try:
            return pl.sql_expr(expression)
        except pl.exceptions.PolarsError as error:
            message = str(error).strip().split("\n")[0][:200]
            raise InputError(
                f"{self.place} {column} = {expression!r}: is no expression of SQL ({message}); quote names with other"
                " characters than letters, digits and _ as \"name\", and texts as 'text'"
            ) from error

    def _check_names(self, names: Iterable[str], columns: list[str], file: str) -> None:
        for name in names:
            if name not in columns:
                own = [column for column in columns if column not in (ROW, ROW_NUMBER)]
                nearest = f"the nearest is {config.nearest(name, own)!r}" if own else "it has none"
                raise InputError(f"{self.place}: {file} has no column {name!r}; {nearest} of {', '.join(own[:30])}")

    def _expressions(self) -> Iterator[tuple[str, str]]:
        """(column or "where", expression) of the section and of its actions."""
        yield from self.columns.items()
        if self.where:
            yield "where", self.where
        for action in self.actions:
            yield from action.items()


def layouts() -> list[str]:
    """The names of the layouts of public logs whose mappings are in this package."""
    return sorted(path.name.removesuffix(".toml") for path in _LAYOUTS.iterdir() if path.name.endswith(".toml"))


def of_layout(name: str) -> dict[str, TableMapping]:
    """The mapping of a public log. Raises InputError for an unknown name."""
    if name not in layouts():
        raise InputError(
            f"--layout {name!r}: no such layout; the nearest is {config.nearest(name, layouts())!r} of"
            f" {', '.join(layouts())}"
        )
    sections = tomllib.loads((_LAYOUTS / f"{name}.toml").read_text(encoding="utf-8"))
    return parse(sections["columns"], sections["events"])


def parse(columns: Mapping[str, Any] | None, events: Mapping[str, Any] | None) -> dict[str, TableMapping]:
    """Table -> its mapping. Raises InputError for unknown tables and keys, wrong types and invalid expressions."""
    sections = dict(columns or {})
    for table in sections:
        if table not in SCHEMAS or table == "events":
            near = config.nearest(table, [name for name in SCHEMAS if name != "events"])
            raise InputError(
                f"[data.columns.{table}]: no such table; the nearest is {near!r}, and events are [data.events]"
            )
    if events is not None:
        sections["events"] = events
    mappings = {table: _table(table, section) for table, section in sections.items()}
    for mapping in mappings.values():
        mapping.file_columns()  # parses all expressions
    return mappings


def _unnested(frame: pl.DataFrame, parents: Collection[str], file: str) -> pl.DataFrame:
    """The frame with a column for each field of the structs ``parents``, of which the expressions read fields.

    Raises InputError if a column has the name that a field would get.
    """
    columns = frame.columns
    for column in columns:
        kind = frame.schema[column]
        if isinstance(kind, pl.Struct) and plain_name(column) in parents:
            names = {f"{column}.{field.name}": field.name for field in kind.fields}
            for name in names:
                if name in frame.columns:
                    raise InputError(
                        f"{file}: has a column {name!r} and a field of {column!r} of this name; rename one"
                    )
            fields = [pl.col(column).struct.field(field).alias(name) for name, field in names.items()]
            frame = frame.select(pl.exclude(column), *fields)
            columns += names  # a field may be a struct
    return frame


def _table(table: str, section: object) -> TableMapping:
    place = "[data.events]" if table == "events" else f"[data.columns.{table}]"
    if not isinstance(section, Mapping):
        raise InputError(f"{place}: must be a table, got {section!r}")
    settings = {f.name: str(f.type) for f in fields(TableMapping) if f.name not in ("table", "columns")}
    known = raw_columns(table)
    values: dict[str, Any] = {}
    columns: dict[str, str] = {}
    for key, value in section.items():
        if key == "actions" and table == "events":
            values[key] = tuple(_action(place, entry, known) for entry in _entries(place, value))
        elif key == "join":
            values[key] = _join(place, value)
        elif key in settings:
            values[key] = _setting(f"{place} {key}", value, settings[key])
        elif key in known or SCHEMAS[table].others:
            columns[key] = _text(f"{place} {key}", value)
        else:
            raise InputError(
                f"{place}: unknown key {key!r}; the nearest is {config.nearest(key, [*known, *settings])!r}"
            )
    unit = values.get("time_unit", "us")
    if unit not in TIME_UNITS:
        raise InputError(f"{place} time_unit = {unit!r}: must be one of {', '.join(TIME_UNITS)}")
    return TableMapping(table=table, columns=columns, **values)


def _entries(place: str, value: object) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{place} actions: must be tables, [[data.events.actions]]")
    return value


def _action(place: str, entry: object, known: Mapping[str, pl.DataType]) -> dict[str, str]:
    if not isinstance(entry, Mapping):
        raise InputError(f"{place} actions: must be tables, got {entry!r}")
    for key in entry:
        if key not in known and key != "where":
            raise InputError(
                f"{place} actions: unknown key {key!r}; the nearest is {config.nearest(key, [*known, 'where'])!r}"
            )
    return {key: _text(f"{place} actions {key}", value) for key, value in entry.items()}


def _join(place: str, value: object) -> Join:
    if not isinstance(value, Mapping) or not {"file", "on"} <= set(value) <= {"file", "on", "header"}:
        raise InputError(f"{place} join: must be a table with file and on (and header), got {value!r}")
    header = _setting(f"{place} join header", value.get("header", []), "tuple[str, ...]")
    return Join(
        file=_text(f"{place} join file", value["file"]), on=_text(f"{place} join on", value["on"]), header=header
    )


def _setting(place: str, value: object, kind: str) -> Any:
    if kind == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    if (kind == "str" and isinstance(value, str)) or (kind == "bool" and isinstance(value, bool)):
        return value
    raise InputError(f"{place}: must be {_TYPES[kind]}, got {value!r}")


def _text(place: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f'{place}: must be an expression in quotes, such as "column" or "\'text\'", got {value!r}')
    return value
