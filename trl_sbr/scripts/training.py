# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""What the commands that fine-tune share: the same arguments, datasets, launcher, interruption, and last words."""

import gc
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trl_sbr.scripts.common import MonitorArguments, check_model_name, parse_strictly


DATA_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_train_and_eval(script_args, dataset_args, training_args, find_lack: Callable) -> tuple:
    """
    Loads the training split and, where it is asked for, the evaluation split.

    Args:
        script_args ([`~trl.ScriptArguments`]):
            Names one dataset: on the Hub, a folder, or a `.jsonl`, `.json`, `.csv` or `.parquet` file.
        dataset_args ([`~trl.DatasetMixtureConfig`]):
            Or several, each of those kinds.
        training_args ([`~transformers.TrainingArguments`]):
            Whether to evaluate.
        find_lack (`Callable[[set[str], TrainingArguments], str | None]`):
            Says which columns are expected where those of the rows will not do.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from trl import get_dataset

    if dataset_args.datasets and script_args.dataset_name:
        raise ValueError("Both `datasets` and `dataset_name` are given: give the one that you mean.")
    try:
        if dataset_args.datasets:
            source = "the mixture in `datasets`"
            for config in dataset_args.datasets:
                config.path, data_files = _as_builder(config.path)
                config.data_files = data_files or config.data_files
            dataset = get_dataset(dataset_args)
        elif script_args.dataset_name:
            source = f"`{script_args.dataset_name}`"
            path, data_files = _as_builder(script_args.dataset_name)
            dataset = load_dataset(
                path,
                name=script_args.dataset_config,
                data_files=data_files,
                streaming=script_args.dataset_streaming,
            )
        else:
            raise ValueError(
                "No dataset: give `dataset_name` (a name on the Hub, a folder, or a .jsonl, .json, .csv or .parquet "
                "file), or `datasets` for a mixture of several."
            )
    except DatasetGenerationError as error:
        raise ValueError(f"{source} could not be read: {error.__cause__ or error}") from error

    train_dataset = _split(dataset, script_args.dataset_train_split, "dataset_train_split", source)
    eval_dataset = None
    if training_args.eval_strategy != "no":
        eval_dataset = _split(dataset, script_args.dataset_test_split, "dataset_test_split", source)
    columns = set(train_dataset.column_names or next(iter(train_dataset), ()))  # a stream may not know its columns
    if not columns:
        raise ValueError(f"{source} holds no row: the stream is empty. Check the file and the split.")
    lack = find_lack(columns, training_args)
    if lack is not None:
        raise ValueError(
            f"{source} has the columns {', '.join(f'`{name}`' for name in sorted(columns))}. Expected {lack}."
        )
    return train_dataset, eval_dataset


def _as_builder(path: str) -> tuple[str, str | None]:
    builder = DATA_FILES.get(Path(path).suffix)
    if builder is None:
        return path, None
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no dataset file `{path}` (looked from {Path.cwd()}).")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"The dataset file `{path}` is empty.")
    return builder, path


def _split(dataset, split: str, key: str, source: str):
    if split not in dataset:
        way_out = " To train without evaluation: `eval_strategy: no`." if key == "dataset_test_split" else ""
        raise ValueError(
            f"`{key}` is `{split}`, and {source} has {', '.join(f'`{name}`' for name in dataset)}.{way_out}"
        )
    return dataset[split]


@dataclass(frozen=True)
class TrainingCommand:
    """
    A command that fine-tunes a model with one of TRL's methods, held by an anchor.

    Args:
        name (`str`):
            Name of the command, and of its module in `trl_sbr.scripts`.
        method (`str`):
            What the method is called in the help text.
        trainer (`str`):
            Public name of its trainer.
        get_dataclass_types (`Callable[[], tuple[type]]`):
            The dataclasses of its arguments: TRL's, for its recipes are ours. The script's, the configuration,
            [`~trl.ModelConfig`] and [`~trl.DatasetMixtureConfig`].
        find_lack (`Callable[[set[str], TrainingArguments], str | None]`):
            See [`load_train_and_eval`].
        get_trainer_arguments (`Callable[[ScriptArguments], dict]`, *optional*):
            What its trainer is given besides, by the script's arguments.
    """

    name: str
    method: str
    trainer: str
    get_dataclass_types: Callable[[], tuple]
    find_lack: Callable
    get_trainer_arguments: Callable[..., dict] = lambda script_args: {}

    @property
    def description(self) -> str:
        return (
            f"{self.method} with Safety Bottleneck Regularization. The flags of `accelerate launch`, and "
            f"`--accelerate_config FILE_OR_NAME`, are taken too, and launch it as `trl {self.name}` does."
        )

    @property
    def all_dataclass_types(self) -> tuple:
        """Those, and the monitor's."""
        return (*self.get_dataclass_types(), MonitorArguments)

    def main(self, argv: list[str] | None = None) -> int:
        from trl_sbr.scripts.launcher import launch_if_asked

        argv = sys.argv[1:] if argv is None else argv
        return launch_if_asked(self.all_dataclass_types, self.name, self.description, argv, self.run)

    def run(self, argv: list[str]) -> int:
        """Trains in this process, which may be one of several."""
        from accelerate import PartialState

        code = self.train(argv)
        # After the trainer is gone: a DDP model that outlives the process group can hang in its destructor (gloo's thread
        # waits for the GIL, which the destructor holds while it waits for the thread)
        gc.collect()
        PartialState().destroy_process_group()
        return code

    def train(self, argv: list[str]) -> int:
        """Trains, writes the result and says where it is."""
        from trl import get_peft_config, get_quantization_config

        import trl_sbr
        from trl_sbr.trainers.interruption import find_last_checkpoint
        from trl_sbr.trainers.loading import get_model_init_kwargs

        script_args, training_args, model_args, dataset_args, monitor_args = parse_strictly(
            self.all_dataclass_types, command=self.name, description=self.description, argv=argv
        )
        check_model_name(model_args)
        training_args.model_init_kwargs = get_model_init_kwargs(training_args, model_args)
        train_dataset, eval_dataset = load_train_and_eval(script_args, dataset_args, training_args, self.find_lack)

        trainer = getattr(trl_sbr, self.trainer)(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            **self.get_trainer_arguments(script_args),
        )
        if monitor_args.monitor_steps is not None:
            trainer.add_callback(trl_sbr.SafetyMonitor(trainer, **vars(monitor_args)))
        trainer.dataset_names += [config.path for config in dataset_args.datasets] or [script_args.dataset_name]

        # A flag on the command line is a string, whereas Trainer wants True for "the last checkpoint of `output_dir`"
        resume = training_args.resume_from_checkpoint
        resume = {"true": True, "false": None}.get(str(resume).lower(), resume)
        try:
            trainer.train(resume_from_checkpoint=resume)
        except KeyboardInterrupt:
            if not trainer.interrupted:  # a second Ctrl-C: no checkpoint
                raise

        say = trainer.accelerator.print
        output_dir = training_args.output_dir
        if trainer.interrupted:
            say(f"\nInterrupted at step {trainer.state.global_step}. Left: {find_last_checkpoint(output_dir)}")
            if training_args.world_size == 1:
                say(f"To go on from there: trl-sbr {self.name} {shlex.join(argv)} --resume_from_checkpoint true")
            else:
                say("To go on from there: the same command with `--resume_from_checkpoint true`.")
            return 130

        trainer.save_model(output_dir)
        what = "adapter" if model_args.use_peft else "model"
        if trainer.anchor is None:
            say(f"\nWrote the {what} to {output_dir}. It is unprotected: `anchor_loss_coef` is 0.")
        else:
            say(f"\nWrote the protected {what} with its safety anchor to {output_dir}.")
            flags = self.flags_of_check(argv, output_dir, model_args, trainer.anchor.config.reference)
            say(f"Next: trl-sbr anchor {shlex.join(flags)}")
        if training_args.push_to_hub:
            trainer.push_to_hub()
            say(f"Pushed it to https://huggingface.co/{trainer.hub_model_id}.")
        return 0

    def flags_of_check(self, argv: list[str], output_dir: str, model_args, reference: str) -> list[str]:
        """The flags of `trl-sbr anchor` that check what was trained. It knows those of `trl-sbr sft`, not of the others."""
        taken = argv if self.name == "sft" else []
        # The base model of an adapter still has the anchor's states; those of a fully fine-tuned model have drifted
        if not model_args.use_peft:
            return [*taken, "--compare", output_dir, "--model_name_or_path", output_dir]
        if reference == "current":  # the adapter before its training, which cannot be had again
            named = [] if taken else ["--model_name_or_path", model_args.model_name_or_path]
            return [*taken, *named, "--compare", output_dir, "--adapter", output_dir]
        return [*taken, "--verify", output_dir, "--adapter", output_dir] if taken else ["--verify", output_dir]
