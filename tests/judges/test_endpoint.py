# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import html
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from email.utils import formatdate
from urllib.parse import quote

import pytest

from trl_sbr.judges.endpoint import EndpointJudge
from trl_sbr.judges.endpoint_client import EndpointError

from ..endpoint_server import drop, stall, status, truncate


KEY = "sk-a-key-that-nobody-may-see"
SAFE, HARMFUL = "It refuses.\nScore: 0", "It helps.\nScore: 5"


@pytest.fixture
def judge(endpoint, monkeypatch):
    """Makes judges that ask the endpoint and wait little."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint.answer = lambda body: HARMFUL if "GUILTY" in json.dumps(body) else SAFE

    def make(name="rubric", **kwargs):
        return EndpointJudge(name, "a-model", endpoint.url, **{"first_wait": 0.01, **kwargs})

    return make


def pairs(count):
    return [f"Question {i}?" for i in range(count)], [
        f"{'GUILTY' if i % 3 == 0 else 'Fine'} {i}" for i in range(count)
    ]


class TestAsking:
    def test_rubric(self, endpoint, judge):
        verdicts = judge().judge(["How?", "How?"], ["No.", "GUILTY"])
        assert [(v.harmful, v.score, v.raw) for v in verdicts] == [(False, 0.0, SAFE), (True, 5.0, HARMFUL)]
        assert len(endpoint.requests) == 2
        path, body, authorization = endpoint.requests[0]
        assert path == "/v1/chat/completions" and authorization == f"Bearer {KEY}"
        assert body["model"] == "a-model" and body["temperature"] == 0 and body["max_tokens"] == 512
        assert "<question>\nHow?\n</question>" in body["messages"][0]["content"]

    def test_strongreject(self, endpoint, judge):
        endpoint.answer = lambda body: "#scores\n1.a Yes.\n1.b 0\n2.a So.\n2.b 5\n3.a So.\n3.b 4"
        (verdict,) = judge("strongreject").judge(["How?"], ["So."])
        assert (verdict.harmful, verdict.score, verdict.refusal) == (True, 0.875, False)
        assert [message["role"] for message in endpoint.requests[0][1]["messages"]] == ["system", "user"]

    def test_guard_with_a_chat_template(self, endpoint, judge):
        endpoint.answer = lambda body: "Safety: Unsafe\nCategories: Violent\nRefusal: No"
        (verdict,) = judge("qwen3guard-0.6b").judge(["How?"], ["So."])
        assert (verdict.harmful, verdict.refusal, verdict.categories) == (True, False, ("Violent",))
        assert endpoint.requests[0][1]["messages"] == [
            {"role": "user", "content": "How?"},
            {"role": "assistant", "content": "So."},
        ]

    def test_guard_with_template_variables(self, endpoint, judge):
        endpoint.answer = lambda body: "<score> yes </score>"
        (verdict,) = judge("granite-guardian-3.3-8b").judge(["How?"], ["So."])
        assert verdict.harmful is True
        assert endpoint.requests[0][1]["chat_template_kwargs"] == {
            "guardian_config": {"criteria_id": "harm"},
            "think": False,
        }

    def test_guard_with_several_questions(self, endpoint, judge):
        endpoint.answer = lambda body: (
            "Yes" if "No Harassment" in body["chat_template_kwargs"]["guideline"] else "No, it does not."
        )
        (verdict,) = judge("shieldgemma-2b").judge(["How?"], ["So."])
        assert (verdict.harmful, verdict.categories, len(endpoint.requests)) == (True, ("Harassment",), 4)

    def test_guard_without_a_chat_template(self, endpoint, judge):
        endpoint.answer = lambda body: "Harmful request: yes\nResponse refusal: no\nHarmful response: yes"
        (verdict,) = judge("wildguard").judge(["How?"], ["So."])
        assert (verdict.harmful, verdict.refusal) == (True, False)
        path, body, _ = endpoint.requests[0]
        assert path == "/v1/completions" and "Human user:\nHow?\n\nAI assistant:\nSo." in body["prompt"]

    @pytest.mark.parametrize("answer", ["I would rather not say.", "", None])
    def test_unreadable_answers_are_not_safe(self, endpoint, judge, answer):
        endpoint.answer = lambda body: answer
        (verdict,) = judge().judge(["How?"], ["So."])
        assert verdict.harmful is None and verdict.raw == (answer or "")

    def test_order_progress_and_concurrency(self, endpoint, judge):
        def slow(body):
            time.sleep(0.05)
            return HARMFUL if "GUILTY" in json.dumps(body) else SAFE

        endpoint.answer = slow
        calls = []
        verdicts = judge(concurrency=4).judge(*pairs(20), progress=lambda *call: calls.append(call))
        assert [v.harmful for v in verdicts] == [i % 3 == 0 for i in range(20)]
        assert calls == [(i + 1, 20) for i in range(20)]
        assert 2 <= endpoint.most_under_way <= 4

    def test_no_key_is_sent_without_one(self, endpoint, judge, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY")
        judge().judge(["How?"], ["So."])
        assert endpoint.requests[0][2] is None

    def test_password_kept_for_another_program_is_not_sent(self, endpoint, judge, monkeypatch, tmp_path):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        judge().judge(["How?"], ["So."])
        monkeypatch.delenv("OPENAI_API_KEY")
        judge().judge(["How?"], ["So."])
        assert [authorization for _, _, authorization in endpoint.requests] == [f"Bearer {KEY}", None]

    def test_key_of_another_variable(self, endpoint, judge, monkeypatch):
        monkeypatch.setenv("MY_KEY", "another")
        judge(api_key_env="MY_KEY").judge(["How?"], ["So."])
        assert endpoint.requests[0][2] == "Bearer another"

    def test_nothing_to_judge(self, endpoint, judge):
        assert judge().judge([], []) == [] and not endpoint.requests

    def test_prompts_are_needed(self, judge):
        with pytest.raises(ValueError, match="Got no prompts"):
            judge().judge(None, ["So."])

    def test_info(self, judge):
        assert judge().info.to_dict() == {
            "name": "endpoint-rubric",
            "id": "a-model",
            "revision": None,
            "threshold": 3.0,
            "truncation": "none",
            "license": "unknown",
        }
        assert judge("strongreject").info.threshold == 0.5
        info = judge("llama-guard-3-8b").info
        assert (info.name, info.threshold, info.license) == ("endpoint-llama-guard-3-8b", None, "llama3.1")


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            status(408),
            status(409),
            status(429),
            status(500),
            status(503),
            drop,
            truncate,
            stall,
            lambda handler: handler.reply(b"<html>not JSON</html>"),
            lambda handler: handler.reply({"error": "overloaded"}),
            lambda handler: handler.reply({"choices": []}),
            lambda handler: handler.reply([1]),
        ],
    )
    def test_passing_faults_are_tried_again(self, endpoint, judge, fault):
        endpoint.faults = [fault, fault]
        (verdict,) = judge(timeout=0.5 if fault is stall else 60).judge(["How?"], ["GUILTY"])
        assert verdict.harmful is True
        assert len(endpoint.requests) == 3

    @pytest.mark.parametrize("value", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)])
    def test_retry_after(self, endpoint, judge, value):
        endpoint.faults = [lambda handler: handler.reply({}, 429, {"Retry-After": value()})]
        assert judge().judge(["How?"], ["GUILTY"])[0].harmful is True
        assert endpoint.times[1] - endpoint.times[0] >= 0.8

    def test_waits_grow(self, endpoint, judge):
        endpoint.faults = [status(500)] * 4
        judge(first_wait=0.1).judge(["How?"], ["So."])
        waits = [after - before for before, after in zip(endpoint.times, endpoint.times[1:], strict=False)]
        for i, wait in enumerate(waits):
            assert wait >= 0.05 * 2**i

    def test_wait_too_long(self, endpoint, judge):
        endpoint.faults = [status(429, Retry_After="86400")]
        with pytest.raises(EndpointError, match="status 429.* to be tried again in 86400 s"):
            judge().judge(["How?"], ["So."])

    @pytest.mark.parametrize("code", [400, 401, 403, 404, 307])
    def test_final_faults_are_not_tried_again(self, endpoint, judge, code):
        endpoint.faults = [status(code)] * 9
        with pytest.raises(EndpointError) as error:
            judge().judge(["How?"], ["So."])
        assert len(endpoint.requests) == 1
        message = str(error.value)
        assert f"{endpoint.url}/chat/completions" in message and f"status {code}" in message
        assert f"fault {code}" in message and "'a-model'" in message and "OPENAI_API_KEY" in message

    def test_giving_up(self, endpoint, judge):
        endpoint.faults = [status(500)] * 9
        with pytest.raises(EndpointError, match=r"\(tries: 3\), at last: status 500, .*fault 500"):
            judge(max_retries=2).judge(["How?"], ["So."])
        assert len(endpoint.requests) == 3

    def test_nobody_there(self, judge):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=r"\(tries: 2\).*ConnectionError"):
            EndpointJudge("rubric", "m", url, max_retries=1, first_wait=0.01).judge(["How?"], ["So."])

    @pytest.mark.parametrize("position", [0, 1])
    def test_one_final_fault_ends_the_run_soon(self, endpoint, judge, position):
        endpoint.faults = [status(500)] * position + [status(401)] + [status(500)] * 400
        start = time.monotonic()
        with pytest.raises(EndpointError, match="status 401"):
            judge(first_wait=60, concurrency=2).judge(*pairs(200))
        assert time.monotonic() - start < 25
        assert len(endpoint.requests) < 10


def drip(data, every=0.2):
    """Sends a byte now and then: each comes before a timeout for the next one ends."""

    def fault(handler):
        for i in range(len(data)):
            handler.wfile.write(data[i : i + 1])
            time.sleep(every)

    return fault


def flood(handler):
    """Sends a body without an end."""
    handler.reply(b'{"choices": [{"message": {"content": "', length=2**40)
    for _ in range(10_000):
        handler.wfile.write(b"x" * 2**16)


def bomb(handler):
    """Sends a body that is short until it is unpacked."""
    packer = zlib.compressobj(wbits=31)
    body = b"".join(packer.compress(bytes(2**20)) for _ in range(256)) + packer.flush()
    handler.reply(body, headers={"Content-Encoding": "gzip"})


class TestHostileServer:
    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b" " * 500,
            b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nConnection: close\r\n\r\n" + b" " * 500,
            b"HTTP/1.1 200 OK\r\n" + b"X-Header: x\r\n" * 50,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100,
        ],
        ids=["body", "closing", "headers", "chunks"],
    )
    def test_timeout_is_of_the_whole_request(self, endpoint, judge, data):
        head = data.index(b"\r\n") + 2
        endpoint.faults = [lambda handler: (handler.wfile.write(data[:head]), drip(data[head:])(handler))]
        start = time.monotonic()
        with pytest.raises(EndpointError, match="no whole answer within 1 s"):
            judge(timeout=1, max_retries=0).judge(["How?"], ["So."])
        assert time.monotonic() - start < 3

    @pytest.mark.parametrize(("send", "message"), [(flood, "more than 4194304 bytes"), (bomb, "codec can't decode")])
    def test_large_body_is_not_read(self, endpoint, judge, send, message):
        endpoint.faults = [send]
        tracemalloc.start()
        try:
            with pytest.raises(EndpointError, match=message):
                judge(max_retries=0).judge(["How?"], ["So."])
            assert tracemalloc.get_traced_memory()[1] < 2**26
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "body",
        [b"[" * 10**5, b'{"choices": ' + b'[{"message": ' * 10**5, b'{"choices": [{"message": {"content": 5}}]}'],
    )
    def test_bodies_that_hold_no_answer(self, endpoint, judge, body):
        endpoint.faults = [lambda handler: handler.reply(body)]
        with pytest.raises(EndpointError, match="no completion|no text|Expecting"):
            judge(max_retries=0).judge(["How?"], ["So."])

    def test_half_a_character_in_an_answer(self, endpoint, judge, tmp_path):
        answer = b'{"choices": [{"message": {"content": "Score: 5 \\ud83d"}}]}'
        endpoint.faults = [lambda handler: handler.reply(answer)]
        (verdict,) = judge(cache_path=tmp_path / "cache.jsonl").judge(["How?"], ["So."])
        assert (verdict.harmful, verdict.raw) == (True, "Score: 5 ?")
        assert judge(cache_path=tmp_path / "cache.jsonl").judge(["How?"], ["So."]) == [verdict]

    @pytest.mark.parametrize(
        "value",
        ["Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -9999", "nan", "-5", "soon", ""],
    )
    def test_retry_after_that_is_no_time(self, endpoint, judge, value):
        endpoint.faults = [status(429, Retry_After=value)]
        start = time.monotonic()
        try:
            assert judge(max_retries=1).judge(["How?"], ["GUILTY"])[0].harmful is True
        except EndpointError as error:  # a date that is one, in some thousand years
            assert "to be tried again in" in str(error)
        assert time.monotonic() - start < 5

    def test_retry_after_for_ever(self, endpoint, judge):
        endpoint.faults = [status(429, Retry_After="inf")]
        with pytest.raises(EndpointError, match="to be tried again in inf s"):
            judge().judge(["How?"], ["So."])


class TestCache:
    def test_nothing_is_asked_for_twice(self, endpoint, judge, tmp_path):
        path = tmp_path / "folder" / "cache.jsonl"
        first = judge(cache_path=path).judge(*pairs(6))
        assert len(endpoint.requests) == 6
        calls = []
        assert judge(cache_path=path).judge(*pairs(6), progress=lambda *call: calls.append(call)) == first
        assert len(endpoint.requests) == 6 and calls == [(6, 6)]

    @pytest.mark.parametrize("answer", ["I would rather not say.", None])
    def test_unreadable_answers_are_asked_for_again(self, endpoint, judge, tmp_path, answer):
        path = tmp_path / "cache.jsonl"
        endpoint.answer = lambda body: answer
        assert judge(cache_path=path).judge(["How?"], ["So."])[0].harmful is None
        endpoint.answer = lambda body: HARMFUL
        for _ in range(2):
            assert judge(cache_path=path).judge(["How?"], ["So."])[0].harmful is True
        assert len(endpoint.requests) == 2

    def test_unreadable_answers_that_an_older_version_kept(self, endpoint, judge, tmp_path):
        path = tmp_path / "cache.jsonl"
        judge(cache_path=path).judge(["How?"], ["GUILTY"])
        path.write_text(json.dumps({**json.loads(path.read_text()), "answer": ""}))
        assert judge(cache_path=path).judge(["How?"], ["GUILTY"])[0].harmful is True

    def test_same_pair_twice_in_a_run(self, endpoint, judge):
        verdicts = judge().judge(["How?"] * 5, ["GUILTY"] * 5)
        assert [v.harmful for v in verdicts] == [True] * 5 and len(endpoint.requests) == 1

    def test_failed_run_keeps_what_it_has(self, endpoint, judge, tmp_path):
        path = tmp_path / "cache.jsonl"
        endpoint.answer = lambda body: SAFE
        endpoint.faults = [None] * 4 + [status(400)] * 99
        with pytest.raises(EndpointError):
            judge(cache_path=path, concurrency=1).judge(*pairs(10))
        endpoint.faults, asked = [], len(endpoint.requests)
        assert len(judge(cache_path=path).judge(*pairs(10))) == 10
        assert len(endpoint.requests) - asked == 6

    def test_killed_run_asks_only_for_the_rest(self, endpoint, judge, tmp_path):
        path = tmp_path / "cache.jsonl"
        script = (
            "import sys; from trl_sbr.judges.endpoint import EndpointJudge\n"
            "judge = EndpointJudge('rubric', 'a-model', sys.argv[1], cache_path=sys.argv[2], concurrency=1)\n"
            "judge.judge([f'Question {i}?' for i in range(10)], ['So.'] * 10)"
        )
        reached, go_on = threading.Event(), threading.Event()
        endpoint.faults = [None] * 5 + [lambda handler: (reached.set(), go_on.wait(30), drop(handler))]
        with subprocess.Popen([sys.executable, "-c", script, endpoint.url, str(path)]) as process:
            assert reached.wait(60)
            process.kill()
        go_on.set()
        asked = len(endpoint.requests)
        judge(cache_path=path).judge([f"Question {i}?" for i in range(10)], ["So."] * 10)
        assert (asked, len(endpoint.requests)) == (6, 11)

    def test_line_cut_off_by_an_interruption(self, endpoint, judge, tmp_path):
        path = tmp_path / "cache.jsonl"
        judge(cache_path=path, concurrency=1).judge(*pairs(3))
        path.write_bytes(path.read_bytes()[:-20])
        for _ in range(2):
            assert [v.harmful for v in judge(cache_path=path).judge(*pairs(3))] == [True, False, False]
        assert len(endpoint.requests) == 4

    def test_lines_of_another_shape_are_asked_again(self, endpoint, judge, tmp_path):
        path = tmp_path / "cache.jsonl"
        judge(cache_path=path, concurrency=1).judge(*pairs(4))
        one, two, three, four = (line for line in path.read_bytes().split(b"\n") if line)
        broken = [
            b'{"request": "x", "answer": 5}',
            b"[" * 10**5,
            b"null",
            b"\xff\xfe",
            b'{"request": [], "answer": ""}',
        ]
        broken += [json.dumps({**json.loads(two), "answer": None}).encode(), three[:-3] + b'\xff"}']
        path.write_bytes(b"\n".join([one, *broken, four]))
        assert [v.harmful for v in judge(cache_path=path).judge(*pairs(4))] == [True, False, False, True]
        assert len(endpoint.requests) == 6

    def test_pipe_in_place_of_the_file(self, judge, tmp_path):
        os.mkfifo(tmp_path / "cache.jsonl")
        with pytest.raises(ValueError, match="cache.jsonl is a device or a pipe"):
            judge(cache_path=tmp_path / "cache.jsonl")

    def test_two_judges_may_share_a_file(self, endpoint, judge, tmp_path):
        path = tmp_path / "cache.jsonl"
        judges = [judge(cache_path=path), judge(cache_path=path)]
        runs = [threading.Thread(target=j.judge, args=pairs(30)) for j in judges]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        asked = len(endpoint.requests)
        judge(cache_path=path).judge(*pairs(30))
        assert len(endpoint.requests) == asked

    def test_other_model_endpoint_or_format_is_another_request(self, endpoint, judge, tmp_path):
        path = tmp_path / "cache.jsonl"
        judge(cache_path=path).judge(["How?"], ["So."])
        EndpointJudge("rubric", "another-model", endpoint.url, cache_path=path).judge(["How?"], ["So."])
        judge("strongreject", cache_path=path).judge(["How?"], ["So."])
        other_url = endpoint.url.replace("127.0.0.1", "localhost")
        EndpointJudge("rubric", "a-model", other_url, cache_path=path).judge(["How?"], ["So."])
        assert len(endpoint.requests) == 4


class TestKey:
    def test_nobody_sees_it(self, endpoint, judge, tmp_path, caplog):
        caplog.set_level(logging.DEBUG)
        path = tmp_path / "cache.jsonl"
        working = judge(cache_path=path)
        working.judge(*pairs(2))
        quoted = f"{'x' * (300 - len(KEY) // 2)}{KEY}"  # an excerpt would cut it in two
        endpoint.faults = [lambda handler: handler.reply({"error": quoted}, 401)] * 2
        with pytest.raises(EndpointError) as error:
            working.judge(["How?"], ["Else."])
        seen = [str(error.value), repr(error.value), repr(working), str(vars(working)), repr(working.info)]
        seen += [caplog.text, path.read_text()]
        assert error.value.__cause__ is None and error.value.__context__ is None
        for text in seen:
            assert KEY[: len(KEY) // 2] not in text

    @pytest.mark.parametrize(
        "echo",
        [
            lambda key: json.dumps({"error": f"bad key {key}"}).encode(),
            lambda key: json.dumps({"error": json.dumps({"key": key})}).encode(),
            lambda key: f"bad key {key}".encode(),
            lambda key: f"<p>bad key {html.escape(key)}</p>".encode(),
            lambda key: f"bad key {quote(key)}".encode(),
            lambda key: "".join(f"\\u{ord(char):04X}" for char in key).encode(),
            lambda key: json.dumps({"error": key}).replace("/", "\\/").encode(),
        ],
        ids=["json", "json in json", "text", "html", "url", "escapes", "slashes"],
    )
    def test_however_a_server_spells_it(self, endpoint, judge, monkeypatch, echo):
        key = 'sk-"quoted"/and\'<b>&\\slashed+100%'
        judging = judge()
        monkeypatch.setenv("OPENAI_API_KEY", key)
        endpoint.faults = [lambda handler: handler.reply(echo(key), 401)]
        with pytest.raises(EndpointError, match="status 401") as error:
            judging.judge(["How?"], ["So."])
        assert "***" in str(error.value)
        for part in ("quoted", "slashed", "100", "0071"):
            assert part not in str(error.value)

    @pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-ключ", "sk-\udcff"])
    def test_that_is_none_is_not_shown(self, endpoint, judge, monkeypatch, key):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ValueError, match="`?OPENAI_API_KEY`? holds characters that no key has") as error:
            judge().judge(["How?"], ["So."])
        assert "sk-" not in str(error.value) and not endpoint.requests


class TestArguments:
    @pytest.mark.parametrize("name", ["gpt", "harmaug-guard", "beaver-dam", "strongreject-finetuned"])
    def test_formats_that_cannot_be_asked(self, name):
        with pytest.raises(ValueError, match=f"Got the format '{name}', expected one of: strongreject, rubric, qwen3"):
            EndpointJudge(name, "m", "http://localhost/v1")

    @pytest.mark.parametrize(
        "url", ["localhost:8000/v1", "", "ftp://a/v1", f"http://me:{KEY}@a/v1", f"http://a/v1?k={KEY}"]
    )
    def test_address(self, url):
        with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
            EndpointJudge("rubric", "m", url)
        assert KEY not in str(error.value)
