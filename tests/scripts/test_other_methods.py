# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`trl-sbr dpo` and `trl-sbr grpo`: what they do not share with `trl-sbr sft`."""

import importlib
import json
import shlex

import pytest

from trl_sbr.cli import main
from trl_sbr.scripts.common import make_parser
from trl_sbr.scripts.grpo import find_reward
from trl_sbr.scripts.launcher import launcher_options
from trl_sbr.trainers.run_record import check_folder

from ..tiny import conversation_rows
from ..trainers.any_trainer import preference_rows


ROWS = {"dpo": preference_rows(16), "grpo": [{"prompt": row["prompt"]} for row in conversation_rows(16)]}
REWARDS = "def brevity(completions, **kwargs):\n    return [-float(len(c[0]['content'])) for c in completions]\n"


@pytest.fixture
def argv(request, refusing_model_dir, tmp_path, monkeypatch):
    """A short training by one of the methods, with its recipe for a CPU."""
    method = request.param
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[method]))
    own = {"dpo": [], "grpo": ["--reward_funcs", "my_rewards.brevity", "--max_completion_length", "4"]}[method]
    return [
        method,
        *("--config", f"smollm2-135m-instruct/sbr_{method}_lora", "--model_name_or_path", str(refusing_model_dir)),
        *("--dataset_name", "rows.jsonl", "--max_steps", "2", "--logging_steps", "1", "--output_dir", "out", *own),
    ]


any_method = pytest.mark.parametrize("argv", ROWS, indirect=True)


class TestTraining:
    @any_method
    @pytest.mark.parametrize(("use_peft", "end"), [("true", "Verified."), ("false", "Compared.")])
    def test_and_the_next_command_that_it_names(self, argv, use_peft, end, tmp_path, capsys):
        assert main([*argv, "--use_peft", use_peft]) == 0
        output = capsys.readouterr().out
        assert "with its safety anchor to out." in output
        logs = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
        assert [log["anchor_loss"] >= 0 for log in logs if "loss" in log] == [True, True]
        assert check_folder(tmp_path / "out")["method"] == ["trl", argv[0]]
        assert f"- {argv[0]}\n" in (tmp_path / "out" / "README.md").read_text()
        line = next(line for line in output.splitlines() if line.startswith("Next: trl-sbr "))
        assert main(shlex.split(line.removeprefix("Next: trl-sbr "))) == 0
        assert end in capsys.readouterr().out

    @any_method
    def test_columns_of_another_method(self, argv, tmp_path, capsys):
        (tmp_path / "rows.jsonl").write_text('{"text": "It is good."}\n')
        assert main(argv) == 2
        expected = {"dpo": "Expected `chosen` and `rejected`", "grpo": "Expected `prompt`"}[argv[0]]
        assert f"`rows.jsonl` has the columns `text`. {expected}" in capsys.readouterr().err

    @pytest.mark.parametrize("method", ROWS)
    def test_every_key_of_trl(self, method):
        trls = importlib.import_module(f"trl.scripts.{method}").make_parser()
        ours = make_parser(importlib.import_module(f"trl_sbr.scripts.{method}").get_dataclass_types(), method, "")
        known = {action.dest for action in ours._actions} | launcher_options().keys()
        assert {action.dest for action in trls._actions} <= known


class TestRewards:
    @pytest.mark.parametrize(
        "name", ["accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_soft_overlong_punishment"]
    )
    def test_of_trl(self, name):
        assert callable(find_reward(name))

    @pytest.mark.parametrize("name", ["accurate_reward", "no.such.module", "json.no_such_function"])
    def test_that_is_not_there(self, name):
        with pytest.raises(ValueError, match=f"`reward_funcs` has `{name}`, which is neither one of `trl grpo`"):
            find_reward(name)

    @pytest.mark.parametrize("argv", ["grpo"], indirect=True)
    def test_none(self, argv, capsys):
        at = argv.index("--reward_funcs")
        assert main(argv[:at] + argv[at + 2 :]) == 2
        assert "error: No reward: give `reward_funcs`" in capsys.readouterr().err
