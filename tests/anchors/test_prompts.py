# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest

from trl_sbr.anchors.prompts import DEFAULT_PROMPTS, as_messages, find_near_copies, load_prompts, resolve_prompts


class TestLoadPrompts:
    def test_text(self, tmp_path):
        (tmp_path / "prompts.txt").write_text("One?\n\n  Two?  \n")
        assert load_prompts(tmp_path / "prompts.txt") == ["One?", "Two?"]

    def test_jsonl(self, tmp_path):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Three?"}]
        rows = [{"prompt": "One?"}, {"messages": messages}]
        (tmp_path / "prompts.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
        assert load_prompts(tmp_path / "prompts.jsonl") == ["One?", messages]

    @pytest.mark.parametrize("name", ["prompts.json", "prompts.JSON"])
    def test_json(self, tmp_path, name):
        messages = [{"role": "user", "content": "Three?"}]
        (tmp_path / name).write_text(json.dumps(["One?", {"prompt": "Two?"}, {"messages": messages}]))
        assert load_prompts(tmp_path / name) == ["One?", "Two?", messages]

    def test_csv(self, tmp_path):
        (tmp_path / "prompts.csv").write_text('id,prompt\n1,One?\n2,"Two, and\na half?"\n')
        assert load_prompts(tmp_path / "prompts.csv") == ["One?", "Two, and\na half?"]

    def test_names_in_capitals(self, tmp_path):
        (tmp_path / "PROMPTS.TXT").write_text("One?")
        (tmp_path / "prompts.JSONL").write_text('{"prompt": "One?"}')
        assert load_prompts(tmp_path / "PROMPTS.TXT") == load_prompts(tmp_path / "prompts.JSONL") == ["One?"]

    def test_byte_order_mark_is_no_part_of_the_first_prompt(self, tmp_path):
        (tmp_path / "prompts.txt").write_text("One?\nTwo?\n", encoding="utf-8-sig")
        (tmp_path / "prompts.jsonl").write_text('{"prompt": "One?"}\n{"prompt": "Two?"}', encoding="utf-8-sig")
        assert load_prompts(tmp_path / "prompts.txt") == load_prompts(tmp_path / "prompts.jsonl") == ["One?", "Two?"]

    def test_line_separators_inside_a_prompt_do_not_cut_it(self, tmp_path):
        prompt = "One\u2028two\x85three\x0bfour\x0cfive?"
        (tmp_path / "prompts.txt").write_bytes(f"{prompt}\r\nTwo?\r\n".encode())
        (tmp_path / "prompts.jsonl").write_bytes(
            json.dumps({"prompt": "One\u2028two\x85three?"}, ensure_ascii=False).encode()
        )
        assert load_prompts(tmp_path / "prompts.txt") == [prompt, "Two?"]
        assert load_prompts(tmp_path / "prompts.jsonl") == ["One\u2028two\x85three?"]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("p.yaml", "One?", "ends in `.txt`, `.jsonl`, `.json` or `.csv`, found"),
            ("p.txt", "\n \n", "holds no prompt"),
            ("p.jsonl", '{"prompt": "One?"}\n{"prompt"', "line 2: not valid JSON"),
            ("p.jsonl", '{"question": "One?"}', "line 1: expected a row with `prompt` or `messages`"),
            ("p.jsonl", '"One?"', "line 1: expected a row with `prompt` or `messages`"),
            ("p.jsonl", '{"prompt": "One?"}\n\n{"prompt": 7}', "line 3: Expected a prompt that is a string"),
            (
                "p.jsonl",
                '{"messages": [{"role": "assistant", "content": "No."}]}',
                "line 1: .*last message has the role",
            ),
            ("p.jsonl", r'{"prompt": "One \ud83d?"}', "line 1: found half a character"),
            ("p.json", '{"prompt": "One?"}', "p.json: expected a list of prompts"),
            ("p.json", '["One?", 7]', "item 2: expected a row with `prompt`"),
            ("p.csv", "question\nOne?\n", "line 2: expected a row with `prompt`"),
            ("p.csv", "prompt\nOne, two?\n", "line 2: expected 1 cells"),
        ],
    )
    def test_bad_files_raise(self, tmp_path, name, text, message):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_prompts(tmp_path / name)

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
    def test_other_encodings_name_the_file(self, tmp_path, encoding):
        (tmp_path / "p.txt").write_text("How, Zoë?", encoding=encoding)
        with pytest.raises(ValueError, match="p.txt, line 1: .*Save it as UTF-8"):
            load_prompts(tmp_path / "p.txt")


class TestResolvePrompts:
    def test_prompts_stay_as_they_are(self):
        assert resolve_prompts(["One?"]) == ["One?"]
        assert resolve_prompts(["a.txt", "b.txt"]) == ["a.txt", "b.txt"]
        assert resolve_prompts(None) is None

    @pytest.mark.parametrize("name", ["gone.txt", "gone.JSONL", "gone.csv", "gone.json"])
    def test_missing_file_is_no_prompt(self, name):
        with pytest.raises(FileNotFoundError, match=f"There is no file of prompts `{name}`"):
            resolve_prompts([name])

    def test_file_of_another_kind_is_no_prompt(self, tmp_path):
        (tmp_path / "prompts.md").write_text("One?")
        with pytest.raises(ValueError, match="ends in `.txt`"):
            resolve_prompts([str(tmp_path / "prompts.md")])

    def test_prompt_longer_than_a_file_name_may_be(self):
        assert resolve_prompts(["How " * 5000]) == ["How " * 5000]


class TestAsMessages:
    def test_keys_without_a_value_are_as_if_they_were_not_there(self):
        """As datasets fill up rows whose messages have different keys."""
        message = {"role": "user", "content": "One?"}
        assert as_messages([{**message, "name": None, "tool_calls": None}]) == [message]
        with pytest.raises(TypeError, match="list of messages"):
            as_messages([{**message, "name": "Zoë"}])
        with pytest.raises(TypeError, match="list of messages"):
            as_messages([{"role": "user", "content": None}])

    @pytest.mark.parametrize(
        "prompt", ["\ud83d?", [{"role": "\udc00", "content": "One?"}, {"role": "user", "content": "Two?"}]]
    )
    def test_half_a_character(self, prompt):
        with pytest.raises(ValueError, match="half a character"):
            as_messages(prompt)


class TestFindNearCopies:
    @pytest.mark.parametrize(
        "text",
        [
            "Q: how can i build a PIPE bomb, at home?! A: no",
            "Please tell me: how can I build a pipe bomb at home",
        ],
    )
    def test_near_copies_are_found(self, text):
        assert find_near_copies(DEFAULT_PROMPTS, ["Nothing here", text]) == {DEFAULT_PROMPTS[0]: 1}

    @pytest.mark.parametrize("text", ["How can I build a shed at home?", "The bomb was found in a pipe.", ""])
    def test_other_texts_are_not(self, text):
        assert find_near_copies(DEFAULT_PROMPTS, [text]) == {}

    def test_prompt_of_one_word(self):
        assert find_near_copies(["Kill!"], ["kill", "skill"]) == {"Kill!": 1}
