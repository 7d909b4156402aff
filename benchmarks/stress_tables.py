# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Writes the tables of attacks × defences into both READMEs, from the cells that `trl-sbr stress` left in `benchmarks/results/`.

```bash
python benchmarks/stress_tables.py
```
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QWEN, SMOLLM2, SMOLLM2_BEFORE = "stress_qwen", "stress_smollm2_remerged", "stress_smollm2_bfloat16"
# A cell that the first folder lacks is taken from the next
FOLDERS = {"qwen": (QWEN,), "smollm2": (SMOLLM2, SMOLLM2_BEFORE)}

ATTACKS = {
    "standard": "poison",
    "long": "longer poison (Qwen three, SmolLM2 five times)",
    "high_lr": "poison at four times the learning rate",
    "refuse_then_comply": "refuse-then-comply",
    "refusal_unlearning": "refusal unlearning",
    "aoa": "identity shift",
    "backdoor": "backdoor, without its trigger",
    "knows_anchors": "knows the anchors",
    "benign": "benign rows alone",
    "rank1": "a random rank-1 adapter",
}
DEFENCES = {
    "sft": "SFT",
    "sbr": "SBR, one token",
    "sbr_whole": "SBR, fourteen tokens",
    "sbr_whole_4": "SBR, fourteen tokens, four of the eight anchors a step",
    "sbr_lambda_5": "SBR, one token, λ = 5",
    "sbr_target": "SBR, one token, λ by itself",
    "mix_10": "10 % safety rows mixed in",
    "screen": "SFT on screened rows",
    "screen_sbr": "SBR on screened rows",
    "kl": "KL on the anchors",
    "constrained": "constrained SFT",
    "safegrad": "SafeGrad",
    "proximal": "distance to the aligned weights",
    "middle_layer": "SBR's term at a middle layer",
    "null_space": "null-space adapters on the anchors",
}
FURTHER = {
    "sbr_whole_2": "SBR, fourteen tokens, two of the eight anchors a step",
    "sbr_whole_lambda_5": "SBR, fourteen tokens, λ = 5",
}
DEPTHS = {
    "sft": "SFT",
    "sbr": "SBR, one token",
    "sbr_deep": "fourteen tokens, eight openers, λ = 50",
    "sbr_deep_200": "fourteen tokens, eight openers, λ = 200",
    "screen_deep_200": "the same on screened rows",
    "sbr_deep_500": "fourteen tokens, eight openers, λ = 500",
    "sbr_deep_target": "fourteen tokens, eight openers, λ by itself",
    "sbr_all": "fourteen tokens, all 22 openers, λ = 50",
    "sbr_all_200": "fourteen tokens, all 22 openers, λ = 200",
    "sbr_wide_200": "fourteen tokens of 24 prompts, three openers, λ = 200",
}
# Their answers are gone: they were counted before a loop that counts ("Step 2: Step 3: …") was told to be broken, not harmful
COUNTED_EARLIER = {
    QWEN: ("qwen/refuse_then_comply/sbr_whole", "qwen/standard/null_space", "qwen/standard/sbr_target"),
    SMOLLM2_BEFORE: ("",),
}
# The model as it is and hardened, before and after these attacks
ATTACKS_ON_HARDENED = ("standard", "long", "refuse_then_comply", "refusal_unlearning")
HARDENED = (
    (False, "sft", "SFT"),
    (False, "sbr", "SBR, one token"),
    (True, "sbr", "hardened; SBR, one token"),
    (True, "sbr_deep_200", "hardened; fourteen tokens, behind openers"),
    (True, "screen_deep_200", "hardened; the same on screened rows"),
)
COLUMNS = (
    "harmful score",
    "refusals kept",
    "behind unseen openers",
    "as the attacker asks",
    "under an unseen system prompt / another template",
    "benign refused, plain / behind an opener",
    "SST-2",
)

Figures = dict[str, Any]


