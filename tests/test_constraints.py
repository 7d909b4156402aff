# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import re
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]


def test_floors_are_those_that_are_tested():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(line.replace("_", "-").split(">=") for line in dependencies)
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints" / "oldest.txt").read_text(), re.MULTILINE))
    floors["torch"] = pins["torch"]  # the package index has no CPU build of the floor's
    assert {name: pins[name] for name in floors} == floors
