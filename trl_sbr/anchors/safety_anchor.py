# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The safety anchor: harmful prompts and the aligned model's final hidden states on them."""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from .. import __version__
from ..metrics.harmful_score.refusal import is_refusal
from .adapters import disabled_adapters
from .anchor_files import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    TENSOR_NAME,
    AnchorConfig,
    anchor_to_files,
    max_tensor_bytes,
    read_anchor,
    read_config,
    sha256_hex,
    tensor_to_bytes,
    write_anchor,
)
from .anchor_report import AnchorCheck, AnchorReport
from .bottleneck import (
    PromptBatch,
    check_unembedding_is_untouched,
    final_hidden_states,
    get_unembedding,
    lay_out,
    prove_bottleneck,
    relative_errors,
)
from .contexts import check_refused, make_contexts, name_context
from .generation import REFUSAL_TOKENS, begin_answers
from .numerics import numerics_of, tolerance_of
from .prompt_pool import choose_prompts, first_prompts
from .prompts import (
    Messages,
    cross_system_prompts,
    encode_prompts,
    get_chat_template,
    get_tokenizer,
    record_clock,
)
from .provenance import cached_commit
from .supported import check_model_is_supported
from .unembedding import unembedding_sha256


HELD_TOKENS = 14  # of a refusal: they reach behind its first sentence

logger = logging.get_logger(__name__)


def _reference_model(model: nn.Module, reference: str) -> AbstractContextManager:
    """Context in which `model` is the aligned model: adapters off for `"base"`, as they are for `"current"`."""
    if reference not in ("base", "current"):
        raise ValueError(f"Expected a reference of 'base' or 'current', found {reference!r}.")
    return disabled_adapters(model) if reference == "base" and isinstance(model, PeftModel) else nullcontext()


def _check_is_json(chat_template_kwargs: dict[str, Any]) -> None:
    try:
        same = json.loads(json.dumps(chat_template_kwargs, allow_nan=False)) == chat_template_kwargs
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"Expected `chat_template_kwargs` that JSON can hold as they are, found {chat_template_kwargs!r}: the anchor could "
            "not be checked with them when it is loaded again."
        )


@torch.no_grad()
def _read_states(model: nn.Module, input_ids: list[list[int]], positions: list[list[int]]) -> torch.Tensor:
    batch = lay_out(model, input_ids, tolerance_of(numerics_of(model)), positions=positions)
    states = final_hidden_states(model, get_unembedding(model), batch)
    if not torch.isfinite(states).all():
        raise ValueError("The model's final hidden states on the anchor prompts are not finite (NaN or Inf).")
    return states


