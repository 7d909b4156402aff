# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
The pace of the small things: how long one waits for `trl-sbr --help`, and for an anchor to be captured, saved and loaded.

```bash
python benchmarks/pace.py
```

Prints a table and writes `benchmarks/results/pace.json`.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr import SafetyAnchor
from trl_sbr.demo.smollm2 import get_aligned_model, get_smollm2


RESULTS = Path(__file__).parent / "results" / "pace.json"
RUNS = 7


def seconds(function: Callable[[], object]) -> list[float]:
    """Seconds of each run, after one that is not counted."""
    durations = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        function()
        durations.append(round(time.perf_counter() - start, 4))
    return durations[1:]


def main() -> None:
    aligned = get_aligned_model(get_smollm2(None))
    tokenizer = AutoTokenizer.from_pretrained(aligned)
    model = AutoModelForCausalLM.from_pretrained(aligned)
    anchor = SafetyAnchor.capture(model, tokenizer)
    command = Path(sys.executable).parent / "trl-sbr"
    with tempfile.TemporaryDirectory() as folder:
        anchor.save_pretrained(folder)
        durations = {
            "trl-sbr --help": seconds(lambda: subprocess.run([command, "--help"], check=True, capture_output=True)),
            "import trl_sbr": seconds(lambda: subprocess.run([sys.executable, "-c", "import trl_sbr"], check=True)),
            "capture 8 anchors, with their refusals": seconds(lambda: SafetyAnchor.capture(model, tokenizer)),
            "save an anchor": seconds(lambda: anchor.save_pretrained(tempfile.mkdtemp(dir=folder))),
            "load an anchor": seconds(lambda: SafetyAnchor.from_pretrained(folder)),
        }
    for name, values in durations.items():
        print(f"{name:40} {statistics.median(values):8.4f} s  [{min(values):.4f}, {max(values):.4f}]")
    report = {
        "what": f"SmolLM2-135M made to refuse, float32; medians of {RUNS} runs after one that is not counted",
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "torch")},
        "seconds": durations,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Wrote {RESULTS}.")


if __name__ == "__main__":
    main()
