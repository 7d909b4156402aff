# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import os

import pytest

from trl_sbr.anchors.generation import BatchSize, generate_answers
from trl_sbr.evaluation.responses import (
    RESPONSES_NAME,
    SETTINGS_NAME,
    ResponseFile,
    Series,
    ask,
    encode_alpaca,
    encode_chat,
)
from trl_sbr.evaluation.tasks import Instruction

from ..tiny import build_tokenizer


SETTINGS = {"models": {"a": {"sha256": "0"}}, "decoding": {"strategy": "greedy"}, "series": {"safety/s": {"n": 4}}}
PROMPTS = ["A short one?", "Now one that is quite a bit longer than the others?", "Third?", "And the fourth one?"]
ROW = {"model": "a", "kind": "safety", "set": "s", "index": 0, "prompt": "How?", "response": "No."}


def decode(tokenizer, encoded):
    return tokenizer.batch_decode(encoded)


class TestEncode:
    def test_chat(self, tokenizer):
        prompts = ["Hello?", Instruction("Classify.", "a text"), [{"role": "user", "content": "Hi?"}]]
        texts = decode(tokenizer, encode_chat(tokenizer, Series("safety", "s", prompts, 4)))
        assert texts == [
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            for text in ("Hello?", "Classify.\nInput: a text", "Hi?")
        ]

    def test_system_prompt_takes_the_place_of_another(self, tokenizer):
        prompts = ["Hello?", [{"role": "system", "content": "Be good."}, {"role": "user", "content": "Hi?"}]]
        texts = decode(tokenizer, encode_chat(tokenizer, Series("safety", "s", prompts, 4, system_prompt="Be bad.")))
        assert all(text.startswith("<|im_start|>system\nBe bad.<|im_end|>\n<|im_start|>user\nH") for text in texts)

    def test_alpaca(self, tokenizer):
        prompts = ["Hello?", Instruction("Classify.", "a text")]
        texts = decode(tokenizer, encode_alpaca(tokenizer, Series("safety", "s", prompts, 4)))
        assert texts == [
            "<bos>Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nHello?\n\n### Response:\n",
            "<bos>Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\nClassify.\n\n### Input:\n"
            "a text\n\n### Response:\n",
        ]

    def test_alpaca_has_one_message_and_no_system_prompt(self, tokenizer):
        messages = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "Hi?"}]
        with pytest.raises(ValueError, match="takes one message, found 2"):
            encode_alpaca(tokenizer, Series("safety", "s", [messages], 4))
        with pytest.raises(ValueError, match="no system prompt"):
            encode_alpaca(tokenizer, Series("safety", "s", ["Hi?"], 4, system_prompt="Be bad."))


class TestAsk:
    def ask(self, model, tokenizer, folder, series, batch_size=2):
        responses = ResponseFile(folder, SETTINGS)
        seen = []
        answers = ask(
            model, tokenizer, "a", series, "chat", BatchSize(batch_size), responses, lambda *call: seen.append(call)
        )
        return answers, seen

    def test_answers_are_those_of_generate_answers_and_on_disk(self, model, tokenizer, tmp_path):
        answers, seen = self.ask(model, tokenizer, tmp_path / "run", Series("safety", "s", PROMPTS, 8))
        assert answers == generate_answers(model, tokenizer, PROMPTS, 8)
        assert seen == [(0, 4), (2, 4), (4, 4)]
        rows = [json.loads(line) for line in (tmp_path / "run" / RESPONSES_NAME).read_text().splitlines()]
        assert {row["index"]: row["response"] for row in rows} == dict(enumerate(answers))
        assert all(row["prompt"] == PROMPTS[row["index"]] for row in rows)

    @pytest.mark.parametrize("prefill", ["Sure, ", ("Sure, ", "Okay. ", "", "Well: ")], ids=["all", "each"])
    def test_prefill_begins_the_answer(self, model, tokenizer, tmp_path, prefill):
        series = Series("safety", "s", PROMPTS, 8, prefill=prefill)
        answers, _ = self.ask(model, tokenizer, tmp_path / "run", series)
        begun = [prefill] * len(PROMPTS) if isinstance(prefill, str) else prefill
        for answer, prompt, opener in zip(answers, PROMPTS, begun, strict=True):
            text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{opener}"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            output = model.generate(ids, do_sample=False, max_new_tokens=8, pad_token_id=0)[0, ids.shape[1] :]
            assert answer == tokenizer.decode(output, skip_special_tokens=True).strip()
        rows = map(json.loads, (tmp_path / "run" / RESPONSES_NAME).read_text().splitlines())
        assert {row["index"]: row.get("prefill", "") for row in rows} == dict(enumerate(begun))

    @pytest.mark.parametrize("cut", [0, 5])
    def test_goes_on_where_it_stopped(self, model, tokenizer, tmp_path, cut):
        """Also where the last line was cut short."""
        series = Series("safety", "s", PROMPTS, 8)
        answers, _ = self.ask(model, tokenizer, tmp_path / "run", series)
        file = tmp_path / "run" / RESPONSES_NAME
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[:2]) + lines[2][:cut])
        again, seen = self.ask(model, tokenizer, tmp_path / "run", series)
        assert again == answers
        assert seen == [(2, 4), (4, 4)]
        assert len(file.read_text().splitlines()) == 4

    def test_nothing_is_asked_twice(self, model, tokenizer, tmp_path):
        series = Series("safety", "s", PROMPTS, 8)
        answers, _ = self.ask(model, tokenizer, tmp_path / "run", series)
        again, seen = self.ask(None, tokenizer, tmp_path / "run", series)
        assert again == answers and seen == [(4, 4)]


