# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import os
import socket
import sys

import pytest

from trl_sbr.anchors.untrusted_files import parse_csv, parse_json, read_bounded, read_text, split_lines


class TestReadBounded:
    def test_content(self, tmp_path):
        (tmp_path / "file").write_bytes(b"12345")
        assert read_bounded(tmp_path / "file", 5) == b"12345"
        with pytest.raises(ValueError, match="file has at least 5 bytes, expected at most 4"):
            read_bounded(tmp_path / "file", 4)

    def test_link_to_a_file_is_followed(self, tmp_path):
        """As the Hub's cache has them."""
        (tmp_path / "blob").write_bytes(b"1")
        (tmp_path / "link").symlink_to("blob")
        assert read_bounded(tmp_path / "link", 1) == b"1"

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="gone"):
            read_bounded(tmp_path / "gone", 1)

    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")
    @pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "folder", "link in a loop"])
    def test_what_is_no_regular_file(self, tmp_path, kind):
        path = tmp_path / "file"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device":
            path = "/dev/zero"
        else:
            path.symlink_to("/dev/zero" if kind == "link to a device" else "file")
        with pytest.raises(OSError if kind in ("folder", "link in a loop") else ValueError, match="file|/dev/zero"):
            read_bounded(path, 10)

    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")
    def test_socket(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
            with pytest.raises(OSError, match="socket"):
                read_bounded("socket", 10)

    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
    def test_file_without_a_size(self):
        assert b"VmRSS" in read_bounded("/proc/self/status", 2**16)
        with pytest.raises(ValueError, match="expected at most 10"):
            read_bounded("/proc/self/status", 10)

    def test_large_file_is_not_read(self, tmp_path):
        with open(tmp_path / "sparse", "wb") as file:
            file.truncate(2**40)
        with pytest.raises(ValueError, match=f"{2**40} bytes"):
            read_bounded(tmp_path / "sparse", 2**20)


class TestReadText:
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    def test_utf8(self, tmp_path, mark):
        (tmp_path / "file").write_bytes(mark + "é\U0001f600".encode())
        assert read_text(tmp_path / "file") == "é\U0001f600"

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("How?\n".encode("utf-16"), "line 1: it is UTF-16, expected UTF-8"),
            ("How?\n".encode("utf-16-be"), "line 1: found a null character: it is UTF-16"),
            (b"How?\nWhy\0?", "line 2: found a null character"),
            ("How?\n“Why?”".encode("cp1252"), "line 2: expected UTF-8, found the byte 0x93"),
            ("How?\n\n\nWhy, Zoë?".encode("latin-1"), "line 4: expected UTF-8, found the byte 0xeb"),
            (b"How?\r\n\xed\xa0\x80", "line 2: expected UTF-8, found the byte 0xed"),
        ],
    )
    def test_other_encodings_name_file_line_and_way_out(self, tmp_path, data, message):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(ValueError, match=f"file, {message}.*Save it as UTF-8"):
            read_text(tmp_path / "file")


class TestSplitLines:
    def test_line_feeds_and_carriage_returns_alone_end_a_line(self, tmp_path):
        inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
        (tmp_path / "file").write_bytes(f"{inside}\n\n \r\nb\rc".encode())
        assert list(split_lines(read_text(tmp_path / "file"))) == [(1, inside), (4, "b"), (5, "c")]

    def test_byte_order_mark_of_a_file_that_was_appended(self):
        assert list(split_lines("a\n\ufeffb\n\ufeff\n")) == [(1, "a"), (2, "b")]


class TestParseJson:
    @pytest.mark.parametrize(
        "value", [{"a": [1, 2.5, None, True, "é\u2028"]}, [], "text", 0, {"a": {"b": {"a": 1}}}, "\U0001f600"]
    )
    def test_values(self, value):
        assert parse_json(json.dumps(value), "f") == parse_json(json.dumps(value, ensure_ascii=False), "f") == value

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "f: not valid JSON"),
            ("{", "f: not valid JSON"),
            ('{"a": 1, "b": 2, "a": 1}', "f: not valid JSON .the key 'a' is given twice"),
            ('[{"b": {"c": 1, "c": 2}}]', "the key 'c' is given twice"),
            ("[NaN]", "NaN is not a finite number"),
            ("-Infinity", "-Infinity is not a finite number"),
            ("[1e999]", "1e999 is not a finite number"),
            ("1" * 5000, "f: not valid JSON .Exceeds the limit"),
            (r'"\ud83d"', "f: found half a character"),
            (r'{"\udc00": 1}', "f: found half a character"),
            ("[" * 66 + "]" * 66, "f: nested more than 64 levels deep"),
            ('{"a":' * 600 + "1" + "}" * 600, "f: nested more than 64 levels deep"),
            ("[" * 10**6, "f: nested more than 64 levels deep"),
        ],
    )
    def test_what_has_two_readings_or_none(self, text, message):
        with pytest.raises(ValueError, match=message):
            parse_json(text, "f")

    def test_depth_that_is_let_pass(self):
        assert parse_json("[" * 64 + "]" * 64, "f")


class TestParseCsv:
    def test_quoted_cells(self):
        rows = list(parse_csv('prompt,x\r\n"a, ""b""\nc\u2028d",1\r\n', "f"))
        assert rows == [(3, {"prompt": 'a, "b"\nc\u2028d', "x": "1"})]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("prompt\nHow, why?\n", "f, line 2: expected 1 cells"),
            ("a,b\n1,2\n3\n", "f, line 3: expected 2 cells"),
            ('a\n"open\n', "f, line 2: not valid CSV"),
            ("a\n" + "x" * 200_000, "f, line 2: not valid CSV .field larger"),
        ],
    )
    def test_broken(self, text, message):
        with pytest.raises(ValueError, match=message):
            list(parse_csv(text, "f"))
