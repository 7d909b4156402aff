# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A run goes on from a checkpoint with what it was begun with, or not at all: the anchor, λ, the loss, the reference."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..anchors.safety_anchor import SafetyAnchor
from .anchor_arguments import AnchorArguments
from .run_record import PROTECTION_SETTINGS, RECORD_NAME, read_record


def check_settings(checkpoint: Path, args: AnchorArguments) -> None:
    """
    Make sure that a checkpoint was trained as a run is about to go on.

    Args:
        checkpoint (`Path`):
            The checkpoint.
        args ([`AnchorArguments`]):
            The run's settings of the anchor term.

    Raises:
        FileNotFoundError: If a protected run would go on from a checkpoint without a record.
        ValueError: If λ, the target error, the loss, the reference or `anchors_per_step` differs.
    """
    if args.anchor_loss_coef == 0 and not (checkpoint / RECORD_NAME).exists():
        return  # of plain fine-tuning, by whatever trainer
    record = read_record(checkpoint / RECORD_NAME)
    for name in PROTECTION_SETTINGS:
        trained, found = record["sbr"].get(name), getattr(args, name)
        if found != trained:
            raise ValueError(
                f"The checkpoint {checkpoint} was trained with `{name}={trained!r}`, found `{name}={found!r}`: what the two "
                f"make together is neither's. Resume with `{name}={trained!r}`, or start from the aligned model."
            )


def load_coef(checkpoint: Path, args: AnchorArguments) -> float:
    """
    Load the λ with which a run goes on from a checkpoint that [`check_settings`] has passed.

    Args:
        checkpoint (`Path`):
            The checkpoint.
        args ([`AnchorArguments`]):
            The run's settings of the anchor term.
    """
    if args.anchor_target_error is None:
        return args.anchor_loss_coef
    return max(read_record(checkpoint / RECORD_NAME)["sbr"]["anchor_coef"], args.anchor_loss_coef)


def load_anchor(checkpoint: Path, anchor: SafetyAnchor, tokenizer: PreTrainedTokenizerBase) -> SafetyAnchor:
    """
    Load the anchor that a checkpoint was trained with.

    Args:
        checkpoint (`Path`):
            The checkpoint.
        anchor ([`SafetyAnchor`]):
            The anchor of the run that is to go on from it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer, to show in what prompts differ.

    Returns:
        [`SafetyAnchor`]: The checkpoint's anchor, which is the run's up to the numerics.

    Raises:
        ValueError: If the checkpoint has no anchor, or another one; the error says in what they differ.
    """
    try:
        saved = SafetyAnchor.from_pretrained(checkpoint)
    except FileNotFoundError as error:
        raise ValueError(
            f"The checkpoint {checkpoint} carries no safety anchor: it was trained without protection. Resume it "
            "with `anchor_loss_coef=0`, or start from the aligned model."
        ) from error
    difference = _difference(saved, anchor, tokenizer)
    if difference is not None:
        raise ValueError(
            f"The checkpoint {checkpoint} was trained with another safety anchor: {difference}. Resume with the aligned "
            f"model `{saved.config.model_name_or_path}` and the checkpoint's anchor (`anchor_name_or_path={checkpoint}`)."
        )
    return saved


def _difference(saved: SafetyAnchor, anchor: SafetyAnchor, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """In what the anchor of a checkpoint differs from that of the run, in words."""
    if saved.prompts != anchor.prompts:
        return f"its prompts are {saved.questions}, this run's {anchor.questions}"
    for name in ("reference", "chat_template_kwargs"):
        expected, found = getattr(saved.config, name), getattr(anchor.config, name)
        if expected != found:
            return f"its `{name}` is {expected!r}, this run's {found!r}"
    for expected, found in zip(saved.input_ids, anchor.input_ids, strict=True):
        if expected != found:
            return (
                f"its chat template and tokenizer make {tokenizer.decode(expected)!r} of a prompt ({len(expected)} tokens), "
                f"this run's {tokenizer.decode(found)!r} ({len(found)} tokens)"
            )
    if saved.positions != anchor.positions:
        return f"it holds the positions {saved.positions}, this run's {anchor.positions}"
    error = saved.relative_errors(anchor.hidden_states).max().item()
    tolerance = anchor.tolerance_to(saved)
    if not error <= tolerance:
        return f"their states differ by {error:.2e} relative, expected at most {tolerance:.0e}"
    return None
