# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What the core asks of an environment: who has TRL has all that its import needs."""

import json
import subprocess
import sys


# Prints what the package's own modules import when every public name is loaded, and what that adds to TRL's own imports
CORE_IMPORT = """
import builtins, json, sys
from trl import DPOTrainer, GRPOTrainer, SFTConfig, SFTTrainer

loaded, asked, original = set(sys.modules), set(), builtins.__import__

def record(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and (globals or {}).get("__name__", "").split(".")[0] == "trl_sbr":
        asked.add(name.split(".")[0])
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = record
import trl_sbr
for name in trl_sbr.__all__:
    getattr(trl_sbr, name)
print(json.dumps({
    "asked": sorted(asked - sys.stdlib_module_names - {"trl_sbr"}),
    "added": sorted({name.split(".")[0] for name in set(sys.modules) - loaded} - sys.stdlib_module_names),
}))
"""


def test_core_imports_nothing_but_what_trl_needs():
    result = subprocess.run([sys.executable, "-c", CORE_IMPORT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    needed = {
        "accelerate",
        "datasets",
        "filelock",
        "huggingface_hub",
        "peft",
        "safetensors",
        "torch",
        "transformers",
        "trl",
    }
    assert set(found["asked"]) <= needed  # no evaluate, matplotlib, rich, jinja2, requests
    assert {"torch", "trl"} <= set(found["asked"])  # the record works
    assert set(found["added"]) <= needed | {"trl_sbr"}
