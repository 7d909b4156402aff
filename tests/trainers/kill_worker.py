# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Imports all once, and trains in forks of its own, each of which is killed where its job says: at the first write, renaming
or removal of a file of that name, or within the file that is the first to grow beyond some bytes.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from tests.tiny import build_refusing_model
from tests.trainers.test_sbr_sft_trainer import LORA, LoraConfig, make_trainer


WRITES = {"os.rename": 1, "os.remove": 0, "open": 0}  # position of the path that is written


def kill_at(event: str, path: str) -> None:
    """Kills this process with the event of that kind whose path ends so."""

    def hook(kind, arguments):
        if kind == event and str(arguments[WRITES[kind]]).endswith(path):
            if kind != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_within(num_bytes: int) -> None:
    """Lets the system kill this process when a file that it writes grows beyond that size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def run(job: dict) -> None:
    folder = Path(job["folder"])
    model = build_refusing_model()
    trainer = make_trainer(
        folder, model, peft_config=LoraConfig(**LORA) if job["lora"] else None, max_steps=2, **job["settings"]
    )
    if job["saves"] == "checkpoints":
        arm(job)
    trainer.train(resume_from_checkpoint=job["settings"].get("resume_from_checkpoint") == "true")
    if job["saves"] == "model":
        arm(job)
        trainer.save_model()


def arm(job: dict) -> None:
    if isinstance(job["kill"], int):
        kill_within(job["kill"])
    elif job["kill"] is not None:
        kill_at(*job["kill"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run(json.loads(line))
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()
