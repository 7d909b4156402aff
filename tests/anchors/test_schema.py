# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from trl_sbr.anchors.schema import Within, check_shape, read_json_as


class Inner(TypedDict):
    percent: Annotated[float, Within(0, 100)]


class Outer(TypedDict):
    name: str
    kind: NotRequired[Literal["a", "b"]]
    inner: NotRequired[dict[str, Inner | None]]
    pair: NotRequired[tuple[int, int]]
    flags: NotRequired[list[bool]]
    rest: NotRequired[Any]


@pytest.mark.parametrize(
    "value",
    [
        {"name": ""},
        {"name": "x", "unknown": object},
        {"name": "x", "kind": "b", "inner": {"y": {"percent": 100}, "z": None}, "pair": [1, 2], "flags": [True]},
        {"name": "x", "rest": [{"a": None}]},
    ],
)
def test_values_of_the_shape(value):
    check_shape(value, Outer, "f")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "f: expected an object, found None"),
        ([], "f: expected an object"),
        ({}, "f: expected an object with `name`, without `name`"),
        ({"name": 1}, "f: `name`: expected a string, found 1"),
        ({"name": "", "kind": "c"}, "f: `kind`: expected one of 'a', 'b', found 'c'"),
        ({"name": "", "kind": ["a"]}, "f: `kind`: expected one of"),
        (
            {"name": "", "inner": {"y": {"percent": 100.5}}},
            "f: `inner`: 'y': `percent`: expected a number from 0 to 100",
        ),
        ({"name": "", "inner": {"y": {"percent": True}}}, "`percent`: expected a number, found True"),
        ({"name": "", "inner": {"y": {"percent": float("nan")}}}, "`percent`: expected a number, found nan"),
        ({"name": "", "inner": {"y": 3}}, "f: `inner`: 'y': expected"),
        ({"name": "", "pair": [1]}, "f: `pair`: expected a list of 2"),
        ({"name": "", "pair": [1, False]}, "f: `pair`: \\[1\\]: expected an integer, found False"),
        ({"name": "", "flags": [1]}, "f: `flags`: \\[0\\]: expected true or false"),
    ],
)
def test_values_of_another_shape(value, message):
    with pytest.raises(ValueError, match=message):
        check_shape(value, Outer, "f")


def test_error_is_short_whatever_was_found():
    with pytest.raises(ValueError) as raised:
        check_shape({"name": "", "inner": {"k" * 10**6: {"percent": "v" * 10**6}}}, Outer, "f")
    assert len(str(raised.value)) < 1000


def test_file(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"name": "x"}), encoding="utf-8-sig")
    assert read_json_as(Outer, path, "Write it anew.") == {"name": "x"}
    path.write_text("{}")
    with pytest.raises(ValueError, match="f.json: expected an object with `name`.*Write it anew."):
        read_json_as(Outer, path, "Write it anew.")
    with pytest.raises(ValueError, match="expected at most 1. .*Write it anew."):
        read_json_as(Outer, path, "Write it anew.", max_bytes=1)
