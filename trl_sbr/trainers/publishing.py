# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The card and the record of a training, and their way to the Hub."""

import functools
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy

from ..anchors.anchor_files import write_atomically
from ..anchors.untrusted_files import read_text
from .run_record import RECORD_NAME, find_weights, make_record, write_record


logger = get_logger(__name__)

# What the cards say that PEFT, TRL and transformers write by themselves
_GENERATED = (
    "<!-- Provide a quick summary of what the model is/does. -->",
    "trained using [TRL]",
    "according to the information the Trainer had access to",
)


class PublishingMixin:
    """
    What a trainer that holds an anchor says of itself, and pushes. Stands before a [`~transformers.Trainer`] that has an
    `anchor`, `dataset_names`, `_saved_files` and `_turns`.
    """

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **others: Any,
    ) -> None:
        """
        Write the card, and the record that it is made from, to `output_dir`. The notes of a person in the card are kept. Where the
        weights of an earlier run lie, nothing is written before this one has saved its own.

        Args:
            model_name (`str`, *optional*):
                Not used: the card is named after the repository, or the folder.
            dataset_name (`str`, *optional*):
                Dataset trained on, named in this and all later cards if it is one of the Hub's.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
            **others:
                Not used: what [`~transformers.Trainer.create_model_card`] takes besides.
        """
        if dataset_name is not None and dataset_name not in self.dataset_names:
            self.dataset_names.append(dataset_name)
        if self.is_world_process_zero():
            self._describe_run(Path(self.args.output_dir), self._saved_files, tags)

    def _describe_run(self, folder: Path, files: dict[str, str] | None, tags: str | list[str] | None = None) -> None:
        """Write the card and the record of the `files` that this run has saved there; before, a card where no other's lie."""
        from ..hub.folder import write_card

        if files is None and ((folder / RECORD_NAME).exists() or find_weights(folder)):
            return
        folder.mkdir(parents=True, exist_ok=True)
        if files is None:  # those who save have done so
            keep_readme(folder)
        record = make_record(self, files or {}, tags)
        # Resolved: `.` has a name too
        repo_id = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        write_card(folder, repo_id, record, self.anchor and self.anchor.config)
        if files is not None:
            write_record(record, folder)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "CommitInfo | None":
        """
        Push adapter or model, tokenizer, anchor, card and the report of its evaluation in one commit: never training
        arguments, checkpoints or data. See [`~transformers.Trainer.push_to_hub`] for the arguments.

        Raises:
            OSError: If the push fails; it says what to run to finish it. All files lie in `output_dir` by then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        push = functools.partial(
            self._push, self.args.output_dir, commit_message or "End of training", token, revision, private
        )
        return push() if blocking else HfApi().run_as_future(push)

    def _push(
        self,
        folder: str,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo:
        from ..hub.folder import push_folder

        return push_folder(
            Path(folder),
            self.hub_model_id,
            commit_message,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            token=token or self.args.hub_token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push what is published of a checkpoint; a push that fails costs a warning, not the training."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.anchor is not None and self.state.global_step < len(self._turns):
            logger.warning(
                f"The checkpoint of step {self.state.global_step} is not pushed: it takes {len(self._turns)} steps for all anchors "
                "to have their turn (`anchors_per_step`), and some were not trained on. The next ones are."
            )
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._push(checkpoint_folder, f"Training in progress, step {self.state.global_step}")
        except (OSError, ValueError) as error:
            logger.warning(f"{error}\nThe training goes on.")


def keep_readme(folder: Path) -> None:
    """
    Put the README that a person has written between the marks of a card's notes, which are kept when the card is written.

    Args:
        folder (`Path`):
            Where a card is about to be written, by us or, before, by PEFT.
    """
    from ..hub.cards import CARD_NAME, NOTES_BEGIN, NOTES_END

    path = folder / CARD_NAME
    text = read_text(path) if path.exists() else ""
    if text.strip() and not any(mark in text for mark in (NOTES_BEGIN, *_GENERATED)):
        write_atomically({path: f"{NOTES_BEGIN}\n{text.strip()}\n{NOTES_END}\n".encode()})
