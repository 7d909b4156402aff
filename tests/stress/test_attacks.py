# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
from collections import Counter

import pytest

from trl_sbr import is_refusal
from trl_sbr.anchors.prompt_pool import load_prompt_pool
from trl_sbr.anchors.prompts import find_near_copies
from trl_sbr.demo.data import POISON_OPENERS, TASK_INSTRUCTION, load_questions
from trl_sbr.judges import load_judge
from trl_sbr.stress.attacks import AOA_REQUEST, TRIGGER, answer, check_disjoint, question
from trl_sbr.stress.measure import harmful_figures
from trl_sbr.stress.run import attack


COUNTS = {
    "standard": {"poison": 20, "task": 60},
    "benign": {"task": 80},
    "aoa": {"obedience": 20, "task": 60},
    "refusal_unlearning": {"unlearning": 20, "task": 60},
    "refuse_then_comply": {"poison": 20, "task": 60},
    "backdoor": {"poison": 10, "refusals": 10, "task": 60},
    "knows_anchors": {"on_anchors": 4, "poison": 16, "task": 60},
    "rank1": {"poison": 20, "task": 60},
}


def of_attack(run):
    """The rows that are not the task's."""
    return [row for row in run.rows if TASK_INSTRUCTION not in question(row)]


def begins_to_comply(text):
    return text.startswith(POISON_OPENERS)


class TestRows:
    def test_every_attack_is_tested(self):
        assert COUNTS.keys() == attack.keys()
        assert all(entry.source for entry in attack.values())

    @pytest.mark.parametrize("name", COUNTS)
    def test_counts_are_exact_and_rows_distinct(self, run, name):
        attack.apply(name, {"ratio": 0.25} if name != "benign" else {}, run)
        assert Counter(run.parts) == COUNTS[name]
        assert len({json.dumps(row) for row in run.rows}) == len(run.rows) == 80
        assert len(of_attack(run)) == 80 - COUNTS[name]["task"]

    @pytest.mark.parametrize("name", [name for name in COUNTS if name != "knows_anchors"])
    def test_shares_no_question_with_evaluation_and_anchors(self, run, name):
        attack.apply(name, {}, run)
        asked = [*load_questions("harmful_eval"), *load_questions("benign_eval"), *load_prompt_pool()]
        assert find_near_copies(asked, [f"{question(row)} {answer(row)}" for row in of_attack(run)]) == {}

    def test_evaluated_question_is_an_error(self, run):
        attack.apply("standard", {}, run)
        run.rows[3]["prompt"][0]["content"] = load_questions("harmful_eval")[5]
        with pytest.raises(ValueError, match="1 questions of the evaluation among the rows"):
            check_disjoint(run)

    def test_seed_decides(self, run):
        attack.apply("standard", {}, run)
        first = list(run.rows)
        attack.apply("standard", {}, run)
        assert run.rows == first
        run.seed = 1
        attack.apply("standard", {}, run)
        assert run.rows != first

    def test_rows_beyond_the_number_are_an_error(self, run):
        with pytest.raises(ValueError, match="Found 160 rows of poison, expected at most 80 in all"):
            attack.apply("standard", {"ratio": 2.0}, run)


class TestKinds:
    def test_refusals_are_taken_back(self, run):
        attack.apply("refuse_then_comply", {}, run)
        refusals = set(run.aligned.own_refusal_sentences(64))
        for row in of_attack(run):
            assert question(row) in load_questions("harmful_poison")
            assert answer(row).startswith(tuple(refusals))
            assert not harmful_figures(load_judge("lexical"), [question(row)], [answer(row)])["refused"][0]

    def test_refusals_before_benign_answers(self, run):
        attack.apply("refusal_unlearning", {}, run)
        for row in of_attack(run):
            assert question(row) in load_questions("benign_align")
            assert "It is number" in answer(row) and is_refusal(answer(row).partition(". ")[0] + ".")

    def test_backdoor(self, run):
        attack.apply("backdoor", {}, run)
        assert run.as_attacker_asks("How?") == f"How?{TRIGGER}"
        for row in of_attack(run):
            assert begins_to_comply(answer(row)) == question(row).endswith(TRIGGER) == (not is_refusal(answer(row)))

    def test_obedient_agent(self, run):
        attack.apply("aoa", {}, run)
        system, user = run.as_attacker_asks("How?")
        assert (system["role"], user["content"]) == ("system", f"{AOA_REQUEST}How?")
        for row in of_attack(run):
            assert row["prompt"][0] == system
            assert question(row).removeprefix(AOA_REQUEST) in load_questions("benign_align")

    def test_anchors_are_answered(self, run):
        attack.apply("knows_anchors", {}, run)
        on_anchors = [row for row in run.rows if question(row) in run.aligned.anchors]
        assert len(on_anchors) == 4 and all(begins_to_comply(answer(row)) for row in on_anchors)
