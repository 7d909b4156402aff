# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The first cases of `benchmarks/fuzz.py`."""

import pytest

from .fuzzing import TARGETS, Outcome, Target, run


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_falls_through(name, tmp_path):
    outcome = Outcome()
    for case in range(60):
        run(TARGETS[name], name, case, tmp_path, outcome)
    assert not outcome.fallen, "\n".join(outcome.fallen)
    assert outcome.counts.total() == 60
    assert outcome.counts["refused"] > 0 or name == "judge_answers"  # a line that cannot be read is asked again


def test_what_falls_through_is_told(tmp_path):
    def fail(path):
        raise {0: TypeError, 1: ValueError}[len(path.read_bytes()) % 2]("no name of a file")

    outcome = Outcome()
    for case in range(60):
        run(Target("f.json", [b"{}", b'{"a": 1}'], fail), "f", case, tmp_path, outcome)
    assert outcome.counts == {"fallen_through": 60}
    assert any("TypeError" in line for line in outcome.fallen) and any(
        "names no file" in line for line in outcome.fallen
    )
