# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Runs that are cut off: Ctrl-C leaves a checkpoint, and one that a kill left half-written is passed over."""

import re
import signal
import threading
import zipfile
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from .run_record import RECORD_NAME, check_folder


logger = logging.get_logger(__name__)


class CheckpointOnInterrupt(TrainerCallback):
    """
    While active as a context manager, a first SIGINT lets the running step or evaluation end, saves a checkpoint and stops
    training; a second one interrupts at once. Where all steps are done, training ends by itself, as it would have. Where
    signals cannot be handled (another thread than the main one), it does nothing.
    """

    def __init__(self):
        self.requested = False  # a signal came in this training
        self.stopping = False  # and ends it before its last step
        self.stopped = False  # and a checkpoint has been saved since
        self._previous = None

    def _handle(self, signum, frame):
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
        logger.warning("Interrupted: saving a checkpoint after this step. Interrupt again to stop at once.")

    def __enter__(self):
        self.requested = self.stopping = self.stopped = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc):
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None  # the next training may be in another thread
        if self.requested and not self.stopping and exc[0] is None:
            logger.warning(
                "All steps were done when the run was interrupted: it ends as it would have, and can be saved."
            )
        self.requested = False  # an evaluation after this training stops nothing

    def on_step_end(self, args, state, control, **kwargs):
        if self.requested and state.global_step < state.max_steps:
            self.stopping = control.should_save = control.should_training_stop = True

    on_evaluate = on_step_end

    def on_save(self, args, state, control, **kwargs):
        if self.requested and state.global_step < state.max_steps:
            self.stopping = self.stopped = control.should_training_stop = True


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, the first one first. Folders of other names than the run gives are none of them."""
    numbered = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = re.fullmatch("checkpoint-([0-9]+)", folder.name)
        if step is not None and folder.is_dir():
            numbered[folder] = int(step[1])
    return sorted(numbered, key=numbered.get)


def find_last_checkpoint(output_dir: str | Path) -> str:
    """
    Find the last complete checkpoint of a run. Those that were left half-written, or damaged since, are passed over with
    a warning that says why.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.

    Returns:
        `str`: Folder of the checkpoint.

    Raises:
        ValueError: If there is none.
    """
    for checkpoint in reversed(list_checkpoints(output_dir)):
        try:
            check_checkpoint(checkpoint)
        except (OSError, ValueError) as error:
            logger.warning(f"Passed over {checkpoint}, which was left half-written or was damaged: {error}")
            continue
        return str(checkpoint)
    raise ValueError(f"No valid checkpoint found in {output_dir}, so there is nothing to resume. Start the run anew.")


def check_checkpoint(checkpoint: Path) -> None:
    """
    Make sure that a checkpoint is whole: the state that `Trainer` writes last, the files of torch that it writes before,
    and what belongs together by the run's record (that of a plain [`~trl.SFTTrainer`] has none).

    Raises:
        OSError: If a file is missing.
        ValueError: If one was cut off, or changed.
    """
    state = checkpoint / TRAINER_STATE_NAME
    if not state.is_file():
        raise FileNotFoundError(f"It has no `{TRAINER_STATE_NAME}`.")
    try:
        TrainerState.load_from_json(str(state))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Its `{TRAINER_STATE_NAME}` cannot be read: {error}.") from error
    for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        if not zipfile.is_zipfile(path):  # the index stands at the end
            raise ValueError(f"Its `{path.name}` was cut off.")
    if (checkpoint / RECORD_NAME).exists():
        check_folder(checkpoint)
