# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
The command `trl-sbr COMMAND ...`: finds the script of that name in `trl_sbr/scripts/` and hands it the rest of the line.

Nothing heavy is imported here, so that `trl-sbr --help` answers at once.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable

from trl_sbr import __version__


COMMANDS = {
    "anchor": "capture a model's safety anchor, verify a model against one, or show what one holds",
    "harden": "make an aligned model refuse where its answer has been begun for it, before fine-tuning",
    "sft": "fine-tune with Safety Bottleneck Regularization: TRL's SFT, and the refusals stay",
    "dpo": "the same with preference pairs: TRL's DPO",
    "grpo": "the same with rewards: TRL's GRPO",
    "evaluate": "measure how harmful, how over-cautious and how useful models are, side by side",
    "stress": "attacks × defences: fine-tune under each, and see what holds",
    "push": "push an adapter or model with its anchor and card, an anchor, or the metric, to the Hub",
    "recipes": "list, show or copy the recipes that come with the package",
    "demo": "the whole story on a small chat model: poisoned fine-tuning with and without SBR",
}

HELP = f"""\
usage: trl-sbr COMMAND [...]

Safety Bottleneck Regularization (https://huggingface.co/papers/2605.05995) for TRL.

commands:
{chr(10).join(f"  {name:9} {text}" for name, text in COMMANDS.items())}

options:
  --help    this text; `trl-sbr COMMAND --help` for a command's own
  --version

On several GPUs: trl-sbr sft --num_processes 4 ..., or accelerate launch -m trl_sbr.scripts.COMMAND ...
An error is printed without its traceback; TRL_SBR_DEBUG=1 shows that too."""


def main(argv: list[str] | None = None) -> int:
    """
    Runs one command.

    Args:
        argv (`list[str]`, *optional*):
            The command and its arguments; `sys.argv[1:]` by default.

    Returns:
        `int`:
            The exit code: 0 done, 1 the command's answer is no (a verification that failed), 2 something is wrong with
            what was asked for, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if argv[0] == "--version":
        print(f"trl_sbr {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"the commands are {', '.join(COMMANDS)}."
        return _error(f"`{name}` is not a command of trl-sbr: {hint}")
    return run(lambda rest: importlib.import_module(f"trl_sbr.scripts.{name}").main(rest), rest)


def run(command: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """
    Runs what a command does, and prints an error as one line.

    Args:
        command (`Callable[[list[str]], int | None]`):
            What to run.
        argv (`list[str]`):
            Its arguments.

    Returns:
        `int`:
            The exit code, as [`main`] returns it.
    """
    import logging

    # PEFT imports bitsandbytes wherever it is installed, which then asks for a kernel that few of our users need
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
        lambda record: "from kernels-community" not in record.getMessage()
    )
    try:
        return command(argv) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    # What our own checks and those of TRL and its relatives raise at wrong input, missing files and missing packages, and at a
    # training that blows up
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("TRL_SBR_DEBUG"):
            raise
        return _error(str(error) or type(error).__name__)
    except Exception as error:
        error.add_note(
            f"trl_sbr {__version__} did not foresee this error: unless its text says what to do, it is a fault of ours. Report it "
            "to the maintainers of trl_sbr, with the command and all of these lines."
        )
        raise


def _error(message: str) -> int:
    if _is_first_to_fail():
        print(f"error: {message}", file=sys.stderr)
    return 2


def _is_first_to_fail() -> bool:
    """Of the processes that `accelerate launch` started on a machine, one says what all of them ran into."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # .../RANK/error.json, in a folder of this run
    if error_file is None:
        return True
    try:
        open(os.path.join(os.path.dirname(error_file), os.pardir, "trl_sbr_failed"), "x").close()
    except FileExistsError:
        return False
    except OSError:  # no such folder: rather twice than never
        pass
    return True


if __name__ == "__main__":
    sys.exit(main())
