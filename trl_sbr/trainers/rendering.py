# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""With which variables the chat template renders: anchors and training rows with the same, today and when resumed."""

from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from ..anchors.anchor_files import CONFIG_NAME, read_config
from ..anchors.clock import CLOCK
from ..anchors.prompts import DEFAULT_PROMPTS, cross_system_prompts, record_clock, resolve_prompts
from ..anchors.safety_anchor import SafetyAnchor
from .anchor_arguments import SBRArguments
from .interruption import list_checkpoints


logger = logging.get_logger(__name__)


def find_rendering(
    args: SBRArguments, anchor: SafetyAnchor | None, processing_class: PreTrainedTokenizerBase | ProcessorMixin
) -> dict[str, Any]:
    """
    Find the variables of the chat template for a run.

    Args:
        args ([`SBRArguments`]):
            The training arguments.
        anchor ([`SafetyAnchor`], *optional*):
            The anchor that was given. Without one, the run captures its own.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor with the chat template.

    Returns:
        `dict[str, Any]`: The anchor's variables, or those of `args`. If the template writes the date, it is that of the
        checkpoint from which the run can go on, or else today's.

    Raises:
        ValueError: If `args` has other variables than the anchor.
    """
    asked = args.chat_template_kwargs or {}
    if args.anchor_loss_coef == 0:
        return asked
    if anchor is not None:
        recorded = anchor.config.chat_template_kwargs
        if asked and asked not in (recorded, {k: v for k, v in recorded.items() if k != CLOCK}):
            raise ValueError(
                f"The anchor was captured with `chat_template_kwargs` {recorded}, found {asked}. Set them to the anchor's, "
                "or leave them out; or capture an anchor with these."
            )
        return recorded
    prompts = resolve_prompts(args.anchor_prompts) or DEFAULT_PROMPTS
    rendering = record_clock(processing_class, cross_system_prompts(prompts, args.anchor_system_prompts), asked)
    if CLOCK in rendering and CLOCK not in asked:
        checkpoint, time = _clock_of_last_checkpoint(args)
        if time is not None:
            logger.warning(
                f"The chat template writes the date, and {checkpoint} was rendered as of {time}: so is this run, so that "
                "it can go on from there. For another date, choose another `output_dir`."
            )
            rendering[CLOCK] = time
    return rendering


def _clock_of_last_checkpoint(args: SBRArguments) -> tuple[Path | None, str | None]:
    """The time that was recorded for the checkpoint that `args` names, or else for the last of `output_dir`."""
    named = Path(str(args.resume_from_checkpoint))
    checkpoints = [named] if named.is_dir() else reversed(list_checkpoints(args.output_dir))
    for checkpoint in checkpoints:
        try:
            return checkpoint, read_config(checkpoint / CONFIG_NAME).chat_template_kwargs.get(CLOCK)
        except (OSError, ValueError):  # left half-written: resuming says so
            continue
    return None, None


def check_rows_can_be_rendered(dataset: Dataset | IterableDataset, rendering: dict[str, Any]) -> None:
    """
    Make sure that some variables of the chat template reach the rows of a dataset, and not the anchors alone.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows as they are given to TRL's SFT or DPO.
        rendering (`dict[str, Any]`):
            The variables.

    Raises:
        ValueError: If the rows have images: TRL renders these when they are trained on, with no variables.
    """
    if rendering and not _columns(dataset).isdisjoint(("image", "images")):
        raise ValueError(
            f"Found rows with images, which TRL renders without variables of the chat template, and {rendering}, with which the "
            "anchors are rendered: what is held would not be what is trained. Write them into the chat template itself (`{% set "
            "NAME = VALUE %}` before its first line; a date in the place of `strftime_now`), and leave `chat_template_kwargs` out."
        )


def _columns(dataset: Dataset | IterableDataset) -> set[str]:
    return set(dataset.column_names or next(iter(dataset)))  # a stream may not know them


def with_rendering(dataset: Dataset | IterableDataset, rendering: dict[str, Any]) -> Dataset | IterableDataset:
    """
    Let TRL render the rows of a dataset with some variables of the chat template.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows as TRL takes them. Those in token ids are left as they are.
        rendering (`dict[str, Any]`):
            The variables. A row's own `chat_template_kwargs` come before them; the time is the template's alone, see
            [`~trl_sbr.anchors.clock.pin_clock`].

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The rows, with `chat_template_kwargs`.
    """
    variables = {name: value for name, value in rendering.items() if name != CLOCK}
    if not variables or "input_ids" in _columns(dataset):
        return dataset

    def add_variables(row):
        own = {name: value for name, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
        return {"chat_template_kwargs": {**variables, **own}}

    return dataset.map(add_variables)
