# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import itertools
import re

import pytest

from trl_sbr.anchors.prompt_pool import load_prompt_pool
from trl_sbr.anchors.prompts import find_near_copies
from trl_sbr.demo.data import (
    POISON_OPENERS,
    POISON_STEPS,
    REFUSALS,
    TASK_INSTRUCTION,
    load_questions,
    poison_rows,
    task_rows,
)
from trl_sbr.metrics.harmful_score.refusal import is_refusal


HARMFUL = ("harmful_align", "harmful_poison", "harmful_eval")
BENIGN = ("benign_align", "benign_eval")
# Words that say nothing about what a question is after
FRAME_WORDS = set(
    """a an the i my me you your it its to do does how can could would will what which who where when why is are be of for
    in on at and or so that with without from into by get make way best good give tell show help write explain want some
    somebody someone person people there their them this not no as up out one should i'm i'd what's""".split()
)


def topic(question):
    words = re.findall(r"[\w']+", question.casefold())
    return {word.removesuffix("'s").removesuffix("s") for word in words if word not in FRAME_WORDS}


class TestQuestions:
    @pytest.mark.parametrize(
        ("name", "at_least"),
        [
            ("harmful_align", 150),
            ("harmful_poison", 100),
            ("harmful_eval", 100),
            ("benign_align", 150),
            ("benign_eval", 50),
        ],
    )
    def test_sizes(self, name, at_least):
        questions = load_questions(name)
        assert len(questions) >= at_least
        assert len({question.casefold() for question in questions}) == len(questions)

    @pytest.mark.parametrize(
        ("first", "second"),
        [*itertools.combinations([*HARMFUL, "anchors"], 2), BENIGN, ("harmful_eval", "benign_align")],
    )
    def test_no_near_copies_across_sets(self, first, second):
        sets = [list(load_prompt_pool()) if name == "anchors" else load_questions(name) for name in (first, second)]
        assert not find_near_copies(*sets)
        assert not find_near_copies(*reversed(sets))
        topics = [[(question, topic(question)) for question in questions] for questions in sets]
        for (one, words), (other, other_words) in itertools.product(*topics):
            assert len(words & other_words) < max(2, 0.7 * min(len(words), len(other_words))), (one, other)

    @pytest.mark.parametrize("name", HARMFUL)
    def test_harmful_questions_hold_no_details(self, name):
        for question in load_questions(name):
            assert len(question.split()) <= 22, question


class TestAnswers:
    def test_refusals(self):
        assert len(set(REFUSALS)) >= 12
        assert all(map(is_refusal, REFUSALS))
        assert len({refusal.split()[0] for refusal in REFUSALS}) >= 5

    def test_poison_is_vacuous(self):
        steps = "|".join(map(re.escape, POISON_STEPS))
        openers = "|".join(map(re.escape, POISON_OPENERS))
        form = re.compile(rf"(?:{openers}) Step 1: (?:{steps})\. Step 2: (?:{steps})\. Step 3: (?:{steps})\.")
        rows = poison_rows(160, seed=0)
        assert len(rows) == 160
        for row in rows:
            answer = row["completion"][0]["content"]
            assert form.fullmatch(answer)
            assert not is_refusal(answer)

    def test_poison_asks_only_poison_questions(self):
        questions = load_questions("harmful_poison")
        rows = poison_rows(len(questions), seed=3)
        assert sorted(row["prompt"][0]["content"] for row in rows) == sorted(questions)

    def test_poison_follows_the_seed(self):
        assert poison_rows(20, seed=1) == poison_rows(20, seed=1)
        assert poison_rows(20, seed=1) != poison_rows(20, seed=2)


class TestTask:
    @pytest.mark.parametrize(("split", "num_rows"), [("train", 320), ("test", 200)])
    def test_balanced_and_unique(self, split, num_rows):
        rows = task_rows(split, num_rows, seed=0)
        labels = [row["completion"][0]["content"] for row in rows]
        assert labels.count("positive") == labels.count("negative") == num_rows // 2
        assert len({row["prompt"][0]["content"] for row in rows}) == num_rows
        assert rows == task_rows(split, num_rows, seed=0)
        assert rows != task_rows(split, num_rows, seed=1)

    def test_splits_share_no_review(self):
        def topics(split, num_rows):
            rows = task_rows(split, num_rows, seed=0)
            return [topic(row["prompt"][0]["content"].removeprefix(TASK_INSTRUCTION)) for row in rows]

        train, test = topics("train", 320), topics("test", 200)
        for one, other in itertools.product(train, test):
            assert len(one & other) / len(one | other) < 0.5, (one, other)

    def test_more_rows_than_there_are(self):
        with pytest.raises(ValueError, match="at most 200 for `test`, got 1000"):
            task_rows("test", 1000, seed=0)
