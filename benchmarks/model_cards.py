# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Writes `model_cards/`: the cards of the anchor and the adapter of the SmolLM2 demo, from what the demo wrote.

```bash
python benchmarks/model_cards.py                # from benchmarks/results/
python benchmarks/model_cards.py trl_sbr_demo   # first takes over report, picture and anchor from a run of the demo
```
"""

import json
import shutil
import sys
from pathlib import Path

from trl_sbr.anchors.anchor_files import CONFIG_NAME, read_config
from trl_sbr.hub.cards import keep_notes, render_anchor_card, render_model_card


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Of a run of the demo -> here
SOURCES = {"report.json": "demo.json", "report.png": "demo.png", f"anchor/{CONFIG_NAME}": "demo_anchor.json"}

NOTES = """\
<!-- trl_sbr: your notes begin -->
The aligned model is [HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) with the
small refusal adapter of trl_sbr and its hardening adapter merged into it. `trl-sbr demo` makes it, trains on it and measures; it leaves the anchor and
the adapter in its output folder. They are not published: this card shows what a published one looks like.
<!-- trl_sbr: your notes end -->
"""


def make_cards(results: Path = RESULTS) -> dict[str, str]:
    """
    The cards by the names of their folders.

    Args:
        results (`Path`, *optional*):
            Folder of `demo.json` and `demo_anchor.json`.
    """
    report = json.loads((results / "demo.json").read_text(encoding="utf-8"))
    anchor = read_config(results / "demo_anchor.json")
    # The folder is one of the machine that ran the demo
    anchor.model_name_or_path = f"~/.cache/huggingface/trl_sbr/{Path(anchor.model_name_or_path).name}"
    training = dict(report["training"])
    peft = {
        "peft_type": training.pop("method").upper(),
        "r": training.pop("rank"),
        "lora_alpha": training.pop("alpha"),
    }
    sbr = report["sbr"]
    if sbr["num_anchors"] != len(anchor.prompts):
        raise ValueError(
            f"`demo.json` was measured with {sbr['num_anchors']} anchors, and `demo_anchor.json` holds "
            f"{len(anchor.prompts)}: take both from one run of the demo."
        )
    run = {
        "base_model": {"name_or_path": anchor.model_name_or_path, "revision": None},
        "peft": peft,
        "hardening": report.get("hardening"),
        "sbr": sbr,
        "anchor": {"repo_id": None, "commit": None},
        "datasets": [],
        "tags": [],
        "training": training,
        "versions": report["versions"],
    }
    picture = "../../benchmarks/results/demo.png"
    cards = {
        "smollm2-135m-sbr-anchor": render_anchor_card(anchor, "smollm2-135m-sbr-anchor"),
        "smollm2-135m-sbr-lora": render_model_card(
            run, "smollm2-135m-sbr-lora", anchor, report, own="sbr", pictures=(picture,)
        ).replace("](report.json)", "](../../benchmarks/results/demo.json)"),
    }
    return {name: keep_notes(card, NOTES) for name, card in cards.items()}


def main(argv: list[str]) -> None:
    for source, name in SOURCES.items() if argv else ():
        shutil.copyfile(Path(argv[0], source), RESULTS / name)
    for name, card in make_cards().items():
        path = ROOT / "model_cards" / name / "README.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(card, encoding="utf-8")
        print(f"Wrote {path.relative_to(ROOT)}.")


if __name__ == "__main__":
    main(sys.argv[1:])
