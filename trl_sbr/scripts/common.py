# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""What the commands share: the same arguments read in the same way."""

import argparse
import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

from trl_sbr.anchors.untrusted_files import read_text
from trl_sbr.recipes import resolve_config


# The fields of `ModelConfig` that say how a model is loaded; the others are about training
LOADING_FIELDS = (
    "model_name_or_path",
    "model_revision",
    "dtype",
    "attn_implementation",
    "load_in_8bit",
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "bnb_4bit_quant_storage",
)


@dataclass
class MonitorArguments:
    """Whether, and how, a training is watched from outside, see [`SafetyMonitor`]."""

    monitor_steps: int | None = field(
        default=None,
        metadata={"help": "Number of steps between two measurements of the drift on held-out harmful prompts."},
    )
    refusals: bool = field(
        default=False, metadata={"help": "Whether the monitor also asks how many of these prompts are still refused."}
    )
    max_drift: float | None = field(
        default=None, metadata={"help": "Largest mean relative error on these prompts that the monitor lets pass."}
    )
    on_drift: str = field(
        default="warn", metadata={"help": "What the monitor does at a larger one.", "choices": ["warn", "stop"]}
    )

    def __post_init__(self):
        if self.monitor_steps is None and (self.refusals or self.max_drift or self.on_drift != "warn"):
            raise ValueError(
                "Found `refusals`, `max_drift` or `on_drift` without `monitor_steps`: nothing would be measured. Set it, too."
            )


def parse_strictly(
    dataclass_types: tuple, command: str, description: str, argv: list[str], shown: tuple[str, ...] | None = None
) -> tuple:
    """
    Parses a command line and the YAML file or recipe that it names. A key or a flag that nobody knows is an error: a
    misspelt λ must not train at the default. Where no GPU is there and none is asked for, the CPU is taken.

    Args:
        dataclass_types (`tuple[type]`):
            The dataclasses whose fields are the keys and flags.
        command (`str`):
            Name of the command, for the help text.
        description (`str`):
            What the command does, for the help text.
        argv (`list[str]`):
            The command line.
        shown (`tuple[str]`, *optional*):
            The fields that the help text shows, where it does not show all.

    Returns:
        `tuple`:
            An instance of each dataclass.
    """
    parser = make_parser(dataclass_types, command, description, shown)
    flags, config, path = read_command_line(argv)
    known = {action.dest for action in parser._actions}
    foreign = config.keys() - known
    if foreign and is_for_training(dataclass_types):
        from trl_sbr.scripts.launcher import launcher_options

        # Whoever launched this process has read them
        foreign -= launcher_options().keys()
    if foreign:
        raise unknown_keys(foreign, known, path)
    parser.set_defaults_with_config(**{key: value for key, value in config.items() if key in known})

    # Before the dataclasses look at their values: of two errors, the unknown flag explains the other
    namespace, unknown = parser.parse_known_args(flags)
    if unknown:
        raise unknown_flags(unknown, known, command)
    given = config.keys() | {flag.split("=")[0].lstrip("-").replace("-", "_") for flag in flags if flag[:1] == "-"}
    parser.set_defaults_with_config(**choose_device(namespace, given))
    try:
        return parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except (TypeError, ValueError) as error:
        if path is None and isinstance(error, TypeError):  # no value of the command line has another type
            raise
        hint = " `bf16` is on; on a CPU that is not made for it add `--use_cpu true --bf16 false`."
        hint = hint if "bf16/gpu" in str(error) else ""
        source = (
            "" if path is None else f" The values are those of {path} and of the command line: correct the one named."
        )
        raise ValueError(f"{error}{hint}{source}") from error


