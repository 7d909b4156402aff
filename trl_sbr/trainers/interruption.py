# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Runs that are cut off: Ctrl-C leaves a checkpoint, and one that a kill left half-written is passed over."""

import signal
import threading
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging


logger = logging.get_logger(__name__)


class CheckpointOnInterrupt(TrainerCallback):
    """
    While active as a context manager, a first SIGINT lets the running step end, saves a checkpoint and stops training;
    a second one interrupts at once. Where signals cannot be handled (another thread than the main one), it does
    nothing.
    """

    def __init__(self):
        self.requested = False  # a signal came
        self.stopped = False  # and a step has ended since, after which a checkpoint is saved
        self._previous = None

    def _handle(self, signum, frame):
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
        logger.warning("Interrupted: saving a checkpoint after this step. Interrupt again to stop at once.")

    def __enter__(self):
        self.requested = self.stopped = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc):
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def on_step_end(self, args, state, control, **kwargs):
        if self.requested:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True


def find_last_checkpoint(output_dir: str | Path) -> str:
    """
    Find the last complete checkpoint of a run.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.

    Returns:
        `str`: Folder of the checkpoint.

    Raises:
        ValueError: If there is none.
    """
    checkpoints = sorted(Path(output_dir).glob("checkpoint-*[0-9]"), key=lambda p: int(p.name.rpartition("-")[2]))
    for checkpoint in reversed(checkpoints):
        if (checkpoint / TRAINER_STATE_NAME).is_file():  # `Trainer` writes it last
            return str(checkpoint)
        logger.warning(f"Passed over {checkpoint}, which was left half-written: it has no `{TRAINER_STATE_NAME}`.")
    raise ValueError(f"No valid checkpoint found in {output_dir}, so there is nothing to resume. Start the run anew.")
