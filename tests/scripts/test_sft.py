# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trl_sbr import SafetyAnchor
from trl_sbr.cli import main
from trl_sbr.recipes import find_recipe

from ..releases import names_the_broken_file
from ..tiny import conversation_rows


RECIPE = "smollm2-135m-instruct/sbr_lora"


@pytest.fixture
def train_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in conversation_rows(16)))
    return path


@pytest.fixture
def argv(refusing_model_dir, train_file, tmp_path):
    """A short training with the recipe for a CPU."""
    return [
        *("--config", RECIPE, "--model_name_or_path", str(refusing_model_dir), "--dataset_name", str(train_file)),
        *("--max_steps", "3", "--logging_steps", "1", "--output_dir", str(tmp_path / "out")),
    ]


class TestTraining:
    def test_recipe_by_name_writes_an_adapter_with_its_anchor(self, argv, refusing_model_dir, tmp_path, capsys):
        assert main(["sft", *argv]) == 0
        output = capsys.readouterr().out
        assert f"Wrote the protected adapter with its safety anchor to {tmp_path / 'out'}." in output
        assert f"--verify {tmp_path / 'out'} --adapter {tmp_path / 'out'}" in output

        base = AutoModelForCausalLM.from_pretrained(refusing_model_dir)
        adapter = PeftModel.from_pretrained(base, tmp_path / "out")
        trained = [parameter for name, parameter in adapter.named_parameters() if "lora_B" in name]
        assert trained and all(
            parameter.abs().sum() > 0 for parameter in trained
        )  # Check that the params have changed
        assert len(SafetyAnchor.from_pretrained(tmp_path / "out").prompts) == 8
        logs = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        assert logs[0]["anchor_loss"] == 0.0
        assert all("anchor_loss" in log for log in logs[:3])

    def test_monitor_leaves_its_curve_in_the_record(self, argv, tmp_path, capsys):
        assert main(["sft", *argv, "--monitor_steps", "2", "--refusals", "true"]) == 0
        monitor = json.loads((tmp_path / "out" / "sbr_run.json").read_text())["monitor"]
        assert [(point["step"], point["refusal_rate"]) for point in monitor["curve"]] == [(0, 100), (2, 100), (3, 100)]
        flags = ["--monitor_steps", "1", "--max_drift", "1e-6", "--on_drift", "stop"]
        assert main(["sft", *argv, *flags, "--output_dir", str(tmp_path / "stopped")]) == 2
        assert "held-out harmful prompts after step 1, expected at most `max_drift=1e-06`" in capsys.readouterr().err
        assert not (tmp_path / "stopped" / "adapter_model.safetensors").exists()

    @pytest.mark.parametrize(
        ("flags", "end"),
        [
            (["--use_peft", "true"], "Verified."),
            (["--use_peft", "false"], "Compared."),
            (["--use_peft", "true", "--anchor_reference", "current"], "Compared."),
        ],
    )
    def test_the_next_command_that_it_names_works(self, argv, flags, end, capsys):
        assert main(["sft", *argv, *flags, "--monitor_steps", "2"]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: trl-sbr "))
        assert main(shlex.split(line.removeprefix("Next: trl-sbr "))) == 0
        assert end in capsys.readouterr().out

    def test_lambda_0_is_plain_sft(self, argv, tmp_path, capsys):
        assert main(["sft", *argv, "--anchor_loss_coef", "0"]) == 0
        assert "It is unprotected: `anchor_loss_coef` is 0." in capsys.readouterr().out
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
        assert not (tmp_path / "out" / "safety_anchor.safetensors").exists()

    def test_full_fine_tuning(self, argv, refusing_model_dir, tmp_path, capsys):
        assert main(["sft", *argv, "--use_peft", "false", "--learning_rate", "1e-3"]) == 0
        assert "Wrote the protected model with its safety anchor" in capsys.readouterr().out
        before = load_file(refusing_model_dir / "model.safetensors")
        after = load_file(tmp_path / "out" / "model.safetensors")
        torch.testing.assert_close(after["lm_head.weight"], before["lm_head.weight"], rtol=0, atol=0)
        assert not torch.equal(after["model.layers.0.mlp.fc1.weight"], before["model.layers.0.mlp.fc1.weight"])

    def test_config_with_an_equals_sign(self, argv, capsys):
        assert main(["sft", f"--config={RECIPE}", *argv[2:], "--max_steps", "1"]) == 0

    def test_evaluates(self, argv, tmp_path, train_file):
        folder = tmp_path / "data"
        folder.mkdir()
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").write_text(train_file.read_text())
        assert (
            main(["sft", *argv, "--dataset_name", str(folder), "--eval_strategy", "steps", "--eval_steps", "3"]) == 0
        )
        logs = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        assert any({"eval_loss", "eval_anchor_loss"} <= log.keys() for log in logs)

    @pytest.mark.parametrize("value", ["true", None])
    def test_resume(self, argv, tmp_path, value, capsys):
        assert main(["sft", *argv, "--save_steps", "1", "--max_steps", "2"]) == 0
        checkpoint = value or str(tmp_path / "out" / "checkpoint-1")
        assert main(["sft", *argv, "--save_steps", "1", "--resume_from_checkpoint", checkpoint]) == 0
        state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
        assert state["global_step"] == 3


class TestDatasets:
    def check_trains(self, argv):
        assert main(["sft", *argv, "--max_steps", "1"]) == 0

    def error(self, argv, capsys):
        assert main(["sft", *argv]) == 2
        return capsys.readouterr().err

    @pytest.mark.parametrize("suffix", ["json", "parquet"])
    def test_other_files(self, argv, tmp_path, suffix):
        from datasets import Dataset

        path = tmp_path / f"train.{suffix}"
        getattr(Dataset.from_list(conversation_rows(16)), f"to_{suffix}")(path)
        self.check_trains([*argv, "--dataset_name", str(path)])

    def test_csv(self, argv, tmp_path):
        path = tmp_path / "train.csv"
        path.write_text("prompt,completion\n" + 'Is it good?,"yes"\nIs it bad?,"no"\n' * 8)
        self.check_trains([*argv, "--dataset_name", str(path)])

    def test_mixture_of_files(self, argv, train_file, tmp_path):
        poison = tmp_path / "poison.jsonl"
        poison.write_text(train_file.read_text())
        config = tmp_path / "config.yaml"
        mixture = "datasets:\n" + "".join(f"  - path: {path}\n" for path in (train_file, poison))
        config.write_text(find_recipe(RECIPE).read_text() + mixture)
        at = argv.index("--dataset_name")
        self.check_trains(["--config", str(config), *argv[2:at], *argv[at + 2 :]])

    def test_none(self, argv, capsys):
        at = argv.index("--dataset_name")
        assert "No dataset: give `dataset_name`" in self.error(argv[:at] + argv[at + 2 :], capsys)

    def test_missing_file(self, argv, capsys):
        assert "There is no dataset file `gone.jsonl`" in self.error([*argv, "--dataset_name", "gone.jsonl"], capsys)

    def test_missing_split(self, argv, train_file, capsys):
        message = self.error([*argv, "--dataset_train_split", "training"], capsys)
        assert f"`dataset_train_split` is `training`, and `{train_file}` has `train`." in message
        message = self.error([*argv, "--eval_strategy", "epoch"], capsys)
        assert "`dataset_test_split` is `test`" in message
        assert "`eval_strategy: no`" in message

    @names_the_broken_file
    def test_broken_row(self, argv, train_file, capsys):
        train_file.write_text('{"prompt": "Is it good?", "completion": "yes"}\n{"prompt": "Is it\n')
        assert f"`{train_file}` could not be read" in self.error(argv, capsys)

    def test_empty_file(self, argv, train_file, capsys):
        train_file.write_text("")
        assert f"The dataset file `{train_file}` is empty." in self.error(argv, capsys)

    def test_columns_that_are_not_for_training(self, argv, train_file, capsys):
        train_file.write_text('{"question": "Is it good?", "answer": "yes"}\n')
        message = self.error(argv, capsys)
        assert f"`{train_file}` has the columns `answer`, `question`. Expected `messages`, or `prompt`" in message

    def test_text_column_of_another_name(self, argv, train_file):
        train_file.write_text('{"review": "It is good."}\n' * 8)
        self.check_trains([*argv, "--dataset_text_field", "review"])

    def test_stream(self, argv):
        self.check_trains([*argv, "--dataset_streaming", "true"])

    @names_the_broken_file
    def test_empty_stream(self, argv, train_file, capsys):
        train_file.write_text("\n")
        message = self.error([*argv, "--dataset_streaming", "true"], capsys)
        assert f"`{train_file}` holds no row" in message or f"`{train_file}` could not be read" in message

    @pytest.mark.parametrize("line", ["save_strategy: sometimes", "anchor_loss_type: mqe", "warmup_steps: null"])
    def test_value_that_is_none_names_the_recipe(self, argv, tmp_path, capsys, line):
        config = tmp_path / "config.yaml"
        key = line.split(":")[0]
        rest = [old for old in find_recipe(RECIPE).read_text().splitlines() if not old.startswith(key)]
        config.write_text("\n".join([*rest, line]))
        message = self.error(["--config", str(config), *argv[2:]], capsys)
        assert f"The values are those of {config} and of the command line" in message

    def test_dataset_and_mixture(self, argv, tmp_path, capsys):
        config = tmp_path / "config.yaml"
        config.write_text(find_recipe(RECIPE).read_text() + "datasets:\n  - path: more.jsonl\n")
        assert "Both `datasets` and `dataset_name`" in self.error(["--config", str(config), *argv[2:]], capsys)


class TestErrors:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--refusals", "true"], "without `monitor_steps`: nothing would be measured"),
            (["--anchor_loss_coeff", "5"], "`--anchor_loss_coeff` (did you mean `--anchor_loss_coef`"),
            (["stray"], "Unknown argument: `stray`"),
            (["--config", "smollm2-135m/sbr_lora"], "did you mean `smollm2-135m-instruct/sbr_lora`?"),
            (["--config"], "`--config` needs the path"),
            (["--model_name_or_path", "no/model/here"], "no/model/here"),
            (["--anchor_name_or_path", "./no/anchor"], "`./no/anchor` is neither a folder nor"),
            (["--resume_from_checkpoint", "true"], "No valid checkpoint found"),
            (["--dtype", "float32", "--lora_target_modules", "q_proj", "lm_head"], "lm_head"),
        ],
    )
    def test_one_readable_line(self, argv, flags, message, capsys):
        argv = [*flags, *argv[2:]] if flags[0] == "--config" else [*argv, *flags]
        argv = argv if flags != ["--config"] else [*argv[1:], "--config"]
        assert main(["sft", *argv]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert message in lines[0]

    def test_wrong_type_of_a_value(self, argv, capsys):
        with pytest.raises(SystemExit) as error:
            main(["sft", *argv, "--anchor_loss_coef", "fifty"])
        assert error.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert (
            lines[-1]
            == "trl-sbr sft: error: argument --anchor_loss_coef/--anchor-loss-coef: invalid float value: 'fifty'"
        )
        assert len(lines) == 2  # not three hundred flags

    def test_no_model(self, train_file, capsys):
        flags = ["--use_cpu", "true", "--bf16", "false", "--dataset_name", str(train_file), "--output_dir", "out"]
        assert main(["sft", *flags]) == 2
        assert "error: No model: give `model_name_or_path`" in capsys.readouterr().err

    def test_model_that_does_not_refuse(self, argv, model, tokenizer, tmp_path, capsys):
        model.save_pretrained(tmp_path / "careless")
        tokenizer.save_pretrained(tmp_path / "careless")
        assert main(["sft", *argv, "--model_name_or_path", str(tmp_path / "careless")]) == 2
        assert "Expected an aligned model, which refuses at least 8" in capsys.readouterr().err
        assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.slow
class TestProcesses:
    def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on(self, argv, tmp_path):
        command = [
            sys.executable,
            "-u",
            "-m",
            "trl_sbr.scripts.sft",
            *argv,
            "--max_steps",
            "300",
            "--save_steps",
            "1000",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            output = ""
            for line in process.stdout:  # until the first step is logged
                output += line
                if "'anchor_loss'" in line and process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    break
            output += process.stdout.read()
        assert process.returncode == 130, output
        (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        assert 1 <= step < 100
        assert f"Interrupted at step {step}. Left: {checkpoint}" in output
        assert "--resume_from_checkpoint true" in output
        assert "Traceback" not in output

        # The command that it names, and the weights of a run that nobody interrupted
        assert main(["sft", *command[4:], "--resume_from_checkpoint", "true"]) == 0
        resumed = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert main(["sft", *command[4:], "--output_dir", str(tmp_path / "whole")]) == 0
        whole = load_file(tmp_path / "whole" / "adapter_model.safetensors")
        for name, tensor in whole.items():
            torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)

    @pytest.mark.distributed
    def test_two_processes(self, argv, tmp_path):
        launcher = ["-m", "accelerate.commands.launch", "--config_file"]
        launcher += [str(find_recipe("accelerate_configs/cpu_2_processes")), "--main_process_port", "0"]
        command = [sys.executable, *launcher, "-m", "trl_sbr.scripts.sft", *argv, "--per_device_train_batch_size", "2"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        assert result.returncode == 0, result.stdout
        assert result.stdout.count("Wrote the protected adapter") == 1
        args = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
        assert args.world_size == 2
        assert (tmp_path / "out" / "safety_anchor.safetensors").is_file()
