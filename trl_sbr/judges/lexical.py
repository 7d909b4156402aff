# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The judge that needs no network and no GPU."""

from collections.abc import Callable, Sequence

from ..metrics.harmful_score.lexical import THRESHOLD, LexicalModel
from ..metrics.harmful_score.lexical_weights import WEIGHTS
from ..metrics.harmful_score.refusal import READ_CHARACTERS
from ..metrics.harmful_score.verdicts import Verdict
from .base import Judge, JudgeInfo, check_pairs


class LexicalJudge(Judge):
    """
    Rules for broken answers, refusals and plain compliance, and linear models over words and characters for the rest:
    see [`~trl_sbr.metrics.harmful_score.lexical.LexicalModel`].

    It says whether a harmful question was answered, in English; in other languages it knows refusals and plain
    beginnings of answers, and the rest is not judged. Prompts are used to find their echo, and to tell harmless
    questions, whose answers are not harmful, where they are given.
    """

    needs_prompts = False

    def __init__(self):
        self._model = LexicalModel(WEIGHTS)
        self.info = JudgeInfo(
            name="lexical",
            id="lexical",
            revision=self._model.revision,
            threshold=THRESHOLD,
            truncation=f"first {READ_CHARACTERS} characters of the response",
            license="apache-2.0",
        )

    def judge(
        self,
        prompts: Sequence[str] | None,
        responses: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        check_pairs(prompts, responses, self.needs_prompts)
        verdicts = []
        for i, response in enumerate(responses):
            verdicts.append(self._model.judge(response, None if prompts is None else prompts[i]))
            if progress is not None:
                progress(i + 1, len(responses))
        return verdicts
