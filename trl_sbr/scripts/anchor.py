# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Capture a model's safety anchor, verify a model against one, or show what one holds.

It reads the recipe of the training that the anchor is for, so that both see the model in the same numerics.

```bash
trl-sbr anchor --config llama-3.1-8b-instruct/sbr_lora --output_dir my-anchor
trl-sbr anchor --config llama-3.1-8b-instruct/sbr_lora --verify my-anchor
trl-sbr anchor --config llama-3.1-8b-instruct/sbr_lora --verify my-adapter --adapter my-adapter
trl-sbr anchor --show my-anchor
trl-sbr anchor --config llama-3.1-8b-instruct/sbr_lora --output_dir my-anchor --push_to_hub --hub_model_id org/my-anchor
trl-sbr anchor --verify org/my-adapter
```

The last one needs no recipe: a published adapter, or anchor, says which model it belongs to, and in which numerics.
"""

import argparse
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from trl_sbr.scripts.common import LOADING_FIELDS, MonitorArguments, check_model_name, parse_strictly, spellings


# What it uses of a recipe, and so shows in its help
SHOWN = (
    *("verify", "compare", "show", "json", "adapter", "output_dir", *LOADING_FIELDS),
    *("anchor_prompts", "anchor_reference", "anchor_require_refusal", "anchor_revision"),
    *("anchor_refusal_tokens", "anchor_openers", "anchor_system_prompts"),
    *("bf16", "chat_template_path", "fp16", "model_init_kwargs", "trust_remote_code", "use_cpu"),
    *("hub_model_id", "hub_private_repo", "hub_revision", "hub_token", "push_to_hub"),
)

# Flags that the `Next:` line leaves out: the anchor stands for the first, and the others say where it alone is pushed
NOT_OF_TRAINING = (
    *("output_dir", "anchor_prompts", "anchor_refusal_tokens", "anchor_openers", "anchor_system_prompts"),
    *("hub_model_id", "hub_private_repo", "hub_revision", "hub_token", "push_to_hub"),
)


@dataclass
class AnchorCommandArguments:
    """
    What to do with a safety anchor: capture one to `output_dir`, unless one of the first three is given.

    Args:
        verify (`str`, *optional*):
            Safety anchor (folder or Hub id) that the model must belong to.
        compare (`str`, *optional*):
            Safety anchor from which a fully fine-tuned model may have drifted.
        show (`str`, *optional*):
            Safety anchor to print.
        json (`bool`, *optional*, defaults to `False`):
            Whether `show` prints JSON.
        adapter (`str`, *optional*):
            PEFT adapter (folder or Hub id) to put on the model.
    """

    verify: str | None = field(
        default=None,
        metadata={"help": "Check that the model belongs to this safety anchor (folder or Hub id) and refuses it."},
    )
    compare: str | None = field(
        default=None,
        metadata={"help": "As `verify`, for a fully fine-tuned model: drifted states are shown and are no error."},
    )
    show: str | None = field(
        default=None, metadata={"help": "Print what is in this safety anchor (folder or Hub id); needs no model."}
    )
    json: bool = field(default=False, metadata={"help": "With `show`: print JSON."})
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "PEFT adapter (folder or Hub id) to put on the model: a protected one to verify, or one that aligns "
            "the model, to capture with `--anchor_reference current`."
        },
    )


def show(argv: list[str]):
    """Prints an anchor. The parser is one of its own: where no model is loaded, no training arguments matter."""
    from trl_sbr import SafetyAnchor

    parser = argparse.ArgumentParser(prog="trl-sbr anchor --show", allow_abbrev=False)
    parser.add_argument("--show", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    anchor = SafetyAnchor.from_pretrained(args.show)
    config = anchor.config.to_dict()
    if args.json:
        print(json.dumps(config, indent=2, ensure_ascii=False))
        return
    prompts, input_ids, positions, openers = (
        config.pop(name) for name in ("prompts", "input_ids", "positions", "openers")
    )
    if anchor.repo_id is not None:
        config = {"repository": f"{anchor.repo_id} at commit {anchor.commit}", **config}
    for name, value in config.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        print(f"{name.replace('_', ' '):22} {value if value not in (None, '') else '-'}")
    if not anchor.has_prompts:
        print(f"\n{len(prompts)} anchors, published without their prompts: no model can be verified against them.")
        return
    print(f"\n{len(prompts)} anchors (tokens, points, messages):")
    for ids, points, messages, opener in zip(input_ids, positions, prompts, openers, strict=True):
        behind = [f"behind {opener!r}"] if opener else []
        said = [f"{message['role']}: {message['content']}" for message in messages]
        print(f"  {len(ids):4}  {len(points):3}  {' | '.join(said + behind)}")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    flags = {arg.split("=")[0].replace("-", "_").lstrip("_") for arg in argv if arg.startswith("--")}
    if "show" in flags:
        show(argv)
        return 0
    if "verify" in flags and not flags & {"config", "model_name_or_path"}:
        return verify_published(argv)

    from accelerate import Accelerator
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_sbr import SafetyAnchor, SBRConfig

    anchor_args, script_args, training_args, model_args, dataset_args, _ = parse_strictly(
        (AnchorCommandArguments, ScriptArguments, SBRConfig, ModelConfig, DatasetMixtureConfig, MonitorArguments),
        command="anchor",
        description="Capture a model's safety anchor to --output_dir, or verify a model against one, or show one. The "
        "flags of `trl-sbr sft` are taken too, and left alone.",
        argv=argv,
        shown=SHOWN,
    )
    check_model_name(model_args)
    if anchor_args.verify and anchor_args.compare:
        raise ValueError("Both `verify` and `compare` are given: give one.")
    if anchor_args.json:
        raise ValueError("`json` goes with `show` alone.")
    source = anchor_args.verify or anchor_args.compare
    if source is not None:
        anchor = SafetyAnchor.from_pretrained(source)
    elif "output_dir" not in flags:  # a recipe's `output_dir` is where the model goes
        raise ValueError("Where shall the anchor go? Give `--output_dir FOLDER` on the command line.")
    elif anchor_args.adapter and training_args.anchor_reference == "base":
        raise ValueError(
            "The anchor would be captured with the adapter disabled (`anchor_reference` is `base`). Add "
            "`--anchor_reference current` if the adapter is what aligns the model, or drop `--adapter`."
        )
    else:
        check_output_dir(Path(training_args.output_dir))

    from trl_sbr.anchors.adapters import BaseWeightsError
    from trl_sbr.trainers.hardening_record import IN_TURN_FLAGS
    from trl_sbr.trainers.loading import load_model_and_processing_class

    adapter = get_adapter(anchor_args.adapter) if anchor_args.adapter else None
    if adapter is not None and anchor_args.verify:
        check_run(adapter, anchor, anchor_args.verify)
    try:
        model, processing_class = load_model_and_processing_class(training_args, model_args, adapter)
    except BaseWeightsError as error:
        if source is None:
            raise
        print(f"FAILED: {error}")
        return 1
    accelerator = Accelerator(mixed_precision=training_args.mixed_precision)
    with accelerator.autocast():
        if source is None:
            anchor = capture(accelerator, model, processing_class, training_args, model_args)
            # Not from the recipe, where it stands for what is trained with it
            if "push_to_hub" in flags and training_args.push_to_hub and accelerator.is_main_process:
                push(anchor, training_args)
            if adapter is None:  # no training command starts from an adapter
                rest = _training_flags(argv)
                is_asked_for = training_args.anchors_per_step is not None or "anchor_loss_coef" in flags
                if any(anchor.config.openers) and not is_asked_for:
                    rest += IN_TURN_FLAGS.split()
                accelerator.print(f"Next: trl-sbr sft {shlex.join(rest)} --dataset_name DATASET")
            code = 0
        else:
            check, verdict = (anchor.verify, "Verified.") if anchor_args.verify else (anchor.compare, "Compared.")
            code = verify(accelerator, check, model, processing_class, training_args.anchor_require_refusal, verdict)
    accelerator.end_training()
    return code


def check_output_dir(folder: Path):
    """An anchor must not come to lie beside a model or an adapter, as if that had been trained with it."""
    from trl_sbr.trainers.run_record import RECORD_NAME, find_weights

    found = sorted(find_weights(folder) | ({RECORD_NAME} if (folder / RECORD_NAME).exists() else set()))
    if found:
        raise FileExistsError(
            f"`{folder}` holds `{found[0]}`, expected an `output_dir` without a model or an adapter: with an anchor beside it, it "
            "would look protected. Choose another `--output_dir`."
        )


def get_adapter(name_or_path: str):
    """Finds an adapter, in a Hub repository at the commit that it has now."""
    from trl_sbr.anchors.adapters import find_adapter
    from trl_sbr.hub.repository import resolve_commit

    commit = None if os.path.isdir(name_or_path) else resolve_commit(name_or_path)
    adapter = find_adapter(name_or_path, commit)
    if adapter is None:
        raise ValueError(f"There is no adapter in `{name_or_path}`: it holds no `adapter_config.json`.")
    return adapter


def check_run(adapter, anchor, source: str):
    """Makes sure that an adapter was trained with the anchor that it is verified against, if the record of its training is there."""
    from trl_sbr import SafetyAnchor
    from trl_sbr.trainers.run_record import RECORD_NAME, check_folder, read_record

    path = find_record(adapter)
    if path is None:
        return
    name, run = adapter.name_or_path, read_record(path)
    way_out = f"Look at how far it has drifted from that anchor with `--compare {source}` in the place of `--verify`"
    coef = run["sbr"]["anchor_loss_coef"]
    if run["anchor"] is None or not coef > 0:
        raise ValueError(
            f"`{name}` was trained without protection: its `{RECORD_NAME}` names {'no' if run['anchor'] is None else 'an'} anchor "
            f"and an `anchor_loss_coef` of {coef}, expected an anchor and one above 0. {way_out}."
        )
    adapter.check_is_safetensors()  # and fetches them
    own = SafetyAnchor.from_pretrained(name, adapter.revision)
    check_folder(path.parent)
    if own.config.tensor_sha256 != anchor.config.tensor_sha256:
        raise ValueError(
            f"`{name}` was trained with another anchor than that of `{source}`: expected states of sha256 "
            f"{own.config.tensor_sha256}, found {anchor.config.tensor_sha256}. {way_out}, or verify it against its own: "
            f"`--verify {name}`."
        )


def find_record(adapter) -> Path | None:
    """The record of the training that left an adapter, from its folder or its repository; `None` if there is none."""
    from trl_sbr.anchors.untrusted_files import MAX_JSON_BYTES
    from trl_sbr.hub.repository import download_file
    from trl_sbr.trainers.run_record import RECORD_NAME

    if os.path.isdir(adapter.name_or_path):
        return path if (path := Path(adapter.name_or_path, RECORD_NAME)).is_file() else None
    try:
        return download_file(adapter.name_or_path, RECORD_NAME, adapter.revision, MAX_JSON_BYTES)
    except FileNotFoundError:
        return None


def capture(accelerator, model, processing_class, training_args, model_args):
    """Captures the anchor in every process, writes it in one and returns it."""
    from trl_sbr import SafetyAnchor
    from trl_sbr.anchors.prompts import resolve_prompts
    from trl_sbr.trainers.loading import get_model_init_kwargs

    anchor = SafetyAnchor.capture(
        model,
        processing_class,
        prompts=resolve_prompts(training_args.anchor_prompts),
        chat_template_kwargs=training_args.chat_template_kwargs,
        require_refusal=training_args.anchor_require_refusal,
        reference=training_args.anchor_reference,
        refusal_tokens=training_args.anchor_refusal_tokens,
        openers=training_args.anchor_openers,
        system_prompts=training_args.anchor_system_prompts or (),
        model_revision=get_model_init_kwargs(training_args, model_args)["revision"],
    )
    if accelerator.is_main_process:
        anchor.save_pretrained(training_args.output_dir)
    accelerator.wait_for_everyone()
    refused = ", all refused" if training_args.anchor_require_refusal else ""
    accelerator.print(f"Captured {len(anchor.prompts)} anchors on {model_args.model_name_or_path}{refused}.")
    accelerator.print(f"Wrote the safety anchor to {training_args.output_dir}.")
    return anchor


def push(anchor, training_args):
    """Pushes the anchor, which lies on disk already."""
    repo_id = training_args.hub_model_id or Path(training_args.output_dir).absolute().name
    line = ["trl-sbr", "push", "--output_dir", training_args.output_dir, "--repo_id", repo_id]
    line += ["--private"] if training_args.hub_private_repo else []
    line += ["--revision", training_args.hub_revision] if training_args.hub_revision else []
    commit = anchor.push_to_hub(
        repo_id,
        private=training_args.hub_private_repo,
        revision=training_args.hub_revision,
        token=training_args.hub_token,
        finish=shlex.join(line),
    )
    print(f"Pushed: {commit.commit_url}")


def verify_published(argv: list[str]) -> int:
    """Checks an adapter or an anchor by what it says of itself: which base model, which numerics."""
    from accelerate import Accelerator

    from trl_sbr.anchors.adapters import BaseWeightsError
    from trl_sbr.hub.published import load_published

    parser = argparse.ArgumentParser(prog="trl-sbr anchor --verify", allow_abbrev=False)
    parser.add_argument("--verify", required=True, metavar="NAME_OR_PATH")
    parser.add_argument(*spellings("anchor_revision"), metavar="REVISION")
    parser.add_argument(*spellings("use_cpu"), nargs="?", const="true", choices=["true", "false"], default="false")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(
            f"Without `--config` or `--model_name_or_path`, `--verify` takes what it needs from `{args.verify}`, and knows "
            f"no {unknown[0]}. Add one of the two to say which model."
        )
    try:
        published = load_published(args.verify, args.anchor_revision, "cpu" if args.use_cpu == "true" else None)
    except BaseWeightsError as error:
        print(f"FAILED: {error}")
        return 1
    accelerator = Accelerator(cpu=args.use_cpu == "true")
    accelerator.print(published.description)
    with published.numerics():
        return verify(accelerator, published.anchor.verify, published.model, published.processing_class, True)


def verify(accelerator, check, model, processing_class, require_refusal: bool, verdict: str = "Verified.") -> int:
    """Prints the report of a check, and the verdict on a model that passes it; 1 where it fails."""
    try:
        report = check(model, processing_class)
    except ValueError as error:
        accelerator.print(f"FAILED: {error}")
        return 1
    accelerator.print(report)
    answered = [result for result in report.checks if not result.refused]
    if answered and require_refusal:
        accelerator.print(f"FAILED: {len(answered)} of {len(report.checks)} anchors are answered, not refused.")
        accelerator.print("\n".join(f"  {result.prompt!r} -> {result.answer!r}" for result in answered))
        return 1
    accelerator.print(f"{verdict} The states have drifted by at most {report.max_relative_error:.1e} relative.")
    return 0


def _training_flags(argv: list[str]) -> list[str]:
    """The command line less what is about the captured anchor, which it names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in NOT_OF_TRAINING:
        parser.add_argument(*spellings(name), nargs="*")
    args, rest = parser.parse_known_args(argv)
    return [*rest, "--anchor_name_or_path", *args.output_dir]


if __name__ == "__main__":
    from trl_sbr.cli import main as cli

    sys.exit(cli(["anchor", *sys.argv[1:]]))
