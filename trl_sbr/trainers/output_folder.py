# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The folder that a run writes to: its own while it lasts, and free of what would pass for its work."""

import contextlib
import fnmatch
from collections.abc import Iterator
from pathlib import Path

from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..anchors.anchor_files import CONFIG_NAME, read_config
from ..anchors.safety_anchor import SafetyAnchor
from .run_record import ADAPTER_WEIGHTS, MODEL_WEIGHTS, RECORD_NAME, find_weights


LOCK_NAME = ".sbr_run.lock"


@contextlib.contextmanager
def lock_folder(folder: Path, is_writer: bool, all_are_here: bool = False) -> Iterator[None]:
    """
    Keep all other runs out of a folder. The process that writes holds the lock; the system takes it from one that is
    killed.

    Args:
        folder (`Path`):
            Folder of the run, made if need be.
        is_writer (`bool`):
            Whether this process is the one that writes.
        all_are_here (`bool`, *optional*, defaults to `False`):
            Whether every process of the run comes here: then all raise with the one that writes, rather than wait for it.

    Raises:
        OSError: If another run is on in that folder, or it cannot be written to.
    """
    failure, lock = None, None
    if is_writer:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # One a path: whoever holds it in this thread holds it once more
            lock = FileLock(folder.absolute() / LOCK_NAME, is_singleton=True)
            lock.acquire(timeout=0)
        except Timeout:
            failure = (
                f"Another run is on in {folder} (it holds `{LOCK_NAME}`): each would overwrite what the other saves. Choose "
                "another `output_dir`, or wait for its end; the workers of a run that was killed may need some seconds."
            )
        except OSError as error:
            failure = f"Cannot write to {folder}: {error}. Choose another `output_dir`."
    failures = gather_object([failure]) if all_are_here else [failure]
    failures = [found for found in failures if found is not None]
    try:
        if failures:
            raise OSError(failures[0])
        yield
    finally:
        if lock is not None and failure is None:
            if lock.lock_counter == 1:
                Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody else can hold it by this name
            lock.release()


def check_holds_no_anchor(folder: Path) -> None:
    """
    An unprotected model must not come to lie beside the anchor of another run, as if it were protected.

    Raises:
        FileExistsError: If an anchor lies in the folder or in a checkpoint there.
    """
    for config in [folder / CONFIG_NAME, *folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{CONFIG_NAME}")]:
        if config.exists():
            raise FileExistsError(
                f"Found the safety anchor of a protected run in {config.parent}, and `anchor_loss_coef` is 0: what this "
                "run saves there would look protected. Choose another `output_dir`."
            )


def check_holds_no_other_anchor(folder: Path, anchor: SafetyAnchor) -> None:
    """
    An anchor that was captured into a folder must not be replaced by that of a run. A run's own, beside what it saved, may be.

    Args:
        folder (`Path`):
            Where a run saves.
        anchor ([`SafetyAnchor`]):
            Its anchor.

    Raises:
        FileExistsError: If another anchor lies there by itself.
    """
    config = folder / CONFIG_NAME
    if not config.exists() or (folder / RECORD_NAME).exists() or find_weights(folder):
        return
    if read_config(config).tensor_sha256 != anchor.config.tensor_sha256:
        raise FileExistsError(
            f"Found another safety anchor in {folder} than this run's, which would replace it. Choose another `output_dir`, "
            f"train with that one (`anchor_name_or_path={folder}`), or move it elsewhere."
        )


def check_holds_no_other_weights(folder: Path, is_adapter: bool) -> None:
    """
    A model and an adapter must not come to lie in one folder: what is said of the one would be taken for the other's.

    Args:
        folder (`Path`):
            Where a run saves.
        is_adapter (`bool`):
            Whether it saves an adapter, or else a model.

    Raises:
        FileExistsError: If weights lie there that the run's own do not replace.
    """
    own = ADAPTER_WEIGHTS if is_adapter else MODEL_WEIGHTS
    others = sorted(name for name in find_weights(folder) if not any(fnmatch.fnmatch(name, p) for p in own))
    if others:
        raise FileExistsError(
            f"Found `{others[0]}` in {folder}, where this run saves {'an adapter' if is_adapter else 'a model'}: it would be "
            "taken for this run's. Choose another `output_dir`, or move it elsewhere."
        )


def check_holds_no_report(folder: Path) -> None:
    """
    The figures of an earlier model must not come to lie beside another one.

    Raises:
        FileExistsError: If a report lies there.
    """
    from ..hub.cards import REPORT_NAME

    if (folder / REPORT_NAME).exists():
        raise FileExistsError(
            f"Found the evaluation of an earlier run, `{REPORT_NAME}`, in {folder}: it would stand in the card of the "
            "model that this run saves there. Move it elsewhere, or choose another `output_dir`."
        )


def check_is_free(folder: Path, is_writer: bool) -> None:
    """
    Make sure, in every process of a run, that no other one is on in a folder. Leaves no trace.

    Raises:
        OSError: If one is.
    """
    with lock_folder(folder, is_writer and (folder / LOCK_NAME).exists(), all_are_here=True):
        pass
