# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Checks of JSON against a shape that is written as Python types, so that what reads it need not hope."""

import math
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from .untrusted_files import MAX_JSON_BYTES, parse_json, read_text


_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", types.NoneType: "null"}


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included: `Annotated[float, Within(0, 100)]`."""

    low: float
    high: float


def check_shape(value: Any, shape: Any, where: str) -> None:
    """
    Check parsed JSON against a shape.

    Args:
        value (`Any`):
            The value.
        shape:
            A `TypedDict`, of which keys that it does not name are let pass; `list[...]`, `tuple[...]` of a list of that length,
            `dict[str, ...]`, `Literal[...]`, unions, `Annotated[..., Within(...)]`, `str`, `int`, `float` (any finite
            number), `bool`, `None` or `Any`.
        where (`str`):
            What the value is, for errors: the file, then where in it.

    Raises:
        ValueError: If the value has another shape; it says where, what was found and what was expected.
    """
    origin, parts = get_origin(shape), get_args(shape)
    if shape is Any:
        return
    if origin is Annotated:
        check_shape(value, parts[0], where)
        low, high = parts[1].low, parts[1].high
        _expect(low <= value <= high, value, f"a number from {low} to {high}", where)
    elif origin in (Union, types.UnionType):
        _check_union(value, parts, where)
    elif origin is Literal:
        _expect(isinstance(value, str) and value in parts, value, f"one of {', '.join(map(repr, parts))}", where)
    elif is_typeddict(shape):
        _expect(isinstance(value, dict), value, "an object", where)
        missing = shape.__required_keys__ - value.keys()
        if missing:
            raise ValueError(
                f"{where}: expected an object with {_list(shape.__required_keys__)}, without {_list(missing)}."
            )
        for key, part in get_type_hints(shape, include_extras=True).items():
            if key in value:
                check_shape(value[key], _required(part), f"{where}: `{key}`")
    elif origin is dict:
        _expect(isinstance(value, dict), value, "an object", where)
        for key, item in value.items():
            check_shape(item, parts[1], f"{where}: {key[:100]!r}")
    elif origin is list:
        _expect(isinstance(value, list), value, "a list", where)
        for i, item in enumerate(value):
            check_shape(item, parts[0], f"{where}: [{i}]")
    elif origin is tuple:
        _expect(isinstance(value, list) and len(value) == len(parts), value, f"a list of {len(parts)}", where)
        for i, (item, part) in enumerate(zip(value, parts, strict=True)):
            check_shape(item, part, f"{where}: [{i}]")
    else:
        shape = types.NoneType if shape is None else shape
        _expect(_is_a(value, shape), value, _NAMES[shape], where)


def read_json_as(shape: Any, path: str | Path, way_out: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """
    Read a JSON file of a known shape, see [`~trl_sbr.anchors.untrusted_files.read_text`] and [`check_shape`].

    Args:
        shape:
            Its shape.
        path (`str` or `Path`):
            The file.
        way_out (`str`):
            What to do if it is no such file: the last sentence of each error.
        max_bytes (`int`, *optional*, defaults to 16 MiB):
            Most bytes that it may have.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no such file.
    """
    try:
        value = parse_json(read_text(path, max_bytes), str(path))
        check_shape(value, shape, str(path))
    except ValueError as error:
        raise ValueError(f"{error} {way_out}") from error
    return value


def _check_union(value: Any, shapes: tuple, where: str) -> None:
    if isinstance(value, dict):  # the error of an object's shape says more of an object than "expected null"
        shapes = sorted(shapes, key=lambda shape: not is_typeddict(shape))
    failure = None
    for shape in shapes:
        try:
            return check_shape(value, shape, where)
        except ValueError as error:
            failure = failure or error
    raise failure


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _expect(valid: bool, value: Any, expected: str, where: str) -> None:
    if not valid:
        raise ValueError(f"{where}: expected {expected}, found {repr(value)[:200]}.")


def _required(part: Any) -> Any:
    """The type inside `NotRequired[...]`."""
    return get_args(part)[0] if get_origin(part) is NotRequired else part


def _list(names) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
