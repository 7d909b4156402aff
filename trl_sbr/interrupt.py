# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that leaves a checkpoint."""

import signal
import threading

from transformers import TrainerCallback
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
