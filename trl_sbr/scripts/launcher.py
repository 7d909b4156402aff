# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""A training on several processes: `accelerate launch`, as TRL's own command line calls it."""

import argparse
import os
import signal
import subprocess
from importlib import resources
from pathlib import Path

from trl_sbr.recipes import find_recipe, recipe_names
from trl_sbr.scripts.common import make_parser, read_command_line, unknown_flags, unknown_keys


# Ours to set, or, as `env`, TRL's
_NOT_OPTIONS = {"env", "help", "module", "no_python", "training_script", "training_script_args"}


def launcher_options() -> dict[str, argparse.Action | None]:
    """The options of `accelerate launch` by name, and TRL's `accelerate_config`."""
    from accelerate.commands.launch import launch_command_parser

    actions = launch_command_parser()._actions
    return {"accelerate_config": None} | {a.dest: a for a in actions if a.dest not in _NOT_OPTIONS}


def launch_if_asked(dataclass_types: tuple, command: str, description: str, argv: list[str], run) -> int:
    """
    Runs a training in processes of `accelerate launch`, or here.

    As with TRL's command line, the keys of a YAML file and the flags that the training does not know are the
    launcher's. Without any, one device needs no launcher: the training runs here.

    Args:
        dataclass_types (`tuple[type]`):
            The dataclasses of the training's arguments.
        command (`str`):
            Name of the command.
        description (`str`):
            What the command does, for the help text.
        argv (`list[str]`):
            The command line.
        run (`Callable[[list[str]], int]`):
            The training here.

    Returns:
        `int`:
            The exit code.
    """
    parser = make_parser(dataclass_types, command, description)
    flags, config, path = read_command_line(argv)
    known = {action.dest for action in parser._actions}
    parser.set_defaults_with_config(**{key: value for key, value in config.items() if key in known})
    namespace, flags = parser.parse_known_args(flags)
    config = {key: value for key, value in config.items() if key not in known}
    if "LOCAL_RANK" in os.environ or not (config or flags or is_launched_by_default(namespace)):
        return run(argv)

    options = launcher_options()
    known |= options.keys()
    if config.keys() - options.keys():
        raise unknown_keys(config.keys() - options.keys(), known, path)
    foreign = [flag for flag in flags if flag.startswith("-") and _name(flag) not in options]
    if foreign:
        raise unknown_flags(foreign, known, command)
    return launch(f"trl_sbr.scripts.{command}", [*_as_flags(config, options), *flags], _without(argv, flags))


def is_launched_by_default(namespace: argparse.Namespace) -> bool:
    """Whether `accelerate launch` has something to do unasked: several GPUs, or what `accelerate config` wrote."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return Path(default_config_file).is_file() or (torch.accelerator.device_count() > 1 and not namespace.use_cpu)


def launch(module: str, launch_args: list[str], script_args: list[str]) -> int:
    """
    Launches a module, as TRL's `launch_training_script` launches a file. That one knows those within TRL alone, and a file
    of ours would have its folder searched first for imports: `evaluate.py` lies there.

    Args:
        module (`str`):
            Name of the module.
        launch_args (`list[str]`):
            Flags of `accelerate launch`, with TRL's `--accelerate_config` among them.
        script_args (`list[str]`):
            Flags of the module.

    Returns:
        `int`:
            The exit code of the process that failed first, or 0.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    parser.exit_on_error = False  # its usage is a hundred lines
    try:
        args = parser.parse_args([*_resolve_accelerate_config(launch_args), "--module", module, *script_args])
    except argparse.ArgumentError as error:
        raise ValueError(f"`accelerate launch` does not take this: {error}") from error
    if args.training_script != module:
        raise ValueError(f"Unknown argument: `{args.training_script}`.")
    of_a_kind = args.multi_gpu or args.use_deepspeed or args.use_fsdp or args.use_megatron_lm or args.tpu
    if args.config_file is None and (args.num_processes or 1) > 1 and not of_a_kind:
        # Without a GPU, or with `--cpu`, accelerate would silently start one process
        if args.cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
        args.multi_gpu = args.cpu or not torch.accelerator.is_available()
        args.cpu = False

    # A launched process deals with Ctrl-C, and says what comes next; this one waits for it
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        launch_command(args)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except SignalException as error:
        code = -error.sigval
    else:
        code = 0
    finally:
        signal.signal(signal.SIGINT, previous)
    return code if code >= 0 else 128 - code  # ended by a signal: as a shell says it


def find_accelerate_config(name_or_path: str) -> str:
    """
    What `accelerate_config` means: a file, or else one of TRL's configurations, or else one of ours.

    Args:
        name_or_path (`str`):
            A path, or a name such as `"multi_gpu"`, `"cpu_2_processes"` or `"accelerate_configs/zero2"`, which is ours
            where `"zero2"` is TRL's.
    """
    if Path(name_or_path).is_file():
        return name_or_path
    theirs = {file.name: str(file) for file in resources.files("trl.accelerate_configs").iterdir()}
    if f"{name_or_path}.yaml" in theirs:
        return theirs[f"{name_or_path}.yaml"]
    ours = "accelerate_configs/"
    if (name := ours + name_or_path.removeprefix(ours)) in recipe_names():
        return str(find_recipe(name))
    names = [name.removesuffix(".yaml") for name in sorted(theirs) if name.endswith(".yaml")]
    names += [name for name in recipe_names() if name.startswith(ours)]
    raise ValueError(
        f"`accelerate_config` is `{name_or_path}`, which is neither a file nor one of the configurations of TRL and "
        f"trl_sbr: {', '.join(f'`{name}`' for name in names)}."
    )


def _resolve_accelerate_config(launch_args: list[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--accelerate_config", "--accelerate-config")
    args, rest = parser.parse_known_args(launch_args)
    if args.accelerate_config is None:
        return rest
    return ["--config_file", find_accelerate_config(args.accelerate_config), *rest]


def _as_flags(config: dict, options: dict[str, argparse.Action | None]) -> list[str]:
    """The launcher's keys of a YAML file as flags."""
    flags = []
    for key, value in config.items():
        if options[key] is None or options[key].nargs != 0:
            flags += [f"--{key}", str(value)] if value is not None else []
        elif isinstance(value, bool):
            flags += [f"--{key}"] if value else []
        else:
            raise ValueError(f"`{key}` is {value!r}, expected true or false.")
    return flags


def _name(flag: str) -> str:
    return flag.split("=")[0].lstrip("-").replace("-", "_")


def _without(argv: list[str], flags: list[str]) -> list[str]:
    """`argv` less the ordered subsequence `flags`."""
    rest, left = [], list(flags)
    for arg in argv:
        if left and arg == left[0]:
            left.pop(0)
        else:
            rest.append(arg)
    return rest