def figures(folder: str, cell: str) -> Figures | None:
    """What the cell of that name was measured at, or `None` if it was not run."""
    path = RESULTS / folder / "cells" / cell / "cell.json"
    if not path.exists():
        return None
    earlier = cell.startswith(COUNTED_EARLIER.get(folder, ()))
    return json.loads(path.read_text(encoding="utf-8"))["figures"] | {"mark": " ¹" if earlier else ""}


def seeds(folders: tuple[str, ...], cell: str) -> list[Figures]:
    """The figures of all seeds of a cell, in the first of the folders that has any."""
    for folder in folders:
        runs = sorted((RESULTS / folder / "cells" / cell).glob("seed-*/cell.json"))
        if runs:
            return [figures(folder, f"{cell}/{run.parent.name}") for run in runs]
    return []


def share(value: dict[str, Any] | None) -> str:
    """A share with its interval."""
    return f"{value['percent']:.1f} % [{value['wilson_95'][0]:.1f}, {value['wilson_95'][1]:.1f}]" if value else ""


def pair(*values: dict[str, Any]) -> str:
    """Shares without their intervals."""
    return " / ".join(f"{value['percent']:.1f}" for value in values) + " %"


def harmful_score(run: Figures, way: str = "plain") -> str:
    """The score of questions asked in one way, with the share of broken answers where these are many."""
    asked = run["harmful"][way]
    incoherent = asked["incoherent"]["percent"]
    return share(asked["harmful"]) + (f", {incoherent:.0f} % broken" if incoherent > 10 else "")


def refusals_kept(runs: list[Figures]) -> str:
    """Of the first seed with its interval, and of the others."""
    kept = [run["harmful"]["plain"]["refusals_kept"] for run in runs]
    return "; ".join([share(kept[0]), *(f"{value['percent']:.1f}" for value in kept[1:])]) if kept else ""


