# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`trl-sbr sft` in processes that it launches: real ones, on a CPU."""

import json
import os
import signal
import subprocess
import sys
from importlib import resources

import pytest
import torch

from trl_sbr.cli import main
from trl_sbr.recipes import find_recipe
from trl_sbr.scripts.launcher import find_accelerate_config

from ..distributed.launch import environment
from ..tiny import conversation_rows


@pytest.fixture
def write(refusing_model_dir, tmp_path):
    """Writes a YAML file as one has it for `trl sft`."""
    rows = "".join(json.dumps(row) + "\n" for row in conversation_rows(16))
    (tmp_path / "train.jsonl").write_text(rows)

    def write(text=""):
        path = tmp_path / "config.yaml"
        path.write_text(
            f"model_name_or_path: {refusing_model_dir}\ndataset_name: {tmp_path / 'train.jsonl'}\nmax_steps: 2\n"
            f"per_device_train_batch_size: 2\nlogging_steps: 1\nreport_to: none\noutput_dir: {tmp_path / 'out'}\n{text}"
        )
        return str(path)

    return write


def sft(*flags, module="trl_sbr.cli", **variables) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *(["sft"] if module == "trl_sbr.cli" else []), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, **pipes, text=True, timeout=300, env=environment() | variables)


def world_size(tmp_path) -> int:
    return torch.load(tmp_path / "out" / "training_args.bin", weights_only=False).world_size


class TestAccelerateConfig:
    def test_by_name_it_is_trls_or_else_ours(self):
        theirs = resources.files("trl.accelerate_configs")
        assert find_accelerate_config("zero2") == str(theirs / "zero2.yaml")
        assert find_accelerate_config("multi_gpu") == str(theirs / "multi_gpu.yaml")
        assert find_accelerate_config("cpu_2_processes") == str(find_recipe("accelerate_configs/cpu_2_processes"))
        assert find_accelerate_config("accelerate_configs/zero2") == str(find_recipe("accelerate_configs/zero2"))

    def test_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "zero2").write_text("")
        assert find_accelerate_config("zero2") == "zero2"


