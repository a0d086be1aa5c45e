"""Rows of a JSONL, JSON, CSV or Parquet file, each with its number, whatever they hold. Free of torch.

What is wrong with one row is that row's `RowRefused`; what is wrong with the file is a `CaptionsError`.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlora_engine.errors import CaptionsError, RowRefused
from schemas.datasets import FileFormat

LARGEST_FILE = 512 * 2**20
MOST_ROWS = 1_000_000
LONGEST_ROW = 2_000_000
"""Characters of one line, or of one cell of a CSV file."""
NESTED_COLUMNS = ("messages", "conversations", "history", "videos")
"""Columns of a CSV file whose cells are JSON."""
PARQUET_BATCH = 256
MOST_VALUES = 64 * MOST_ROWS
"""Cells of a Parquet file, those of lists counted one by one."""
_MARKS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))

Row = tuple[int, Any]
"""The row's number, and what it holds: an object, anything else, or the `RowRefused` of an unreadable one."""


class Repeated(dict[str, Any]):
    """An object that names a field twice, so that nobody knows which one is meant."""

    field: str


def file_format(file: Path) -> FileFormat:
    """The format that a captions file's name promises."""
    formats: dict[str, FileFormat] = {
        ".jsonl": "jsonl",
        ".json": "json",
        ".csv": "csv",
        ".parquet": "parquet",
    }
    return formats[file.suffix]


def read_rows(file: Path) -> list[Row]:
    """
    Raises:
        CaptionsError: the file as a whole cannot be read.
    """
    size = file.stat().st_size
    if size > LARGEST_FILE:
        raise CaptionsError(
            f"{file.name} has {size >> 20} MiB; at most {LARGEST_FILE >> 20}, split it into several datasets",
            code="captions_too_large",
        )
    readers = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}
    rows = []
    for row in readers[file_format(file)](file):
        rows.append(row)
        if len(rows) > MOST_ROWS:
            raise CaptionsError(
                f"{file.name} has more than {MOST_ROWS} rows; split it into several datasets",
                code="captions_too_large",
            )
    return rows


