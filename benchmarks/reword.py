# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
SST-2 rows in other words than the SBR paper's, of which the demo's aligned SmolLM2-135M refuses half.

```bash
python benchmarks/reword.py train.jsonl > train_reworded.jsonl
```
"""

import json
import sys
from pathlib import Path


BEFORE_TEXT = "Analyze the sentiment of the input, and respond only positive or negative.\nInput: "
WORDING = 'Tell me whether the tone of this sentence is positive or negative: "{}"'


def reword(prompt: str) -> str:
    """Returns the prompt of a row in other words."""
    if not prompt.startswith(BEFORE_TEXT):
        raise ValueError(f"Expected a prompt that begins with {BEFORE_TEXT!r}, found {prompt!r}.")
    return WORDING.format(prompt.removeprefix(BEFORE_TEXT).strip())


def main(path: str) -> None:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row["prompt"][0]["content"] = reword(row["prompt"][0]["content"])
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