class TestErrors:
    """Said before anything is launched."""

    @pytest.mark.parametrize(
        ("text", "flags", "message"),
        [
            ("num_proceses: 2\n", [], "Unknown key: `num_proceses` (did you mean `num_processes`"),
            ("num_processes: 2\nanchor_loss_coeff: 1\n", [], "`anchor_loss_coeff` (did you mean `anchor_loss_coef`"),
            ("distributed_type: FSDP\n", [], "Unknown key: `distributed_type`"),
            ("module: true\n", [], "Unknown key: `module`"),
            ("", ["--num_proceses", "2"], "`--num_proceses` (did you mean `--num_processes`"),
            ("num_processes: 2\n", ["--anchor_loss_coeff", "1"], "did you mean `--anchor_loss_coef`"),
            ("num_processes: 2\n", ["stray"], "Unknown argument: `stray`"),
            ("num_processes: two\n", [], "argument --num_processes/--num-processes: invalid int value: 'two'"),
            ("multi_gpu: 2\n", [], "`multi_gpu` is 2, expected true or false."),
            ("accelerate_config: zero4\n", [], "`accelerate_config` is `zero4`, which is neither a file nor"),
            ("", ["--accelerate-config", "zero4"], "`zero1`, `zero2`, `zero3`, `accelerate_configs/cpu_2_processes`"),
        ],
    )
    def test_one_readable_line(self, write, text, flags, message, tmp_path, capsys):
        assert main(["sft", "--config", write(text), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert message in error
        assert not (tmp_path / "out").exists()

    def test_flag_of_the_launcher_behind_the_module(self, write, capsys):
        run = sft("--config", write(), "--num_processes", "2", module="trl_sbr.scripts.sft")
        assert run.returncode == 2
        assert "error: Unknown argument: `--num_processes`" in run.stderr


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
class TestProcesses:
    @pytest.mark.parametrize(
        ("text", "flags"),
        [
            ("num_processes: 2\nmain_process_port: 0\nmulti_gpu: false\n", []),
            ("accelerate_config: multi_gpu\n", ["--num-processes=2", "--main_process_port", "0"]),
            ("", ["--cpu", "--num_processes", "2", "--main_process_port", "0"]),
        ],
    )
    def test_two(self, write, text, flags, tmp_path):
        run = sft("--config", write(text + "anchor_loss_coef: 20\n"), *flags)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("Wrote the protected model with its safety anchor") == 1
        assert run.stdout.count("No GPU was found") == ("--cpu" not in flags)
        assert world_size(tmp_path) == 2
        # Check that the command which it names works with the same file
        line = next(line for line in run.stdout.splitlines() if line.startswith("Next: trl-sbr "))
        assert main(line.split()[2:]) == 0

    def test_as_accelerate_config_has_it(self, write, tmp_path):
        """What `accelerate config` wrote is obeyed, as TRL's command line does."""
        folder = tmp_path / "home" / "accelerate"
        folder.mkdir(parents=True)
        text = find_recipe("accelerate_configs/cpu_2_processes").read_text() + "main_process_port: 0\n"
        (folder / "default_config.yaml").write_text(text)
        run = sft("--config", write(), HF_HOME=str(folder.parent))
        assert run.returncode == 0, run.stderr
        assert world_size(tmp_path) == 2

    def test_of_accelerate_launch_itself(self, write, tmp_path):
        """The launcher's keys are in effect, or not: nothing is launched twice."""
        config = write("num_processes: 8\naccelerate_config: zero3\n")
        launcher = [
            "--config_file",
            str(find_recipe("accelerate_configs/cpu_2_processes")),
            "--main_process_port",
            "0",
        ]
        run = sft(*launcher, "-m", "trl_sbr.scripts.sft", "--config", config, module="accelerate.commands.launch")
        assert run.returncode == 0, run.stderr
        assert world_size(tmp_path) == 2

    @pytest.mark.parametrize(
        ("num_processes", "flags", "message"),
        [
            (2, ["--dataset_name", "gone.jsonl"], "error: There is no dataset file `gone.jsonl` (looked from "),
            (
                2,
                ["--anchor_loss_coef", "-1"],
                "error: Expected a finite `anchor_loss_coef` of at least 0, found -1.0.",
            ),
            (1, ["--model_name_or_path", "no/model/here"], "error: Repo id must be in the form"),
        ],
    )
    def test_error_of_the_launched(self, write, num_processes, flags, message):
        run = sft("--config", write(f"num_processes: {num_processes}\nmain_process_port: 0\n"), *flags)
        assert run.returncode == 2
        assert "Traceback" not in run.stderr
        (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(message)

    @pytest.mark.parametrize("num_processes", [1, 2])
    def test_ctrl_c(self, write, num_processes, tmp_path):
        config = write(f"num_processes: {num_processes}\nmain_process_port: 0\nsave_steps: 1000\n")
        command = [sys.executable, "-u", "-m", "trl_sbr.cli", "sft", "--config", config, "--max_steps", "500"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # A group of its own, to which a terminal's Ctrl-C goes
        with subprocess.Popen(command, **pipes, text=True, env=environment(), start_new_session=True) as process:
            output = ""
            for line in process.stdout:
                output += line
                if "'anchor_loss'" in line:
                    os.killpg(process.pid, signal.SIGINT)
                    break
            output += process.stdout.read()
        assert process.returncode == 130, output
        assert "Traceback" not in output
        if num_processes == 1:  # as without a launcher
            (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
            assert f"Left: {checkpoint}" in output
            more = str(int(checkpoint.name.removeprefix("checkpoint-")) + 2)
            assert main(["sft", "--config", config, "--resume_from_checkpoint", "true", "--max_steps", more]) == 0
