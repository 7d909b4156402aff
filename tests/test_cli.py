# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import logging
import subprocess
import sys

import pytest

from trl_sbr import __version__
from trl_sbr.cli import COMMANDS, main, run
from trl_sbr.recipes import find_recipe, recipe_names


class TestHelp:
    @pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
    def test_names_every_command(self, argv, capsys):
        assert main(argv) == 0
        output = capsys.readouterr().out
        assert all(f"  {name} " in output for name in COMMANDS)

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"trl_sbr {__version__}\n"

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_each_command(self, name, capsys):
        with pytest.raises(SystemExit) as error:
            main([name, "--help"])
        assert error.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: trl-sbr {name}")

    @pytest.mark.parametrize(
        ("name", "there", "not_there"),
        [
            ("sft", {"anchor_loss_coef", "lora_r", "learning_rate", "bf16"}, {"verify", "judge"}),
            ("anchor", {"verify", "anchor_prompts", "dtype", "load_in_4bit"}, {"lora_r", "learning_rate", "packing"}),
            ("evaluate", {"judge", "prompts", "dtype", "load_in_4bit"}, {"lora_r", "use_peft", "use_dora", "bf16"}),
        ],
    )
    def test_shows_what_the_command_takes(self, name, there, not_there, capsys):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        output = capsys.readouterr().out
        shown = {word.strip(",").removeprefix("--") for word in output.split() if word.startswith("--")}
        assert there <= shown
        assert not not_there & shown

    @pytest.mark.parametrize("line", ["import trl_sbr", "from trl_sbr.cli import main; main(['--help'])"])
    def test_imports_nothing_heavy(self, line):
        code = f"import sys, json; {line}; print(json.dumps(sorted(sys.modules)))"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        modules = set(json.loads(output.splitlines()[-1]))
        assert not modules & {"torch", "trl", "transformers", "peft", "datasets", "numpy", "huggingface_hub", "yaml"}


class TestErrors:
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["sfr"], "error: `sfr` is not a command of trl-sbr: did you mean `sft`?"),
            (["quux"], f"error: `quux` is not a command of trl-sbr: the commands are {', '.join(COMMANDS)}."),
            (
                ["recipes", "show", "smollm2-135m"],
                "error: `smollm2-135m` is not a recipe: did you mean `smollm2-135m-instruct/sbr",
            ),
        ],
    )
    def test_one_line_and_exit_code_2(self, argv, message, capsys):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(message)
        assert captured.err.count("\n") == 1
        assert captured.out == ""

    def test_one_of_several_processes_says_it(self, tmp_path, monkeypatch, capsys):
        for attempt, rank, lines in ((0, 1, 1), (0, 0, 0), (1, 0, 1)):
            folder = tmp_path / f"attempt_{attempt}" / str(rank)
            folder.mkdir(parents=True)
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))  # as torch's launcher sets it
            assert main(["recipes", "show", "smollm2"]) == 2
            assert capsys.readouterr().err.count("error: ") == lines

    @pytest.mark.parametrize("fault", [ZeroDivisionError("by 0"), KeyError("name"), RuntimeError("shapes")])
    def test_what_nobody_foresaw_keeps_its_traceback_and_says_where_to_report_it(self, fault):
        def command(argv):
            raise fault

        with pytest.raises(type(fault)) as error:
            run(command, [])
        (note,) = error.value.__notes__
        assert "fault of ours" in note and "Report it to the maintainers" in note and __version__ in note

    def test_training_that_blows_up_is_one_line(self, capsys):
        def command(argv):
            raise FloatingPointError("Found a loss of nan")

        assert run(command, []) == 2
        assert capsys.readouterr().err == "error: Found a loss of nan\n"

    def test_traceback_on_request(self, monkeypatch):
        monkeypatch.setenv("TRL_SBR_DEBUG", "1")
        with pytest.raises(ValueError, match="is not a recipe"):
            main(["recipes", "show", "smollm2"])


class TestSilence:
    """bitsandbytes, which PEFT imports wherever it is installed, advertises a kernel."""

    @pytest.mark.parametrize("argv", [["sft", "--help"], ["anchor", "--help"], ["recipes"]])
    def test_nothing_on_stderr(self, argv):
        command = [sys.executable, "-m", "trl_sbr.cli", *argv]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""

    def test_its_other_warnings_are_heard(self, caplog):
        main(["recipes"])
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("another")
        assert "another" in caplog.text


class TestRecipes:
    def test_table(self, capsys):
        assert main(["recipes"]) == 0
        output = capsys.readouterr().out
        assert all(f"\n{name} " in output for name in recipe_names())
        row = next(line for line in output.splitlines() if line.startswith("llama-3.1-8b-instruct/sbr_qlora"))
        assert row.split()[1:3] == ["meta-llama/Llama-3.1-8B-Instruct", "QLoRA"]
        assert "the paper's settings" in row

    def test_show(self, capsys):
        assert main(["recipes", "show", "gemma-1.1-7b-it/sbr_lora"]) == 0
        assert capsys.readouterr().out == find_recipe("gemma-1.1-7b-it/sbr_lora").read_text()

    @pytest.mark.parametrize("destination", [None, "folder", "folder/mine.yaml"])
    def test_copy(self, destination, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["recipes", "copy", "gemma-1.1-7b-it/sbr_lora", *([destination] if destination else [])]) == 0
        path = {None: "sbr_lora.yaml", "folder": "folder/sbr_lora.yaml"}.get(destination, destination)
        assert (tmp_path / path).read_text() == find_recipe("gemma-1.1-7b-it/sbr_lora").read_text()
        output = capsys.readouterr().out
        assert f"Wrote {path}." in output
        assert f"Next: trl-sbr sft --config {path}" in output

    def test_copy_of_a_recipe_to_harden_with(self, tmp_path, capsys):
        path = tmp_path / "mine.yaml"
        assert main(["recipes", "copy", "gemma-1.1-7b-it/harden_lora", str(path)]) == 0
        assert f"Next: trl-sbr harden --config {path}" in capsys.readouterr().out

    def test_copy_of_a_grid(self, tmp_path, capsys):
        path = tmp_path / "mine.yaml"
        assert main(["recipes", "copy", "stress/quick", str(path)]) == 0
        assert f"Next: trl-sbr stress --config {path} --output_dir OUTPUT_DIR" in capsys.readouterr().out
        assert main(["stress", "--config", str(path), "--output_dir", str(tmp_path / "out"), "--dry_run"]) == 0

    def test_copy_never_overwrites(self, tmp_path, capsys):
        path = tmp_path / "mine.yaml"
        path.write_text("mine")
        assert main(["recipes", "copy", "gemma-1.1-7b-it/sbr_lora", str(path)]) == 2
        assert "is there already" in capsys.readouterr().err
        assert path.read_text() == "mine"
