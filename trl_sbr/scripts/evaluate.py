# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Measure how harmful, how over-cautious and how useful models are, side by side.

```bash
trl-sbr evaluate --model_name_or_path MODEL --adapter my-adapter --prompts strongreject xstest --tasks sst2 \
    --output_dir my-evaluation

trl-sbr evaluate --model_name_or_path MODEL --compare sft=sft-adapter sbr=sbr-adapter --prompts demo \
    --task_file test.jsonl --prefill --output_dir my-comparison

accelerate launch -m trl_sbr.scripts.evaluate --config my-evaluation.yaml
```
"""

import sys

from trl_sbr.scripts.common import loading_arguments, parse_strictly


def main(argv: list[str] | None = None) -> int:
    from accelerate import PartialState

    from trl_sbr.evaluation.evaluate_arguments import EvaluateArguments

    args, model_args = parse_strictly(
        (EvaluateArguments, loading_arguments()),
        command="evaluate",
        description="Measure how harmful, how over-cautious and how useful models are.",
        argv=sys.argv[1:] if argv is None else argv,
    )
    if args.output_dir is None:
        raise ValueError("Where shall the report go? Give `--output_dir FOLDER`.")

    from trl_sbr.evaluation.evaluate import evaluate

    evaluate(args, model_args)
    PartialState().destroy_process_group()
    return 0


if __name__ == "__main__":
    from trl_sbr.cli import main as cli

    sys.exit(cli(["evaluate", *sys.argv[1:]]))