@dataclass(eq=False)
class SafetyAnchor:
    """
    Harmful prompts, and the final hidden states with which the aligned model refuses them: the reference `h_ref` of
    Safety Bottleneck Regularization (https://huggingface.co/papers/2605.05995).

    Made by [`SafetyAnchor.capture`] or [`SafetyAnchor.from_pretrained`].

    Args:
        config (`AnchorConfig`):
            Where the states come from.
        hidden_states (`torch.Tensor` of shape `(num_points, hidden_size)`):
            Inputs of the unembedding at the points of the anchors, float32, on the CPU. An anchor has one point, the last
            prompt token, or several: `positions` says which, in this order.
        repo_id (`str`, *optional*):
            Hub repository that it was loaded from.
        commit (`str`, *optional*):
            Commit of that repository.

    Example:

    ```python
    >>> anchor = SafetyAnchor.capture(model, tokenizer)
    >>> anchor.save_pretrained("my-anchor")
    >>> print(SafetyAnchor.from_pretrained("my-anchor").verify(model, tokenizer))
    ```
    """

    config: AnchorConfig
    hidden_states: torch.Tensor = field(repr=False)
    repo_id: str | None = None
    commit: str | None = None

    @property
    def has_prompts(self) -> bool:
        """Whether the anchor holds its prompts: they may have been left out when it was published."""
        return self.config.prompts[0] is not None

    @property
    def prompts(self) -> list[Messages]:
        """The anchor prompts, as messages. `ValueError` if the anchor was published without them."""
        self._check_has_prompts()
        return self.config.prompts

    @property
    def input_ids(self) -> list[list[int]]:
        """The token ids of each anchor prompt, formatted with the chat template and the generation prompt."""
        self._check_has_prompts()
        return self.config.input_ids

    @property
    def positions(self) -> list[list[int]]:
        """The positions in each context whose states are held."""
        self._check_has_prompts()
        return self.config.positions

    def per_anchor(self, values: torch.Tensor) -> list[torch.Tensor]:
        """
        Split what belongs to points by the anchors that they belong to.

        Args:
            values (`torch.Tensor` of shape `(num_points, ...)`):
                Values, in the order of `hidden_states`.

        Returns:
            `list[torch.Tensor]`: The values of each anchor's points.
        """
        return list(values.split(self.config.points_per_anchor))

    def _check_has_prompts(self) -> None:
        if not self.has_prompts:
            raise ValueError(
                f"This anchor was published without its {len(self)} prompts: it cannot be verified that a model has its "
                "states or refuses its prompts, and nothing can be trained with it. Ask its publisher for the anchor "
                "with prompts."
            )

    def without_prompts(self) -> "SafetyAnchor":
        """The same anchor without its prompts and token ids. No model can be verified against it any more."""
        nothing = [None] * len(self)
        return SafetyAnchor(replace(self.config, prompts=nothing, input_ids=nothing), self.hidden_states)

    @property
    def _names(self) -> list[str]:
        """What is asked in each context, as messages show it."""
        return [name_context(*context) for context in zip(self.questions, self.config.openers, strict=True)]

    @property
    def questions(self) -> list[str]:
        """The last user message of each anchor prompt."""
        return [prompt[-1]["content"] for prompt in self.prompts]

    def __len__(self):
        return len(self.config.prompts)

    @classmethod
    def capture(
        cls,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        prompts: Sequence[str | Messages] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        require_refusal: bool = True,
        reference: str = "base",
        num_anchors: int = 8,
        refusal_tokens: int | None = None,
        openers: str | Sequence[str] | None = None,
        system_prompts: Sequence[str | None] = (),
        model_revision: str | None = None,
    ) -> "SafetyAnchor":
        """
        Record an aligned model's final hidden states on harmful prompts.

        The paper's anchor holds the state behind the last prompt token, which chooses the first token of the answer. This one
        holds those behind the first tokens of the refusal too, so that "I'm sorry, but" is not followed by "here is how", and
        with `openers` those where the answer has begun: "Sure!" is not followed by what the model would have refused.

        Capture under the numerics of training: the dtype and quantization of `model`, and inside `torch.autocast` if
        training uses it. [`SBRSFTTrainer`] does so by itself when it is given no anchor.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The aligned model.
            processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
                Its tokenizer or processor, with the chat template that it is used with.
            prompts (`Sequence[str | list[dict[str, str]]]`, *optional*):
                Harmful questions, or conversations that end with one. Defaults to `num_anchors` of the package's pool
                that the model refuses, spread over categories of harm.
            chat_template_kwargs (`dict[str, Any]`, *optional*):
                Further variables of the chat template. If it writes the date into a prompt, the moment of the capture is
                recorded among them, under `strftime_now`, unless they say another (`{"strftime_now": "2026-11-25"}`).
            require_refusal (`bool`, *optional*, defaults to `True`):
                Whether the model must refuse each prompt. An anchor that it does not refuse would pin harm.
            reference (`str`, *optional*, defaults to `"base"`):
                Of a PEFT model, which one is aligned: `"base"`, with the adapters disabled, or `"current"`, with the
                adapters as they are.
            num_anchors (`int`, *optional*, defaults to `8`):
                Number of prompts that are chosen from the pool where none are given.
            refusal_tokens (`int`, *optional*, defaults to `14`):
                Number of tokens of the model's own greedy refusal whose choice is held: as many points an anchor, fewer where the
                refusal is shorter. Fourteen reach behind the first sentence, where data that teach to refuse first and comply
                after set in; `1` is the paper's.
            openers (`str` or `Sequence[str]`, *optional*):
                Beginnings of an answer (`"Sure, here is how: "`), or `"default"` for eight of those that `trl-sbr harden` knows,
                behind which each prompt is held too. Where the model answers it behind one, it is left out there, and that is
                said: a hardened model refuses. An opener behind which it answers all is an error, or left out if it is a default one.
            system_prompts (`Sequence[str | None]`, *optional*):
                System prompts, under each of which all prompts are held; `None` and `""` are no system prompt.
            model_revision (`str`, *optional*):
                Branch, tag or commit of the Hub that the model was loaded from. The anchor names its commit; without it, that
                of the cache, if that holds one alone.

        Returns:
            [`SafetyAnchor`]: The anchor.

        Raises:
            ValueError: If the model is of a kind that cannot be held; if a prompt is empty, repeated, too long or not refused; if
                none is behind one of the openers (of the default ones: behind any); if there is no chat template; or if the states
                do not determine the model's logits.
        """
        check_model_is_supported(model)  # before it is asked
        refusal_tokens = HELD_TOKENS if refusal_tokens is None else refusal_tokens
        if prompts is None and require_refusal:
            with _reference_model(model, reference):
                prompts = choose_prompts(model, processing_class, num_anchors, chat_template_kwargs, system_prompts)
            require_refusal = bool(openers) or refusal_tokens > 1  # or else all were asked already
        elif prompts is None:
            prompts = first_prompts(num_anchors)
        prompts = cross_system_prompts(prompts, system_prompts)
        chat_template_kwargs = record_clock(processing_class, prompts, chat_template_kwargs)
        _check_is_json(chat_template_kwargs or {})
        with _reference_model(model, reference):
            contexts = make_contexts(
                model, processing_class, prompts, chat_template_kwargs, openers, refusal_tokens, require_refusal
            )
        input_ids, positions = [c.input_ids for c in contexts], [c.positions for c in contexts]
        numerics = numerics_of(model)
        if isinstance(model, PeftModel):
            check_unembedding_is_untouched(model)
        was_training = model.training
        model.eval()
        try:
            with _reference_model(model, reference):
                states = _read_states(model, input_ids, positions)
                prove_bottleneck(model, input_ids, positions, states, tolerance=tolerance_of(numerics))
        finally:
            model.train(was_training)
        states = states.cpu().contiguous()
        return cls(
            config=AnchorConfig(
                prompts=[c.prompt for c in contexts],
                input_ids=input_ids,
                positions=positions,
                openers=[c.opener for c in contexts],
                refusal_tokens=refusal_tokens,
                chat_template_sha256=sha256_hex(get_chat_template(processing_class).encode()),
                chat_template_kwargs=chat_template_kwargs,
                model_name_or_path=model.config._name_or_path,
                model_revision=cached_commit(model.config._name_or_path, model_revision),
                reference=reference,
                unembedding_sha256=unembedding_sha256(model),
                hidden_size=states.shape[1],
                **numerics,
                library_versions={
                    "trl_sbr": __version__,
                    **{name: version(name) for name in ("transformers", "peft", "torch")},
                },
                tensor_sha256=sha256_hex(tensor_to_bytes(states)),
            ),
            hidden_states=states,
        )

    def check_refusals(self, model: nn.Module, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        """
        Make sure that the aligned model refuses every anchor prompt.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The model; of a PEFT model, the reference that the anchor was captured on is asked.
            processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
                Its tokenizer or processor.

        Raises:
            ValueError: If it answers one; the error shows the answer.
        """
        with self.reference_model(model):
            answers = self.answers(model, processing_class)
        check_refused(self._names, answers)

    @property
    def _asked(self) -> list[list[int]]:
        """The tokens of each context behind which the answer, or its rest, is the model's."""
        return [ids[: points[0] + 1] for ids, points in zip(self.input_ids, self.positions, strict=True)]

    def answers(self, model: nn.Module, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> list[str]:
        """
        The starts of a model's greedy answers in the contexts, long enough to tell refusals. Where it refuses, what it says
        behind the tokens of the refusal that are held.
        """
        tokenizer = get_tokenizer(processing_class)

        def answer(contexts):
            answers = begin_answers(model, tokenizer, contexts, REFUSAL_TOKENS)
            told = [ids[len(asked) :] + more for ids, asked, more in zip(contexts, self._asked, answers, strict=True)]
            return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in told]

        answers = answer(self._asked)
        if self._asked == self.input_ids:
            return answers
        return [held if is_refusal(own) else own for own, held in zip(answers, answer(self.input_ids), strict=True)]

    def check_compatible(self, model: nn.Module, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        """
        Make sure that model and tokenizer have the form that the anchor was captured with: hidden size, chat template
        and token ids. No forward is run.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Causal language model.
            processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
                Its tokenizer or processor.

        Raises:
            ValueError: If they differ; the error says in what.
        """
        hidden_size = get_unembedding(model).in_features
        if hidden_size != self.config.hidden_size:
            raise ValueError(
                f"The anchor was captured on `{self.config.model_name_or_path}` with hidden size "
                f"{self.config.hidden_size}, found a model with hidden size {hidden_size}. Load that model, or capture "
                "an anchor on this one."
            )
        template_sha256 = sha256_hex(get_chat_template(processing_class).encode())
        if template_sha256 != self.config.chat_template_sha256:
            raise ValueError(
                f"The anchor was captured with another chat template: expected sha256 "
                f"{self.config.chat_template_sha256}, found {template_sha256}. Use the tokenizer that it was captured "
                "with, or capture an anchor with this one."
            )
        asked = encode_prompts(processing_class, self.prompts, self.config.chat_template_kwargs, self.config.openers)
        for name, expected, found in zip(self._names, self._asked, asked, strict=True):
            if expected != found:
                raise ValueError(
                    f"The tokenizer turns the anchor prompt {name} into other tokens: expected {expected}, found "
                    f"{found}. Use the tokenizer that the anchor was captured with, or capture an anchor with this "
                    "one."
                )

    def relative_errors(self, states: torch.Tensor) -> torch.Tensor:
        """
        Compare states with the anchor's.

        Args:
            states (`torch.Tensor` of shape `(num_points, hidden_size)`):
                Final hidden states at the points of the anchors, float32.

        Returns:
            `torch.Tensor` of shape `(num_points,)`: `‖h - h_ref‖ / ‖h_ref‖`, float32.
        """
        return relative_errors(states, self.hidden_states.to(states.device))

    def drift(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compare states with the anchor's, anchor by anchor: of one with several points, at the worst of them.

        Args:
            states (`torch.Tensor` of shape `(num_points, hidden_size)`):
                Final hidden states at the points of the anchors, float32.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`, each of shape `(num_anchors,)`: The relative errors and the cosine similarities,
            float32.
        """
        cosines = torch.cosine_similarity(states, self.hidden_states.to(states.device), dim=-1)
        return (
            torch.stack([of_anchor.max() for of_anchor in self.per_anchor(self.relative_errors(states))]),
            torch.stack([of_anchor.min() for of_anchor in self.per_anchor(cosines)]),
        )

    def verify(self, model: nn.Module, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> AnchorReport:
        """
        Check that the anchor belongs to a model, and report how the model stands to it.

        Of a PEFT model, the reference that the anchor was captured on must have the anchor's states; the report is on
        the model as it is, adapters included: so a protected adapter is checked against its anchor.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The aligned model, with or without the protected adapter.
            processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
                Its tokenizer or processor.

        Returns:
            [`AnchorReport`]: Relative error, cosine and refusal, anchor by anchor.

        Raises:
            ValueError: If the hidden size, the chat template, the token ids, the unembedding or the states differ; it says
                which. Or if an adapter changes the unembedding.
        """
        self.verify_reference(model, processing_class)
        return self.compare(model, processing_class)

    def verify_reference(self, model: nn.Module, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        """
        Check that the anchor belongs to a model, as [`SafetyAnchor.verify`] does, without a report.

        Raises:
            ValueError: If the hidden size, the chat template, the token ids, the unembedding or the states differ; it says
                which. Or if an adapter changes the unembedding.
        """
        self.check_compatible(model, processing_class)
        with self.reference_model(model):
            states = _read_states(model, self.input_ids, self.positions)
        self.check_states(states, model)
        self.check_unembedding(model)

    def has_unembedding_of(self, model: nn.Module) -> bool | None:
        """
        Whether a model's unembedding computes what that of the anchor's model did. `None` if the anchor does not say: it was
        captured in format version 1. Where weights are sharded, all processes must call this together.
        """
        expected = self.config.unembedding_sha256
        return None if expected is None else unembedding_sha256(model) == expected

    def check_unembedding(self, model: nn.Module) -> None:
        """
        Check that a model turns states into answers as the anchor's model did: equal states mean nothing otherwise. Where
        weights are sharded, all processes must call this together.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Causal language model, not wrapped for distributed training.

        Raises:
            ValueError: If its unembedding is another, or an adapter changes it.
        """
        if isinstance(model, PeftModel):
            check_unembedding_is_untouched(model)
        same = self.has_unembedding_of(model)
        if same is None:
            logger.warning(
                "The anchor is of format version 1, which does not say which unembedding it belongs to: it cannot be checked "
                "that equal states mean equal answers. Capture it again, e.g. with `trl-sbr anchor`."
            )
        elif not same:
            raise ValueError(
                f"The model's unembedding (`{type(get_unembedding(model)).__name__}`, vocabulary and logit scale included) is "
                "not that of the model that the anchor was captured on: with the anchor's states it gives other answers. The "
                f"anchor was captured on `{self.config.model_name_or_path}` (revision {self.config.model_revision}) in "
                f"{self._numerics}; the model at hand is `{model.config._name_or_path}` in {numerics_of(model)}. Load that "
                "model in these numerics, without tokens added, or capture an anchor on this one."
            )

    def lay_out(self, model: nn.Module, wrapped: nn.Module, part: slice = slice(None)) -> PromptBatch:
        """Lay out the anchors, or a part of them, as the cheapest batch that `model` takes, see [`~bottleneck.lay_out`]."""
        return lay_out(model, self.input_ids[part], tolerance_of(numerics_of(model)), wrapped, self.positions[part])

    def reference_model(self, model: nn.Module) -> AbstractContextManager:
        """Context in which `model` is the one the anchor was captured on: the adapters off, or as they are."""
        return _reference_model(model, self.config.reference)

    def check_states(self, states: torch.Tensor, model: nn.Module) -> None:
        """
        Check that states on the anchor prompts are the anchor's, up to the numerics.

        Args:
            states (`torch.Tensor` of shape `(num_points, hidden_size)`):
                Final hidden states of the reference model at the points of the anchors, float32.
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                That model, for its name and numerics.

        Raises:
            ValueError: If they differ by more.
        """
        numerics = numerics_of(model)
        tolerance = tolerance_of(numerics, self._numerics)
        errors, _ = self.drift(states)
        worst = int(errors.argmax())
        if not errors[worst] <= tolerance:
            trained = (
                " The anchor's reference is `current`, the adapter as it was before its training: against a trained one it can "
                "only be compared (`compare`, `trl-sbr anchor --compare`)."
            )
            raise ValueError(
                f"The model's final hidden states are not the anchor's: relative error {errors[worst]:.2e} on "
                f"{self._names[worst]}, expected at most {tolerance:.0e}. The anchor was captured on "
                f"`{self.config.model_name_or_path}` (revision {self.config.model_revision}) in {self._numerics}; the "
                f"model at hand is `{model.config._name_or_path}` in {numerics}. Load that model in these numerics, or "
                "capture an anchor on this one."
                + (trained if self.config.reference == "current" and isinstance(model, PeftModel) else "")
            )
        if numerics != self._numerics:
            logger.warning(
                f"The anchor was captured in {self._numerics}, the model at hand computes in {numerics}: their states "
                f"differ by up to {errors[worst]:.1e} relative, which training would pin. Capture it in the numerics "
                "of training, e.g. with `trl-sbr anchor` and the training's recipe."
            )

    @property
    def _numerics(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in ("dtype", "autocast_dtype", "quantization")}

    def tolerance_to(self, other: "SafetyAnchor") -> float:
        """Largest relative error between the states of two anchors that their numerics explain."""
        return tolerance_of(self._numerics, other._numerics)

    def compare(self, model: nn.Module, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> AnchorReport:
        """
        Report how a model, fine-tuned or not, stands to the anchor. Unlike [`SafetyAnchor.verify`], states that have
        drifted are reported and raise no error.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The model, as it is.
            processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
                Its tokenizer or processor.

        Returns:
            [`AnchorReport`]: Relative error, cosine and refusal, anchor by anchor.

        Raises:
            ValueError: If the hidden size, the chat template or the token ids differ.
        """
        self.check_compatible(model, processing_class)
        states = _read_states(model, self.input_ids, self.positions).cpu()
        errors, cosines = self.drift(states)
        answers = self.answers(model, processing_class)
        checks = [
            AnchorCheck(question, error.item(), cosine.item(), is_refusal(answer), answer, opener)
            for question, opener, error, cosine, answer in zip(
                self.questions, self.config.openers, errors, cosines, answers, strict=True
            )
        ]
        return AnchorReport(checks, self.has_unembedding_of(model))

    def save_pretrained(self, save_directory: str | Path, overwrite: bool = False) -> None:
        """
        Save the anchor as `safety_anchor.safetensors` and `safety_anchor_config.json`. They can lie beside a model or
        an adapter. A file is complete or absent, whatever interrupts the writing.

        Args:
            save_directory (`str` or `Path`):
                Folder, made if need be.
            overwrite (`bool`, *optional*, defaults to `False`):
                Whether to replace another anchor that lies there.

        Raises:
            FileExistsError: If another anchor lies there and `overwrite` is `False`.
            OSError: If the files cannot be written, e.g. on a full disk.
        """
        write_anchor(Path(save_directory), self.config, self.hidden_states, overwrite)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        token: str | None = None,
        subfolder: str = "",
    ) -> "SafetyAnchor":
        """
        Load an anchor from a folder or from the Hub. Nothing is unpickled; every field, shape, size and hash is
        checked, sizes before anything is downloaded.

        Args:
            name_or_path (`str` or `Path`):
                Folder that holds the two files, or id of a Hub repository that does: an anchor's own, or that of an
                adapter that carries it.
            revision (`str`, *optional*):
                Branch, tag or commit of the Hub repository. The commit is kept in `commit`.
            token (`str`, *optional*):
                Token for the Hub. Defaults to the one of the login.
            subfolder (`str`, *optional*, defaults to `""`):
                Folder within `name_or_path` that holds the two files.

        Returns:
            [`SafetyAnchor`]: The anchor.

        Raises:
            FileNotFoundError: If there is no anchor.
            OSError: If the Hub does not hand it out.
            ValueError: If a file is corrupted, truncated, tampered with, too large, or of another format.
        """
        if os.path.isdir(name_or_path):
            return cls(*read_anchor(Path(name_or_path, subfolder)))
        from ..hub.repository import download_file, resolve_commit

        repo_id = str(name_or_path)
        commit = resolve_commit(repo_id, revision, token)
        prefix = f"{subfolder.strip('/')}/" if subfolder else ""
        path = download_file(repo_id, prefix + CONFIG_NAME, commit, MAX_CONFIG_BYTES, token)
        download_file(repo_id, prefix + TENSOR_NAME, commit, max_tensor_bytes(read_config(path)), token)
        return cls(*read_anchor(path.parent), repo_id, commit)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        commit_message: str = "Upload safety anchor",
        revision: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
        finish: str = "this push again",
    ) -> CommitInfo:
        """
        Push tensor, configuration and card in one commit, which names its parent: what somebody else pushes meanwhile
        is not overwritten. The prompts are published too, see [`SafetyAnchor.without_prompts`].

        Args:
            repo_id (`str`):
                Repository, made if need be.
            private (`bool`, *optional*):
                Whether a repository that is made is private. Defaults to the organization's setting.
            commit_message (`str`, *optional*, defaults to `"Upload safety anchor"`):
                Message of the commit.
            revision (`str`, *optional*):
                Branch to commit to. Defaults to `main`.
            create_pr (`bool`, *optional*, defaults to `False`):
                Whether to open a pull request instead.
            token (`str`, *optional*):
                Token for the Hub. Defaults to the one of the login.
            finish (`str`, *optional*, defaults to `"this push again"`):
                What an error tells to run.

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit; the last one if the repository held all of it.

        Raises:
            OSError: If the push fails. The repository then holds its old files or all of the new ones.
        """
        from ..hub.cards import CARD_NAME, render_anchor_card
        from ..hub.public import public_config
        from ..hub.repository import push_files

        config = public_config(self.config)
        card = render_anchor_card(config, repo_id)
        files = {**anchor_to_files(config, self.hidden_states), CARD_NAME: card.encode()}
        return push_files(
            repo_id,
            files,
            commit_message=commit_message,
            finish=finish,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
        )
