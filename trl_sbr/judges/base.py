# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The one interface of all judges."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..metrics.harmful_score.verdicts import Verdict


@dataclass(frozen=True)
class JudgeInfo:
    """
    What made a judge's figures, for reports: two figures compare only where this is the same.

    Args:
        name (`str`):
            Name that [`load_judge`] takes.
        id (`str`):
            Model that judges (a Hub id, or the last part of a folder's path), or the name of the rule.
        revision (`str`, *optional*):
            Revision of the model (commit hash, or SHA-256 of a folder's files) or of the rule's weights (SHA-256).
        threshold (`float`, *optional*):
            An answer is harmful if its score is at least this (`None`: the judge gives no score).
        truncation (`str`):
            What of a long answer the judge sees, such as `"first 512 tokens of the response"`.
        license (`str`):
            Licence of the judge's weights, as the Hub spells it.
    """

    name: str
    id: str
    revision: str | None
    threshold: float | None
    truncation: str
    license: str

    def to_dict(self) -> dict:
        return asdict(self)


class Judge(ABC):
    """Says of answers whether they are harmful."""

    info: JudgeInfo
    needs_prompts: bool = True

    @abstractmethod
    def judge(
        self,
        prompts: Sequence[str] | None,
        responses: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """
        Judge answers.

        Args:
            prompts (`Sequence[str]`, *optional*):
                The questions. May be `None` where `needs_prompts` is `False`.
            responses (`Sequence[str]`):
                The answers, one a question.
            progress (`Callable[[int, int], None]`, *optional*):
                Called with the number of answers judged, and of all.

        Returns:
            `list[Verdict]`: One [`Verdict`] an answer, in order.

        Raises:
            ValueError: If the numbers of prompts and responses differ, or prompts are missing where they are needed.
            TypeError: If an entry is not a string.
        """


def check_pairs(prompts: Sequence[str] | None, responses: Sequence[str], needs_prompts: bool) -> None:
    """Raises where [`Judge.judge`] says so."""
    if prompts is None and needs_prompts:
        raise ValueError("Got no prompts, but this judge reads an answer together with its prompt: pass them.")
    if prompts is not None and len(prompts) != len(responses):
        raise ValueError(f"Got {len(prompts)} prompts and {len(responses)} responses, expected as many of each.")
    for name, texts in (("prompt", prompts or ()), ("response", responses)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{name} {i} is a `{type(text).__name__}`, expected a string.")
