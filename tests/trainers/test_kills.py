# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Real processes, killed at each step of a save: what they leave is one run's, whole, or it is refused in one clear line;
and the same run, repeated, finishes the work.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trl_sbr.hub.cards import CARD_NAME
from trl_sbr.hub.folder import collect_files
from trl_sbr.trainers.interruption import find_last_checkpoint
from trl_sbr.trainers.output_folder import LOCK_NAME
from trl_sbr.trainers.run_record import RECORD_NAME, hash_files, read_record


ROOT = Path(__file__).parents[2]

EARLIER = {"learning_rate": 1e-3, "anchor_prompts": ["Do harm!"]}
LATER = {"learning_rate": 1e-2, "anchor_prompts": ["Do worse!"]}
SAVE = {"save_strategy": "steps", "save_steps": 1}

# Sizes are in bytes: the weights have some 16 000, and are the first to be written
KILLS = {
    "before": ["open", ".sbr_run.lock"],
    "within the weights": 4096,
    "after the weights": ["open", "adapter_config.json"],
    "before the anchor": ["open", ".trl_sbr_tmp"],
    "before its first file": ["os.rename", "safety_anchor.safetensors"],
    "between its files": ["os.rename", "safety_anchor_config.json"],
    "before the card": ["os.rename", "README.md"],
    "before the record": ["os.rename", RECORD_NAME],
    "after the record": ["os.remove", ".sbr_run.lock"],
}
KILLS_OF_A_CHECKPOINT = {
    "before": ["os.remove", "checkpoint-2/trainer_state.json"],
    "after the weights": ["open", "checkpoint-2/adapter_config.json"],
    "before the record": ["os.rename", f"checkpoint-2/{RECORD_NAME}"],
    "before the optimizer": ["os.remove", "checkpoint-2/.sbr_run.lock"],
    "before the state": ["open", "checkpoint-2/trainer_state.json"],
}


@pytest.fixture(scope="module")
def worker():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.trainers.kill_worker"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def run(worker):
    """Train in a process of its own: `run(folder, settings, kill=...)`. Returns whether it was killed."""

    def run(folder, settings, kill=None, saves="model", lora=True):
        job = {"folder": str(folder), "settings": settings, "kill": kill, "saves": saves, "lora": lora}
        worker.stdin.write(json.dumps(job) + "\n")
        worker.stdin.flush()
        code = int(worker.stdout.readline())
        assert (code == 0) == (kill is None), code
        assert code in (0, -9, -25), code  # SIGKILL, SIGXFSZ
        return code != 0

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """Folders of both runs, which nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    for lora in (True, False):
        for name, settings in (("earlier", EARLIER), ("later", LATER)):
            run(folder / f"{name}-{lora}", {**settings, **SAVE}, lora=lora)
    return folder


def pushed(folder):
    """Hashes of the weights and of the anchor that a push would publish; `None` if it is refused in one clear line."""
    try:
        files = collect_files(folder, "org/adapter")
    except (OSError, ValueError) as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return None
    assert {CARD_NAME, RECORD_NAME} <= files.keys()
    assert not [name for name in files if name.startswith(".")]
    return hash_files(folder)


@pytest.mark.slow  # all together
class TestKills:
    @pytest.mark.parametrize(
        ("lora", "kill"),
        [*((True, kill) for kill in KILLS), (False, "within the weights"), (False, "before the record")],
    )
    @pytest.mark.parametrize("over_an_earlier_run", [False, True])
    def test_of_a_save(self, run, whole, tmp_path, lora, kill, over_an_earlier_run):
        folder = tmp_path / "run"
        earlier, later = (hash_files(whole / f"{name}-{lora}") for name in ("earlier", "later"))
        assert not set(earlier.values()) & set(later.values())
        if over_an_earlier_run:
            shutil.copytree(whole / f"earlier-{lora}", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
        run(folder, LATER, KILLS[kill] if lora or kill != "within the weights" else 20_000, lora=lora)
        found = pushed(folder)
        before = earlier if over_an_earlier_run else None
        expected = {"before": [before], "after the record": [later]}
        expected["within the weights"] = [None, before]  # safetensors 0.8 writes them under another name first
        assert found in expected.get(kill, [None])
        # The same run again, over what was left
        run(folder, LATER, lora=lora)
        assert pushed(folder) == later
        assert not [*folder.rglob("*.trl_sbr_tmp"), *folder.rglob(LOCK_NAME)]

    @pytest.mark.parametrize("kill", KILLS_OF_A_CHECKPOINT)
    @pytest.mark.parametrize("over_an_earlier_run", [False, True])
    def test_of_a_checkpoint(self, run, whole, tmp_path, kill, over_an_earlier_run):
        folder = tmp_path / "run"
        if over_an_earlier_run:
            shutil.copytree(whole / "earlier-True", folder)
        run(folder, {**LATER, **SAVE}, KILLS_OF_A_CHECKPOINT[kill], saves="checkpoints")
        last = Path(find_last_checkpoint(folder))
        # Of the run that was killed, or, whole, of the one before
        run_of = "earlier-True" if over_an_earlier_run and kill == "before" else "later-True"
        assert last.name == ("checkpoint-2" if run_of == "earlier-True" else "checkpoint-1")
        reference = whole / run_of / last.name
        assert hash_files(last) == hash_files(reference)
        optimizers = [torch.load(path / "optimizer.pt")["state"] for path in (last, reference)]
        for found, expected in zip(optimizers[0].values(), optimizers[1].values(), strict=True):
            assert all(torch.equal(torch.as_tensor(found[name]), torch.as_tensor(expected[name])) for name in expected)
        if run_of == "earlier-True":
            return
        run(folder, {**LATER, **SAVE, "resume_from_checkpoint": "true"}, saves="model")
        assert pushed(folder) == hash_files(whole / "later-True")
        assert read_record(folder / RECORD_NAME)["training"]["steps"] == 2
        assert not list(folder.rglob(LOCK_NAME))
