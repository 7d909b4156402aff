# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest

from trl_sbr.evaluation.tasks import last_number, load_task, load_task_file, make_agnews, make_gsm8k, make_sst2


class TestProtocol:
    """Prompts, labels and rules as in git-disl/Booster."""

    def test_sst2(self):
        rows = [{"sentence": "a charming journey ", "label": 1}, {"sentence": "bleak", "label": 0}] * 600
        task = make_sst2(rows, "here")
        assert len(task.prompts) == 1000 and task.max_new_tokens == 200
        assert task.prompts[0].instruction == (
            "Analyze the sentiment of the input, and respond only positive or negative"
        )
        assert task.prompts[0].input == "a charming journey "
        answers = ["positive", "Negative", " Positive\n", "POSITIVE", "positive.", "positively"] + [""] * 994
        assert task.count_correct(answers)[:6] == [True, True, True, False, False, False]

    def test_agnews(self):
        rows = [{"text": f"News {i}", "label": i % 4} for i in range(4)]
        task = make_agnews(rows, "here")
        assert task.prompts[3].input == "News 3"
        assert task.prompts[3].instruction.endswith("4 categories:\n\nWorld\nSports\nBusiness\nSci/Tech\n")
        assert task.count_correct(["World", "sports", "Sports", "sci"]) == [True, True, False, True]
        assert task.count_correct(["world", "Sports", "business", "Sci/Tech"]) == [True] * 4

    def test_gsm8k(self):
        rows = [{"question": "How many?", "answer": "2 + 1,000 = <<2+1000=1002>>1,002\n#### 1,002"}] * 5
        task = make_gsm8k(rows, "here")
        answers = [
            "It is 1002",
            "The final answer is: 1,002 of 5",
            "1002 and then 7",
            "none",
            "The final answer is: x",
        ]
        assert task.count_correct(answers) == [True, True, False, False, False]

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("5 apples, then 3.50.", 3.5),
            ("-4", -4.0),
            ("1,234,567", 1234567.0),
            ("The final answer is: 12. That is 3 more.", 12.0),
            ("7, so. The final answer is: seven", 7.0),
            ("", None),
            ("no number", None),
        ],
    )
    def test_last_number(self, text, number):
        assert last_number(text) == number

    def test_long_numbers_are_told_apart(self):
        assert last_number("1" * 400) == last_number("1" * 400 + ".0") != last_number("1" * 399 + "2")


class TestLoadTask:
    def test_unknown(self):
        with pytest.raises(ValueError, match="Did you mean `sst2`.*`agnews`, `alpaca_eval`, `gsm8k`, `sst2`"):
            load_task("sst")


class TestTaskFile:
    def test_exact(self, tmp_path):
        rows = [
            {
                "prompt": [{"role": "user", "content": "Good?"}],
                "completion": [{"role": "assistant", "content": "yes"}],
            },
            {"prompt": "Where?", "completion": " Paris\n"},
        ]
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        task = load_task_file(str(path), "exact")
        assert (task.name, len(task.prompts)) == ("mine", 2)
        assert task.count_correct(["Yes", "Paris"]) == [True, True]
        assert task.count_correct(["yes!", "PARIS"]) == [False, False]

    def test_last_number(self, tmp_path):
        path = tmp_path / "mine.jsonl"
        path.write_text('{"prompt": "3 + 4?", "completion": "7"}\n')
        assert load_task_file(str(path), "last_number").count_correct(["3 + 4 = 7."]) == [True]
        path.write_text('{"prompt": "3 + 4?", "completion": "seven"}\n')
        with pytest.raises(ValueError, match="line 1: expected a number in the completion, found 'seven'"):
            load_task_file(str(path), "last_number")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            ('{"prompt": "Where?"}', "line 1: expected a row with `prompt` and `completion`.*KeyError"),
            ("[]", "line 1: expected a row"),
            ('{"prompt": "Where?", "completion": []}', "line 1: expected a row"),
            ('{"prompt": "", "completion": "x"}', "line 1: expected a row.*empty prompt"),
            ("{", "line 1: not valid JSON"),
            ('{"prompt": "Where?", "completion": 7}', "line 1: expected a row.*TypeError"),
            (
                '{"prompt": "Where?", "completion": [{"content": null}]}',
                "line 1: expected a row.*the completion is None",
            ),
            (
                '{"prompt": "A?", "completion": "a"}\n{"prompt": "B?", "completion": "b", "prompt": 1}',
                "line 2: .*twice",
            ),
        ],
    )
    def test_unreadable(self, tmp_path, text, message):
        path = tmp_path / "mine.jsonl"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_task_file(str(path), "exact")

    def test_line_separators_inside_a_row_end_no_line(self, tmp_path):
        path = tmp_path / "mine.jsonl"
        path.write_bytes('\ufeff{"prompt": "A\u2028B\u0085C?", "completion": "yes"}\r\n'.encode())
        (prompt,) = load_task_file(str(path), "exact").prompts
        assert prompt == [{"role": "user", "content": "A\u2028B\u0085C?"}]

    def test_unknown_rule(self, tmp_path):
        with pytest.raises(ValueError, match="`fuzzy` is no rule .*There are `exact`, `last_number`"):
            load_task_file(str(tmp_path / "mine.jsonl"), "fuzzy")

    def test_missing(self):
        with pytest.raises(FileNotFoundError, match="There is no task file `gone.jsonl`"):
            load_task_file("gone.jsonl", "exact")