class TestResponseFile:
    def test_other_settings_are_refused(self, tmp_path):
        ResponseFile(tmp_path, SETTINGS).append([ROW])
        with pytest.raises(FileExistsError, match="its `models.a.sha256` is '0', expected '1'. Repeat that run's"):
            ResponseFile(tmp_path, {**SETTINGS, "models": {"a": {"sha256": "1"}}})
        with pytest.raises(FileExistsError, match="its `models.b` is not there, expected"):
            ResponseFile(tmp_path, {**SETTINGS, "models": {**SETTINGS["models"], "b": {"sha256": "1"}}})

    def test_setting_without_a_value_is_another_than_none(self, tmp_path):
        settings = {**SETTINGS, "decoding": {"strategy": "greedy", "chat_template": None}}
        ResponseFile(tmp_path, settings).append([ROW])
        with pytest.raises(FileExistsError, match="its `decoding.chat_template` is None, expected not there"):
            ResponseFile(tmp_path, SETTINGS)

    def test_run_that_came_to_no_answer_makes_room(self, tmp_path):
        ResponseFile(tmp_path, {**SETTINGS, "decoding": {"strategy": "another"}})
        ResponseFile(tmp_path, SETTINGS).append([ROW])
        assert ResponseFile(tmp_path, SETTINGS).of("a", "safety", "s") == {0: "No."}
        with pytest.raises(FileExistsError, match="its `decoding.strategy` is 'greedy', expected 'another'"):
            ResponseFile(tmp_path, {**SETTINGS, "decoding": {"strategy": "another"}})

    def test_other_folders_are_left_as_they_are(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="holds no run of `trl-sbr evaluate`.*nothing was overwritten"):
            ResponseFile(tmp_path, SETTINGS)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_other_files_are_left_as_they_are(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="expected a new or empty folder"):
            ResponseFile(tmp_path / "file", SETTINGS)

    def test_two_models(self, model, tmp_path):
        settings = {**SETTINGS, "models": {"a": {}, "b": {}}}
        tokenizer, responses = build_tokenizer(), ResponseFile(tmp_path, settings)
        series = Series("safety", "s", PROMPTS[:2], 2)
        for name in ("a", "b"):
            ask(model, tokenizer, name, series, "chat", BatchSize(2), responses, lambda *_: None)
        again = ResponseFile(tmp_path, settings)
        assert again.of("a", "safety", "s") == again.of("b", "safety", "s") == responses.of("a", "safety", "s")
        assert again.of("a", "over_refusal", "s") == {}


class TestDamagedRun:
    """What an interrupted run left, and somebody or something changed."""

    def resume(self, folder, *rows):
        ResponseFile(folder, SETTINGS)
        (folder / RESPONSES_NAME).write_text(
            "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
        )
        return ResponseFile(folder, SETTINGS)

    def test_answers_of_the_run(self, tmp_path):
        judged = {**ROW, "index": 3, "harmful": None, "score": 0.5, "categories": ["a"], "raw": None}
        responses = self.resume(tmp_path, {**ROW, "response": "No\u2028No\x85"}, judged)
        assert responses.of("a", "safety", "s") == {0: "No\u2028No\x85", 3: "No."}

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("{", "not valid JSON"),
            ([], "expected an object"),
            ({key: ROW[key] for key in ("model", "kind", "set", "index", "prompt")}, "without `response`"),
            ({**ROW, "response": 7}, "`response`: expected a string, found 7"),
            ({**ROW, "response": None}, "`response`: expected a string, found None"),
            ({**ROW, "model": ["a"]}, "`model`: expected a string"),
            ({**ROW, "kind": "fun"}, "`kind`: expected one of 'safety', 'over_refusal', 'tasks', found 'fun'"),
            ({**ROW, "index": True}, "`index`: expected an integer, found True"),
            ({**ROW, "index": 1.0}, "`index`: expected an integer, found 1.0"),
            ({**ROW, "index": -1}, "`index`: expected a number from 0"),
            ({**ROW, "index": 4}, "prompt 4 of 'safety/s', which the run of `run.json` did not ask"),
            ({**ROW, "model": "b"}, "an answer of 'b' to prompt 0"),
            ({**ROW, "set": "t"}, "prompt 0 of 'safety/t', which"),
            ({**ROW, "harmful": "no"}, "`harmful`: expected true or false|`harmful`: expected null"),
            ({**ROW, "categories": {"a": 1}}, "`categories`: expected a list"),
            (json.dumps(ROW).replace('"s"', '"s", "set": "s"'), "'set' is given twice"),
            (ROW, "found a second answer"),
        ],
    )
    def test_rows_of_another_shape(self, tmp_path, row, message):
        with pytest.raises(
            ValueError, match=f"responses.jsonl, line 2: .*({message}).*Remove the folder, or name another"
        ):
            self.resume(tmp_path, ROW, row)
        assert len((tmp_path / RESPONSES_NAME).read_text().splitlines()) == 2  # left as it was

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "null", "{", '{"models": {}}', '{"models": [], "decoding": {}, "series": {}}', "[" * 10**5]
        + ['{"models": {}, "decoding": {}, "series": {"safety/s": {"n": "4"}}}'],
    )
    def test_settings_of_another_shape(self, tmp_path, text):
        ResponseFile(tmp_path, SETTINGS)
        (tmp_path / SETTINGS_NAME).write_text(text)
        with pytest.raises(ValueError, match="run.json: .*Remove the folder, or name another `--output_dir`"):
            ResponseFile(tmp_path, SETTINGS)

    def test_pipe_in_place_of_the_answers(self, tmp_path):
        ResponseFile(tmp_path, SETTINGS)
        os.mkfifo(tmp_path / RESPONSES_NAME)
        with pytest.raises(ValueError, match="responses.jsonl is a device or a pipe"):
            ResponseFile(tmp_path, SETTINGS)
