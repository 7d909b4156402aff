# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest

from trl_sbr.anchors.prompts import DEFAULT_PROMPTS, find_near_copies, load_prompts


class TestLoadPrompts:
    def test_text(self, tmp_path):
        (tmp_path / "prompts.txt").write_text("One?\n\n  Two?  \n")
        assert load_prompts(tmp_path / "prompts.txt") == ["One?", "Two?"]

    def test_jsonl(self, tmp_path):
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Three?"}]
        rows = [{"prompt": "One?"}, {"messages": messages}]
        (tmp_path / "prompts.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
        assert load_prompts(tmp_path / "prompts.jsonl") == ["One?", messages]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("p.csv", "One?", "`.txt` or `.jsonl` file, found"),
            ("p.txt", "\n \n", "holds no prompt"),
            ("p.jsonl", '{"prompt": "One?"}\n{"prompt"', "line 2: not valid JSON"),
            ("p.jsonl", '{"question": "One?"}', "line 1: expected a row with `prompt` or `messages`"),
            ("p.jsonl", '"One?"', "line 1: expected a row with `prompt` or `messages`"),
        ],
    )
    def test_bad_files_raise(self, tmp_path, name, text, message):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            load_prompts(tmp_path / name)


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