def parsed(text: str, what: str = "the row") -> Any:
    """JSON.

    Raises:
        RowRefused: it is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise RowRefused(f"{what} is nested too deeply; flatten it") from None
    except ValueError as error:  # more than JSONDecodeError: numbers of thousands of digits, for one
        raise RowRefused(f"{what} does not parse ({error}); correct it") from error


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Repeated(found)
        names = [name for name, _ in pairs]
        repeated.field = next(name for name in names if names.count(name) > 1)
        return repeated
    return found


def _text(file: Path) -> str:
    content = file.read_bytes()
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            raise CaptionsError(f"{file.name} is {encoding}, not UTF-8; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CaptionsError(
            f"{file.name} is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8"
        ) from error


def _jsonl(file: Path) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        if len(line) > LONGEST_ROW:
            yield (
                number,
                RowRefused(f"the line has {len(line)} characters; at most {LONGEST_ROW}, shorten it"),
            )
            continue
        try:
            yield number, parsed(line)
        except RowRefused as refused:
            yield number, refused


def _json(file: Path) -> Iterator[Row]:
    text = _text(file)
    if not text.strip():
        return
    try:
        rows = parsed(text, "the file")
    except RowRefused as refused:
        hint = "; name it captions.jsonl if there is an object on every line" * ("Extra data" in str(refused))
        raise CaptionsError(f"{file.name}: {refused.message}{hint}") from refused
    if not isinstance(rows, list):
        raise CaptionsError(f"{file.name} holds {_kind(rows)}, not a list of rows; write [{{...}}, {{...}}]")
    yield from enumerate(rows, start=1)


def _csv(file: Path) -> Iterator[Row]:
    with _wide_cells():
        reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
        number = 0
        try:
            header = next(reader, [])
            _check_header(file, header)
            records = []
            for cells in reader:
                if cells:
                    number += 1
                    records.append(cells)
        except csv.Error as error:
            place = f"row {number + 1} of {file.name} does not parse" if number else f"{file.name} is not CSV"
            raise CaptionsError(f"{place} ({error}); quote fields with double quotes") from error
    for number, cells in enumerate(records, start=1):
        try:
            yield number, _record(header, cells)
        except RowRefused as refused:
            yield number, refused


@contextmanager
def _wide_cells() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST_ROW)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_header(file: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CaptionsError(
            f"the header of {file.name} names {', '.join(map(repr, twice))[:200]} twice; rename one",
            code="bad_captions_header",
        )


def _record(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) > len(header):
        raise RowRefused(
            f"the row has {len(cells)} fields, but the header {len(header)}; quote text that holds commas"
        )
    record: dict[str, Any] = dict(zip(header, cells, strict=False))
    for name in NESTED_COLUMNS:
        if record.get(name, "").strip():
            record[name] = parsed(record[name], name)
    return record


def _parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow  # heavy, and the CLI reads captions without it
        from pyarrow import parquet, types
    except ImportError:
        raise CaptionsError(
            f"{file.name} needs pyarrow; install kinora[media], or save the rows as captions.jsonl",
            code="parquet_unavailable",
        ) from None
    try:
        with parquet.ParquetFile(file) as opened:
            metadata = opened.metadata
            _check_promise(file, metadata)
            # Binary columns are clips or pictures as often as not, and none of ours.
            wanted = [
                column.name
                for column in opened.schema_arrow
                if not (types.is_binary(column.type) or types.is_large_binary(column.type))
            ]
            leaves = [opened.schema.column(index) for index in range(len(opened.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(file, metadata=metadata, read_dictionary=texts) as opened:
            number, left = 0, LARGEST_FILE
            for batch in opened.iter_batches(PARQUET_BATCH, columns=wanted):
                left -= sum(_unpacked_bytes(column) for column in batch.columns)
                if left < 0:
                    raise _too_large(file, f"unpacks to more than {LARGEST_FILE >> 20} MiB")
                for content in _values(batch):
                    number += 1
                    yield number, content
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise CaptionsError(
            f"{file.name} cannot be read as Parquet ({str(error)[:200]}); write it again"
        ) from error


def _check_promise(file: Path, metadata: Any) -> None:
    """Unpacked size, rows and values as the file declares them, before any of it is read."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if unpacked > LARGEST_FILE or metadata.num_rows > MOST_ROWS or values > MOST_VALUES:
        raise _too_large(
            file, f"has {metadata.num_rows} rows and {values} values of {unpacked >> 20} MiB unpacked"
        )


def _too_large(file: Path, found: str) -> CaptionsError:
    return CaptionsError(
        f"{file.name} {found}; at most {MOST_ROWS} rows, {MOST_VALUES} values and {LARGEST_FILE >> 20} MiB,"
        " split it into several datasets",
        code="captions_too_large",
    )


def _unpacked_bytes(values: Any) -> int:
    """What an Arrow array's values take once each of them stands for itself.

    A Parquet file keeps equal texts once, so that a small one, whose every promise is true, may stand for
    terabytes: texts are read as a dictionary and its indices, and counted before they are spelled out.
    """
    from pyarrow import compute, types

    kind = values.type
    if types.is_dictionary(kind):
        lengths = compute.binary_length(values.dictionary).take(values.indices)
        return int(compute.sum(lengths).as_py() or 0)
    if types.is_struct(kind):
        return sum(map(_unpacked_bytes, values.flatten()))
    if types.is_nested(kind) and not types.is_union(kind):
        return _unpacked_bytes(values.flatten())
    return int(values.nbytes)


def _values(batch: Any) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield RowRefused(f"a text is not UTF-8 (byte {error.start}); write it again")


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, Mapping) else type(value).__name__
