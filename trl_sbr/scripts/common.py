# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""What the commands share: the same arguments read in the same way."""

import difflib
from pathlib import Path

from trl_sbr.recipes import resolve_config


def parse_strictly(dataclass_types: tuple, command: str, description: str, argv: list[str]) -> tuple:
    """
    Parses a command line and the YAML file or recipe that it names with [`~trl.TrlParser`]. A key or a flag that nobody
    knows is an error: a misspelt λ must not train at the default.

    Args:
        dataclass_types (`tuple[type]`):
            The dataclasses whose fields are the keys and flags.
        command (`str`):
            Name of the command, for the help text.
        description (`str`):
            What the command does, for the help text.
        argv (`list[str]`):
            The command line.

    Returns:
        `tuple`:
            An instance of each dataclass.
    """
    from trl import TrlParser

    parser = TrlParser(
        dataclass_types,
        prog=f"trl-sbr {command}",
        usage=f"trl-sbr {command} [--config FILE_OR_RECIPE_NAME] [--any_field value ...]",
        description=description,
        allow_abbrev=False,
    )
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    known = {action.dest for action in parser._actions}
    line = list(argv)
    if "--config" in argv:
        position = argv.index("--config") + 1
        if position == len(argv):
            raise ValueError("`--config` needs the path of a YAML file or the name of a recipe.")
        path = resolve_config(argv[position])
        argv[position] = str(path)
        del line[position - 1 : position + 1]
        _check_keys(path, known)

    # Before the dataclasses look at their values: of two errors, the unknown flag explains the other
    _, unknown = parser.parse_known_args(line)
    if unknown:
        flags = [arg for arg in unknown if arg.startswith("-")] or unknown
        hints = [_did_you_mean(flag.split("=")[0].lstrip("-").replace("-", "_"), known, "--") for flag in flags]
        raise ValueError(f"Unknown argument{_list(flags, hints)} `trl-sbr {command} --help` lists all.")

    try:
        return parser.parse_args_and_config(argv)
    except ValueError as error:
        if "bf16/gpu" in str(error):
            raise ValueError(
                f"{error} TRL trains in bfloat16 unless told otherwise; on a CPU add `--use_cpu true --bf16 false`."
            ) from error
        raise


def _check_keys(path: Path, known: set[str]):
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a YAML mapping (`key: value` lines), found {type(config).__name__}.")
    unknown = [str(key) for key in config if key not in known | {"env"}]
    if unknown:
        raise ValueError(f"Unknown key{_list(unknown, [_did_you_mean(key, known, '') for key in unknown])} In {path}.")


def _did_you_mean(name: str, known: set[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, known, n=2)
    return f" (did you mean {' or '.join(f'`{prefix}{match}`' for match in close)}?)" if close else ""


def _list(names: list[str], hints: list[str]) -> str:
    named = ", ".join(f"`{name}`{hint}" for name, hint in zip(names, hints, strict=True))
    return f"{'s' if len(names) > 1 else ''}: {named}."


def check_model_name(model_args):
    if model_args.model_name_or_path is None:
        raise ValueError("No model: give `model_name_or_path`, a folder or the name of a model on the Hub.")
