# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What the READMEs quote is what lies in `benchmarks/results/`."""

import runpy
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("readme", "names"),
    [("README.md", ["attacks", "defences", "harm", "price"]), ("benchmarks/README.md", ["depths", "all"])],
)
def test_stress_tables_are_those_of_the_cells(readme, names):
    script = runpy.run_path(str(ROOT / "benchmarks" / "stress_tables.py"))
    text = (ROOT / readme).read_text(encoding="utf-8")
    for name in names:
        table = script["TABLES"][name]()
        assert table in text, "run `python benchmarks/stress_tables.py`"
        assert script["with_tables"](text.replace(table, "| an | older |\n| one | |")) == text
