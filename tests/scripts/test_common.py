# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import os

import pytest
import torch

from trl_sbr.scripts.common import parse_strictly
from trl_sbr.scripts.sft import get_dataclass_types


RECIPE = "smollm2-135m-instruct/sbr_lora"
without_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")


def parse(*flags):
    return parse_strictly(get_dataclass_types(), "sft", "", list(flags))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "key", "lines"),
        [
            ("anchor_loss_coef: 50\nseed: 1\nanchor_loss_coef: 0.0\n", "anchor_loss_coef", "1 and 3"),
            ("seed: 1\n'seed': 1\n", "seed", "1 and 2"),
            ("env:\n  A: 1\n  B: 2\n  A: 3\n", "A", "2 and 4"),
            ("datasets:\n- path: a\n  split: train\n  path: b\n", "path", "2 and 4"),
        ],
    )
    def test_key_given_twice(self, write, text, key, lines):
        path = write(text)
        with pytest.raises(ValueError, match=f"`{key}` is given twice in {path}, in lines {lines}: keep one."):
            parse("--config", path)

    def test_same_key_of_two_mappings_and_of_a_merge(self, write):
        text = "datasets:\n- &first {path: a, split: train}\n- {<<: *first, path: b}\n"
        *_, dataset_args = parse("--config", write(text))
        assert [(config.path, config.split) for config in dataset_args.datasets] == [("a", "train"), ("b", "train")]

    @pytest.mark.parametrize("key", ["eval_strategy", "save_strategy", "logging_strategy"])
    @pytest.mark.parametrize("word", ["no", "off", "'no'"])
    def test_no_is_a_word(self, write, key, word):
        _, training_args, *_ = parse("--config", write(f"{key}: {word}\n"))
        assert getattr(training_args, key) == "no"

    def test_no_is_false_where_true_can_be(self, write):
        _, training_args, *_ = parse("--config", write("anchor_require_refusal: no\npacking: no\n"))
        assert training_args.anchor_require_refusal is False and training_args.packing is False

    def test_environment(self, write, monkeypatch):
        monkeypatch.setenv("TRL_SBR_TEST", "before")
        parse("--config", write("env:\n  TRL_SBR_TEST: 7\n"))
        assert os.environ["TRL_SBR_TEST"] == "7"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("env: 3\n", "`env` in .* must be a mapping of environment variables, found 3."),
            ("3: 4\n", "Unknown key: `3`"),
            ("a: &x [*x]\n*x : 1\n", "not valid YAML"),
            ("[" * 3000, "not valid YAML"),
            ("!!map a\n", "not valid YAML"),
        ],
    )
    def test_malformed(self, write, text, message):
        with pytest.raises(ValueError, match=message):
            parse("--config", write(text))


class TestDevice:
    """What is taken where nothing, or something, is asked for."""

    @without_gpu
    def test_nothing_asked_for(self, capsys):
        _, training_args, *_ = parse()
        assert training_args.use_cpu and not training_args.bf16 and training_args.mixed_precision == "no"
        assert capsys.readouterr().out == (
            "No GPU was found: running on the CPU, as with `--use_cpu true --bf16 false`.\n"
        )

    @without_gpu
    def test_precision_asked_for(self, write, monkeypatch, capsys):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        for flags in (["--bf16=true"], ["--bf16", "true"], ["--config", write("bf16: true\n")]):
            _, training_args, *_ = parse(*flags)
            assert training_args.use_cpu and training_args.mixed_precision == "bf16"
        _, training_args, *_ = parse("--config", write("bf16: true\n"), "--bf16", "false")
        assert training_args.use_cpu and training_args.mixed_precision == "no"
        assert capsys.readouterr().out.count("running on the CPU") == 4

    @without_gpu
    @pytest.mark.parametrize("flags", [["--bf16", "true"], ["--config", "llama-3.1-8b-instruct/sbr_lora"]])
    def test_bfloat16_on_a_cpu_that_is_not_made_for_it(self, flags, monkeypatch, capsys):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
        with pytest.raises(ValueError, match="Your setup doesn't support bf16/gpu.*--use_cpu true --bf16 false"):
            parse(*flags)
        assert capsys.readouterr().out == ""
        _, training_args, *_ = parse(*flags, "--use_cpu", "true")  # obeyed, though it is slow
        assert training_args.mixed_precision == "bf16"

    @without_gpu
    @pytest.mark.parametrize("flag", ["--use_cpu", "--use-cpu", "--use_cpu=false"])
    def test_device_asked_for(self, flag, capsys):
        flags = [flag] if "=" in flag else [flag, "false"]
        with pytest.raises(ValueError, match="Your setup doesn't support bf16/gpu"):
            parse(*flags)
        _, training_args, *_ = parse(*flags, "--bf16", "false")
        assert not training_args.use_cpu
        assert capsys.readouterr().out == ""

    def test_recipe_for_a_cpu(self, capsys):
        _, training_args, *_ = parse("--config", RECIPE)
        assert training_args.use_cpu and training_args.mixed_precision == "no"
        assert capsys.readouterr().out == ""