def spellings(name: str) -> tuple[str, ...]:
    """The flags of a field, as TRL's parser takes them: with underscores, and with dashes."""
    return tuple(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def make_parser(dataclass_types: tuple, command: str, description: str, shown: tuple[str, ...] | None = None):
    """Returns the [`~trl.TrlParser`] of a command. Its arguments are those of [`parse_strictly`]."""
    from trl import TrlParser

    parser = TrlParser(
        dataclass_types,
        prog=f"trl-sbr {command}",
        usage=f"trl-sbr {command} [--config FILE_OR_RECIPE_NAME] [--any_field value ...]",
        description=description,
        allow_abbrev=False,
    )
    for action in parser._actions if shown is not None else ():
        if action.dest not in (*shown, "help"):
            action.help = argparse.SUPPRESS
    return parser


def is_for_training(dataclass_types: tuple) -> bool:
    """Whether a command reads the recipes of a training, in which TRL allows the keys of a launcher too."""
    from transformers import TrainingArguments

    return any(issubclass(dataclass_type, TrainingArguments) for dataclass_type in dataclass_types)


def read_command_line(argv: list[str]) -> tuple[list[str], dict, Path | None]:
    """
    Reads the YAML file or recipe that a command line names, and sets the environment variables under its `env`.

    Args:
        argv (`list[str]`):
            The command line.

    Returns:
        `tuple[list[str], dict, Path | None]`: The command line without `--config`, what the file holds, and its path.
    """
    flags = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" not in flags:
        return flags, {}, None
    at = flags.index("--config")
    if at + 1 == len(flags):
        raise ValueError("`--config` needs the path of a YAML file or the name of a recipe.")
    path = resolve_config(flags[at + 1])
    config = read_yaml(path)
    env = config.pop("env", {})
    if not isinstance(env, dict):
        raise ValueError(f"`env` in {path} must be a mapping of environment variables, found {env!r}.")
    os.environ.update({str(name): str(value) for name, value in env.items()})
    # YAML 1.1 reads `no` as false, and `eval_strategy: no` is what one writes
    config = {key: "no" if value is False and key.endswith("_strategy") else value for key, value in config.items()}
    return flags[:at] + flags[at + 2 :], config, path


def read_yaml(path: Path) -> dict:
    """Reads a YAML mapping, in which no key may stand twice: the second would silently win."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            lines = {}
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode) and key.value in lines:
                    first, second = lines[key.value], key.start_mark.line + 1
                    raise ValueError(
                        f"`{key.value}` is given twice in {path}, in lines {first} and {second}: keep one."
                    )
                if isinstance(key, yaml.ScalarNode):
                    lines[key.value] = key.start_mark.line + 1
            return super().construct_mapping(node, deep)

    try:
        config = yaml.load(read_text(path), Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a YAML mapping (`key: value` lines), found {type(config).__name__}.")
    return {str(key): value for key, value in config.items()}


def choose_device(namespace: argparse.Namespace, given: set[str]) -> dict[str, bool]:
    """
    Takes the CPU, and says so, where there is no GPU and nobody has said what to take.

    Args:
        namespace (`argparse.Namespace`):
            The values of all keys and flags.
        given (`set[str]`):
            The names of those that the user gave.

    Returns:
        `dict[str, bool]`: What follows for `use_cpu` and `bf16`.
    """
    import torch

    launched_on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if "use_cpu" in given or (torch.accelerator.is_available() and not launched_on_cpu):
        return {}
    settings = {}
    if "use_cpu" in namespace:  # a training: evaluations take the CPU by themselves
        if namespace.fp16 or (namespace.bf16 and not computes_in_bfloat16(torch.device("cpu"))):
            return {}  # asked for what takes a GPU: TRL's error says so
        settings = {"use_cpu": True, "bf16": bool(namespace.bf16)}
    if not launched_on_cpu and os.environ.get("RANK", "0") == "0":
        as_with = " ".join(f"--{key} {str(value).lower()}" for key, value in settings.items())
        print(f"No GPU was found: running on the CPU{f', as with `{as_with}`' if settings else ''}.")
    return settings


def computes_in_bfloat16(device) -> bool:
    """Whether the device has instructions for bfloat16: where it has none, it would be slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)


def loading_arguments() -> type:
    """Returns [`~trl.ModelConfig`] less what is about training, as a dataclass."""
    from dataclasses import field, fields, make_dataclass

    from trl import ModelConfig

    def check(self):
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("Both `load_in_4bit` and `load_in_8bit` are given: give one.")

    loading = [f for f in fields(ModelConfig) if f.name in LOADING_FIELDS]
    return make_dataclass(
        "LoadingArguments",
        [(f.name, f.type, field(default=f.default, metadata=f.metadata)) for f in loading],
        namespace={"__post_init__": check},
    )


def unknown_keys(keys: set[str], known: set[str], path: Path) -> ValueError:
    """The error for keys of a YAML file that nobody knows."""
    keys = sorted(keys)
    return ValueError(f"Unknown key{_list(keys, [_did_you_mean(key, known, '') for key in keys])} In {path}.")


def unknown_flags(unknown: list[str], known: set[str], command: str) -> ValueError:
    """The error for flags that nobody knows."""
    flags = [arg for arg in unknown if arg.startswith("-")] or unknown
    hints = [_did_you_mean(flag.split("=")[0].lstrip("-").replace("-", "_"), known, "--") for flag in flags]
    return ValueError(f"Unknown argument{_list(flags, hints)} `trl-sbr {command} --help` lists all.")


def _did_you_mean(name: str, known: set[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, known, n=2)
    return f" (did you mean {' or '.join(f'`{prefix}{match}`' for match in close)}?)" if close else ""


def _list(names: list[str], hints: list[str]) -> str:
    named = ", ".join(f"`{name}`{hint}" for name, hint in zip(names, hints, strict=True))
    return f"{'s' if len(names) > 1 else ''}: {named}."


def check_model_name(model_args):
    if model_args.model_name_or_path is None:
        raise ValueError("No model: give `model_name_or_path`, a folder or the name of a model on the Hub.")
