# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""One run a folder: while it lasts, and in what it leaves there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME
from trl_sbr.hub.cards import CARD_NAME
from trl_sbr.hub.folder import collect_files
from trl_sbr.trainers.output_folder import LOCK_NAME, check_is_free, lock_folder
from trl_sbr.trainers.run_record import RECORD_NAME, check_folder

from ..releases import trains_in_a_process_of_its_own
from ..tiny import build_refusing_model
from .test_sbr_sft_trainer import LORA, capture, make_trainer


ROOT = Path(__file__).parents[2]


def trainer_in(folder, lora=True, **kwargs):
    peft_config = LoraConfig(**LORA) if lora else None
    return make_trainer(folder, build_refusing_model(), peft_config=peft_config, **{"max_steps": 1, **kwargs})


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What four runs left: protected or not, an adapter or a model."""
    path = tmp_path_factory.mktemp("folders")
    for name, coef, lora in (
        ("protected adapter", 50.0, True),
        ("protected model", 50.0, False),
        ("adapter", 0.0, True),
        ("model", 0.0, False),
    ):
        trainer = trainer_in(path / name, lora, anchor_loss_coef=coef)
        trainer.train()
        trainer.save_model()
    return path


class TestRecord:
    @pytest.mark.parametrize("name", ["protected adapter", "protected model", "adapter", "model"])
    def test_names_what_was_saved_and_nothing_else(self, folders, name):
        record = check_folder(folders / name)
        weights = "adapter_model.safetensors" if "adapter" in name else "model.safetensors"
        anchor = {CONFIG_NAME, TENSOR_NAME} if "protected" in name else set()
        assert set(record["files"]) == {weights} | anchor

    def test_of_a_model_in_shards(self, tmp_path):
        trainer = trainer_in(tmp_path, lora=False)
        save = trainer.model.save_pretrained
        trainer.model.save_pretrained = lambda *args, **kwargs: save(*args, max_shard_size="20KB", **kwargs)
        trainer.save_model()
        shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
        assert len(shards) > 1
        assert set(check_folder(tmp_path)["files"]) == {
            *shards,
            "model.safetensors.index.json",
            CONFIG_NAME,
            TENSOR_NAME,
        }
        (tmp_path / shards[0]).write_bytes((tmp_path / shards[1]).read_bytes())
        with pytest.raises(ValueError, match=f"{shards[0]} is not of the training"):
            check_folder(tmp_path)

    @pytest.mark.parametrize(
        "stranger", ["model.safetensors", "model-00001-of-00002.safetensors", "adapter_model.bin"]
    )
    def test_weights_that_it_does_not_name(self, folders, tmp_path, stranger):
        folder = shutil.copytree(folders / "protected adapter", tmp_path / "run")
        save_file({"x": torch.ones(1)}, folder / stranger)
        with pytest.raises(ValueError, match=f"{stranger} is not of the training .* names no such file"):
            check_folder(folder)

    def test_of_an_adapter_with_a_name(self, tmp_path):
        model = get_peft_model(build_refusing_model(), LoraConfig(**LORA), adapter_name="mine")
        trainer = make_trainer(tmp_path, model, max_steps=1)
        trainer.train()
        trainer.save_model()
        weights = "mine/adapter_model.safetensors"
        assert set(check_folder(tmp_path)["files"]) == {weights, CONFIG_NAME, TENSOR_NAME}
        assert {weights, "mine/adapter_config.json"} <= collect_files(tmp_path, "org/mine").keys()
        (tmp_path / weights).write_bytes(b"half")
        with pytest.raises(ValueError, match=f"{weights} is not of the training"):
            collect_files(tmp_path, "org/mine")

    def test_anchor_beside_an_unprotected_model(self, folders, tmp_path):
        folder = shutil.copytree(folders / "adapter", tmp_path / "run")
        for name in (CONFIG_NAME, TENSOR_NAME):
            shutil.copy(folders / "protected adapter" / name, folder)
        with pytest.raises(ValueError, match="safety_anchor.* is not of the training .* names no such file"):
            check_folder(folder)

    def test_card_of_a_running_training_vouches_for_nothing(self, folders, tmp_path):
        folder = shutil.copytree(folders / "protected adapter", tmp_path / "run")
        before = contents(folder)
        trainer = trainer_in(folder, max_steps=2, save_strategy="steps", save_steps=1, anchor_loss_coef=200.0)
        trainer.train()  # asks for a card at each checkpoint
        trainer.create_model_card(tags=["mine"])
        assert {path: data for path, data in contents(folder).items() if path.parent == folder} == before
        assert "200.0" in (folder / "checkpoint-2" / CARD_NAME).read_text()
        trainer.save_model()
        trainer.create_model_card(tags=["mine"])
        assert check_folder(folder)["tags"] == ["mine"]
        assert "200.0" in (folder / CARD_NAME).read_text()
        trainer.train()  # on from there: what lies in the folder is not what is trained now
        trainer.create_model_card(tags=["other"])
        assert check_folder(folder)["tags"] == ["mine"]


class TestWhatLiesThere:
    @pytest.mark.parametrize(
        ("there", "lora", "found"),
        [
            ("model", True, "model.safetensors"),
            ("protected model", True, "model.safetensors"),
            ("adapter", False, "adapter_model.safetensors"),
            ("protected adapter", False, "adapter_model.safetensors"),
        ],
    )
    def test_weights_of_the_other_kind_raise_before_anything_is_trained(self, folders, tmp_path, there, lora, found):
        folder = shutil.copytree(folders / there, tmp_path / "run")
        before = contents(folder)
        trainer = trainer_in(folder, lora)
        with pytest.raises(FileExistsError, match=f"Found `{found}` in .* Choose another"):
            trainer.train()
        # Nor are they saved over, in that folder or in any other
        for save in (trainer.save_model, lambda: trainer_in(tmp_path / "new", lora).save_model(str(folder))):
            with pytest.raises(FileExistsError, match=f"Found `{found}` in"):
                save()
        assert contents(folder) == before

    @pytest.mark.parametrize("there", ["protected adapter", "checkpoint"])
    @pytest.mark.parametrize("named", [str, Path])
    def test_unprotected_model_is_not_saved_beside_an_anchor(self, folders, tmp_path, there, named):
        folder = tmp_path / "run"
        shutil.copytree(folders / "protected adapter", folder / "checkpoint-3" if there == "checkpoint" else folder)
        before = contents(folder)
        trainer = trainer_in(tmp_path / "other", anchor_loss_coef=0.0)
        with pytest.raises(FileExistsError, match="would look protected"):
            trainer.save_model(named(folder))
        assert contents(folder) == before

    def test_anchor_that_was_captured_there_is_not_replaced(self, tmp_path):
        anchor = capture(build_refusing_model(), ["My prompt?"])
        anchor.save_pretrained(tmp_path)
        before = contents(tmp_path)
        trainer = trainer_in(tmp_path)
        for save in (trainer.train, trainer.save_model, lambda: trainer_in(tmp_path / "o").save_model(str(tmp_path))):
            with pytest.raises(FileExistsError, match="Found another safety anchor in .* Choose another `output_dir`"):
                save()
        assert {path: data for path, data in contents(tmp_path).items() if path.parent == tmp_path} == before
        # Trained with it, the run may lie beside it; and another run over that one
        for given in ({"anchor_name_or_path": str(tmp_path)}, {}):
            trainer = trainer_in(tmp_path, **given)
            trainer.train()
            trainer.save_model()
            check_folder(tmp_path)

    def test_run_of_the_same_kind_may_follow(self, folders, tmp_path):
        folder = shutil.copytree(folders / "adapter", tmp_path / "run")
        trainer = trainer_in(folder)
        trainer.train()
        trainer.save_model()
        assert set(check_folder(folder)["files"]) == {"adapter_model.safetensors", CONFIG_NAME, TENSOR_NAME}


RUN = """
    from tests.trainers.test_output_folder import *
    from transformers import TrainerCallback

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            print("step", flush=True)

    trainer = trainer_in("run", max_steps=100_000, callbacks=[Report()], dataloader_num_workers=WORKERS)
    trainer.train()
