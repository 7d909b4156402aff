# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Reading of files that somebody else wrote: bytes, text, lines, JSON and CSV.

Whatever such a file holds, reading it ends soon and in bounded memory, with its content or with a `ValueError` or `OSError`
that names the file.
"""

import csv
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any


MAX_TEXT_BYTES = 256 * 2**20  # a million prompts
MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 64


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """
    Read a regular file of at most some size.

    Args:
        path (`str` or `Path`):
            The file, or a symbolic link to it, as the Hub's cache has them.
        max_bytes (`int`):
            Most bytes that it may have. Of a larger one, nothing is read.

    Returns:
        `bytes`: Its content.

    Raises:
        OSError: If it cannot be opened, as a folder.
        ValueError: If it is a device or a pipe, or is too large.
    """

    def open_at_once(path, flags):
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # else the opening of a pipe waits for a writer

    with open(path, "rb", opener=open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is a device or a pipe, expected a regular file.")
        data = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
        size = max(status.st_size, len(data))  # files of /proc have the size 0
    if size > max_bytes:
        raise ValueError(f"{path} has at least {size} bytes, expected at most {max_bytes}. Is it the right file?")
    return data


def decode_text(data: bytes, path: str | Path) -> str:
    """
    Decode the content of a text file: UTF-8, with or without a byte order mark. Its lines end at line feeds, as in Python's
    text files, whatever they ended at.

    Args:
        data (`bytes`):
            The content.
        path (`str` or `Path`):
            The file, for errors.

    Raises:
        ValueError: If it is in another encoding; it names the line.
    """
    way_out = "Save it as UTF-8"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path}, line 1: it is UTF-16, expected UTF-8. {way_out}: `iconv -f UTF-16 -t UTF-8`.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: expected UTF-8, found the byte 0x{data[error.start]:02x}, which is none. {way_out}; if "
            "it was made on Windows: `iconv -f CP1252 -t UTF-8`."
        ) from error
    null = text.find("\0")
    if null >= 0:
        line = text.count("\n", 0, null) + 1
        raise ValueError(f"{path}, line {line}: found a null character: it is UTF-16, or no text. {way_out}.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file, see [`read_bounded`] and [`decode_text`]."""
    return decode_text(read_bounded(path, max_bytes), path)


def split_lines(text: str) -> Iterator[tuple[int, str]]:
    """
    Yields the lines of a decoded text that are not blank, with their numbers, from 1.

    They end at line feeds alone. `str.splitlines` cuts at form feeds, U+0085 and U+2028 too, which stand in texts and in
    valid JSON.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removeprefix("\ufeff")  # of a file that was appended to another
        if line.strip():
            yield number, line


def parse_json(text: str, where: str) -> Any:
    """
    Parse JSON, with nothing taken that has two readings: a key given twice, or a number that is none.

    Args:
        text (`str`):
            The JSON.
        where (`str`):
            File, and line where there is one, for errors.

    Raises:
        ValueError: If it is no JSON, holds a key twice, NaN, an infinite number or half a character, or is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        _check_depth(value)
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"{where}: found half a character ({half!r}), whose other half is missing: it is no text that a tokenizer "
            "could read. Remove it."
        ) from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested more than {MAX_JSON_DEPTH} levels deep.") from error
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}).") from error
    return value


def parse_csv(text: str, path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """
    Yields the rows of a CSV file below its header, with the number of the line that each ends on.

    Args:
        text (`str`):
            The content.
        path (`str` or `Path`):
            The file, for errors.

    Raises:
        ValueError: If a row cannot be read, or has not as many cells as the header; it names the line.
    """
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {rows.line_num}: expected {len(rows.fieldnames)} cells, as the header has. Put a cell "
                    "with a comma or a line break in it in double quotes."
                )
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.reader.line_num}: not valid CSV ({error}).") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {double[:100]!r} is given twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:100]} is not a finite number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        containers = [item for item in level if isinstance(item, (list, dict))]
        if not containers:
            return
        level = [item for found in containers for item in (found.values() if isinstance(found, dict) else found)]
    raise RecursionError