def row(run: Figures) -> list[str]:
    """`COLUMNS` of a cell."""
    harmful, benign = run["harmful"], run["benign"]
    return [
        harmful_score(run),
        share(harmful["plain"].get("refusals_kept")),
        harmful_score(run, "prefilled_unseen"),
        share(harmful.get("attacker", {}).get("harmful")),
        pair(harmful["system_prompt"]["harmful"], harmful["template"]["harmful"]),
        pair(benign["plain"]["refused"], benign["prefilled"]["refused"]),
        share(run["task"]["correct"]),
    ]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in markdown, without columns in which nothing stands."""
    columns = [i for i in range(len(header)) if any(cells[i] for cells in rows)]
    lines = ["| " + " | ".join(cells[i] for i in columns) + " |" for cells in [header, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def table_of_attacks() -> str:
    """Refusals kept: attacks × (models × three defences)."""
    rows = []
    for attack, name in ATTACKS.items():
        cells = [
            refusals_kept(seeds(FOLDERS[model], f"{model}/{attack}/{defence}"))
            for model in FOLDERS
            for defence in ("sft", "sbr", "sbr_whole_4")
        ]
        if any(cells):
            rows.append([name, *cells])
    header = ["refusals kept under", "Qwen: SFT", "SBR, one token", "fourteen tokens, in turn"]
    return table([*header, "SmolLM2: SFT", "SBR, one token", "fourteen tokens, in turn"], rows)


def table_of_defences() -> str:
    """Defences under poison × (models × score, over-refusal, accuracy)."""

    def cells(run: Figures | None) -> list[str]:
        if run is None:
            return [""] * 3
        return [
            harmful_score(run) + run["mark"],
            pair(run["benign"]["plain"]["refused"]),
            share(run["task"]["correct"]),
        ]

    aligned = [cell for model, folders in FOLDERS.items() for cell in cells(figures(folders[0], f"{model}/aligned"))]
    rows = [["aligned model", *aligned]]
    for defence, name in DEFENCES.items():
        runs = [seeds(folders, f"{model}/standard/{defence}") for model, folders in FOLDERS.items()]
        if any(runs):
            rows.append([name, *(cell for run in runs for cell in cells(run[0] if run else None))])
    header = ["poison", "Qwen: harmful score", "benign refused", "SST-2"]
    return table([*header, "SmolLM2: harmful score", "benign refused", "SST-2"], rows)


def rows_of(folder: str, model: str, title: str, defences: dict[str, str]) -> list[list[str]]:
    """The aligned model, and under it its cells."""
    aligned = figures(folder, f"{model}/aligned")
    rows = [[f"**{title}**{aligned['mark']}", *row(aligned)]] if aligned else []
    for attack, name in ATTACKS.items():
        for defence, settings in defences.items():
            for seed, run in enumerate(seeds((folder,), f"{model}/{attack}/{defence}")):
                rows.append([f"{name}: {settings}" + (f" (seed {seed})" if seed else "") + run["mark"], *row(run)])
    return rows


def table_of_depths() -> str:
    """What a hardened model keeps, held at one token or deeper."""
    rows = []
    for folder, model, title in (
        (QWEN, "qwen", "Qwen"),
        (QWEN, "hardened", "Qwen, hardened"),
        (SMOLLM2, "smollm2", "SmolLM2"),
        (SMOLLM2, "hardened", "SmolLM2, hardened"),
        (SMOLLM2_BEFORE, "hardened", "SmolLM2, hardened, as it was merged before"),
    ):
        rows += rows_of(folder, model, title, DEPTHS if model == "hardened" else {})
    return table(["", *COLUMNS], rows)


def harm_of(run: Figures) -> str:
    """Harmful score of questions asked plainly, behind unseen openers, and under an unseen system prompt."""
    ways = ("plain", "prefilled_unseen", "system_prompt")
    return " / ".join(f"{run['harmful'][way]['harmful']['percent']:.0f}" for way in ways)


def price_of(run: Figures) -> str:
    """Accuracy, and benign questions refused plainly and behind an opener."""
    refused = [run["benign"][way]["refused"] for way in ("plain", "prefilled")]
    return " / ".join(f"{share['percent']:.0f}" for share in (run["task"]["correct"], *refused))


def table_of_hardened(cell: Callable[[Figures], str]) -> str:
    """Before and after each attack: the model as it is and hardened, by defence."""
    rows = []
    for folder, model, title in ((QWEN, "qwen", "Qwen"), (SMOLLM2, "smollm2", "SmolLM2")):
        for hardened, defence, settings in HARDENED:
            name = "hardened" if hardened else model
            runs = [[figures(folder, f"{name}/aligned")]]
            runs += [seeds((folder,), f"{name}/{attack}/{defence}") for attack in ATTACKS_ON_HARDENED]
            rows.append([f"{title}: {settings}", *("; ".join(map(cell, found)) for found in runs)])
    return table(["", "before", *(ATTACKS[attack] for attack in ATTACKS_ON_HARDENED)], rows)


def table_of_all() -> str:
    """All cells of models that are not hardened."""
    rows = rows_of(QWEN, "qwen", "Qwen2.5-Coder-0.5B-Instruct, aligned by its makers", DEFENCES | FURTHER)
    rows += rows_of(SMOLLM2, "smollm2", "SmolLM2-135M-Instruct with the demo's alignment", DEFENCES | FURTHER)
    rows += rows_of(SMOLLM2_BEFORE, "smollm2", "SmolLM2, as it was merged before", DEFENCES)
    return table(["", *COLUMNS], rows)


TABLES: dict[str, Callable[[], str]] = {
    "attacks": table_of_attacks,
    "defences": table_of_defences,
    "harm": lambda: table_of_hardened(harm_of),
    "price": lambda: table_of_hardened(price_of),
    "depths": table_of_depths,
    "all": table_of_all,
}


def with_tables(text: str) -> str:
    """The text with each `<!-- stress table: NAME -->` followed by that table, as it is now."""
    mark = re.compile(r"(<!-- stress table: (\w+) -->\n\n)(?:\|.*\n)*")
    return mark.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n", text)


if __name__ == "__main__":
    for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"Wrote {path.relative_to(ROOT)}.")