"""


def start(folder, workers=0):
    """A run in a process of its own, that is training when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(RUN.replace("WORKERS", str(workers)))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    )
    output = ""
    for line in process.stdout:
        output += line
        if line == "step\n":
            return process
    raise AssertionError(output)


class TestLock:
    @trains_in_a_process_of_its_own
    def test_second_run_raises_and_touches_nothing(self, tmp_path):
        process = start(tmp_path)
        before = contents(tmp_path)
        try:
            for lora in (True, False):
                with pytest.raises(OSError, match="Another run is on in .*run.*Choose another `output_dir`"):
                    trainer_in(tmp_path / "run", lora)
            other = trainer_in(tmp_path / "other")  # and one that would end there
            with pytest.raises(OSError, match="Another run is on in"):
                other.save_model(str(tmp_path / "run"))
            assert {path: data for path, data in contents(tmp_path).items() if path in before} == before
            assert set(os.listdir(tmp_path / "run")) == {LOCK_NAME}
        finally:
            process.kill()
            process.wait()
        # The system has taken the lock from it, and the file is nobody's
        assert (tmp_path / "run" / LOCK_NAME).exists()
        trainer = trainer_in(tmp_path / "run")
        trainer.train()
        trainer.save_model()
        assert not list((tmp_path / "run").rglob(LOCK_NAME))

    @trains_in_a_process_of_its_own
    def test_run_begun_while_another_prepares(self, tmp_path):
        trainer = trainer_in(tmp_path / "run")
        process = start(tmp_path)
        try:
            with pytest.raises(OSError, match="Another run is on in"):
                trainer.train()
            assert trainer.state.global_step == 0
        finally:
            process.kill()
            process.wait()

    @trains_in_a_process_of_its_own
    def test_interrupted_run_gives_it_back(self, tmp_path):
        process = start(tmp_path)
        process.send_signal(signal.SIGINT)
        output = process.communicate()[0]
        assert "Interrupted: saving a checkpoint" in output
        assert not (tmp_path / "run" / LOCK_NAME).exists()

    @pytest.mark.slow
    def test_killed_run_with_workers(self, tmp_path):
        process = start(tmp_path, workers=2)
        process.kill()
        process.wait()
        for _ in range(30):  # the workers look for their parent now and then
            try:
                check_is_free(tmp_path / "run", True)
                break
            except OSError:
                subprocess.run(["sleep", "1"])
        trainer_in(tmp_path / "run").train()

    def test_failed_run_gives_it_back(self, tmp_path):
        trainer = trainer_in(tmp_path)
        with pytest.raises(ValueError, match="No valid checkpoint"):
            trainer.train(resume_from_checkpoint=True)
        assert not (tmp_path / LOCK_NAME).exists()

    def test_is_taken_once_more_by_its_holder(self, tmp_path):
        with lock_folder(tmp_path, True):
            trainer = trainer_in(tmp_path, anchor_loss_coef=0.0)
            trainer.save_model()
            assert (tmp_path / LOCK_NAME).exists()
        assert not (tmp_path / LOCK_NAME).exists()

    def test_process_that_does_not_write_holds_none(self, tmp_path):
        with lock_folder(tmp_path / "run", False):
            assert not (tmp_path / "run").exists()

    def test_look_leaves_no_trace(self, tmp_path):
        check_is_free(tmp_path / "run", True)
        assert not (tmp_path / "run").exists()
        check_is_free(tmp_path, True)
        assert not list(tmp_path.iterdir())

    def test_folder_that_cannot_be_written_to(self, tmp_path):
        (tmp_path / "run").write_text("a file")
        with pytest.raises(OSError, match="Cannot write to .*run"):
            with lock_folder(tmp_path / "run", True):
                pass


class TestTraces:
    def test_anchor_that_cannot_be_found_leaves_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            trainer_in(tmp_path / "run", anchor_name_or_path=str(tmp_path / "nowhere"))
        assert not (tmp_path / "run").exists()

    def test_card_is_written_before_the_record(self, folders):
        folder = folders / "protected adapter"
        last = max(contents(folder), key=lambda path: path.stat().st_mtime_ns)
        assert last.name == RECORD_NAME
        assert json.loads(last.read_text())["training"]["steps"] == 1
        assert (folder / CARD_NAME).exists()
