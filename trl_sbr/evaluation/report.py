# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Figures of models side by side: as a table, and as bars with their intervals."""

import json
import math
import platform
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from ..anchors.anchor_files import write_atomically
from ..anchors.untrusted_files import MAX_JSON_BYTES, parse_csv, parse_json, read_text
from ..metrics.harmful_score.verdicts import Share, Verdict, harmful_share, incoherent_share, refusal_share


# Told apart by readers who see few colours too (Okabe and Ito, after the demo's three)
COLORS = ("#8c8c8c", "#d1495b", "#2e86ab", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000")

IS_REFUSAL = "trl_sbr.is_refusal"  # who tells refusals where the judge does not

_PIPE_WIDTH = 1000  # characters: who reads a pipe or a file cuts it himself


def safety_figures(verdicts: list[Verdict], judge_name: str) -> dict:
    """
    Returns what the verdicts on a series add up to.

    Args:
        verdicts (`list[Verdict]`):
            One verdict an answer.
        judge_name (`str`):
            Who judged: of all judges, `"lexical"` alone tells broken answers.
    """
    incoherent = incoherent_share(verdicts) if judge_name == "lexical" else None
    shares = {
        "harmful_score": harmful_share(verdicts),
        "refusal_rate": refusal_share(verdicts),
        "incoherent_rate": incoherent,
    }
    return {
        **{key: None if share is None else share.to_dict() for key, share in shares.items()},
        "n": len(verdicts),
        "n_unscored": sum(verdict.harmful is None for verdict in verdicts),
    }


def refusals_kept(before: Sequence[bool], after: Sequence[bool]) -> dict | None:
    """
    Returns the share of the prompts that an aligned model refused and that are refused still. Models that are not
    perfectly aligned differ in how much they refuse; this is what a training took from them.

    Args:
        before (`Sequence[bool]`):
            Of each prompt, whether the aligned model refused it.
        after (`Sequence[bool]`):
            The same of the trained one.

    Returns:
        `dict`, *optional*: The share with its interval, `None` if the aligned model refused nothing.
    """
    kept = [still for refused, still in zip(before, after, strict=True) if refused]
    return Share(sum(kept), len(kept)).to_dict() if kept else None


def read_alpaca_eval(path: str, names: list[str], asked: int | None = None) -> dict[str, dict]:
    """
    Read the win rates that `alpaca_eval` found.

    Args:
        path (`str`):
            The `leaderboard.csv` that it wrote, or the same as JSON (generator to figures, or a list of rows).
        names (`list[str]`):
            Generators to read: the models of the report.
        asked (`int`, *optional*):
            Number of prompts that they answered. A row may count fewer, since `alpaca_eval` drops what its judge cannot decide.

    Returns:
        `dict[str, dict]`: Of each model that it holds, the win rate in percent with its normal interval.

    Raises:
        ValueError: If it holds none of the models, or a row has no `win_rate`, or counts more answers than there are.
    """
    text = read_text(path, MAX_JSON_BYTES)
    if Path(path).suffix == ".json":
        found = parse_json(text, path)
        rows = [{"name": name, **row} for name, row in found.items()] if _are_objects(found) else found
        if not isinstance(rows, list) or not _are_objects(dict(enumerate(rows))):
            raise ValueError(
                f"{path}: expected a list of rows, or an object with a row a generator, as `alpaca_eval` writes."
            )
    else:
        rows = [row for _, row in parse_csv(text, path)]
    figures = {}
    for row in rows:
        name = row.get("name", row.get("generator", row.get("")))  # pandas leaves the index's column without a name
        if name in names:
            figures[name] = _win_rate(row, f"{path}: the row of `{name}`")
            if asked is not None and figures[name]["n"] > asked:
                raise ValueError(
                    f"{path}: the row of `{name}` counts {figures[name]['n']} answers (`n_total`), expected at most {asked}, as "
                    "many as this run asks for: it is the result of another run. Let `alpaca_eval` judge this run's answers."
                )
    if not figures:
        raise ValueError(
            f"{path} has no row of {listed(names)}: found {listed(row.get('name', row.get('', '?')) for row in rows):.500}. "
            "`alpaca_eval` names its rows by the `generator` of the answers."
        )
    return figures


def _are_objects(value) -> bool:
    return isinstance(value, dict) and all(isinstance(row, dict) for row in value.values())


def _win_rate(row: dict, where: str) -> dict:
    def read(column: str, high: float) -> float:
        if column not in row:
            raise ValueError(f"{where} has no `{column}`, which `alpaca_eval` writes.")
        try:
            value = float(row[column])
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not 0 <= value <= high:
            raise ValueError(
                f"{where}: expected `{column}` to be a number from 0 to {high}, found {row[column]!r:.200}."
            )
        return value

    rate, error, n = read("win_rate", 100), read("standard_error", 100), read("n_total", 10**9)
    interval = [round(max(0.0, rate - 1.96 * error), 2), round(min(100.0, rate + 1.96 * error), 2)]
    return {"percent": round(rate, 2), "n": int(n), "standard_error": error, "normal_95": interval}


def make_report(args, settings, figures, judge, sets, seconds, found, state) -> dict:
    """Returns the figures with all that made them."""
    return {
        "models": {name: {**parts, "model": settings["models"][name]} for name, parts in figures.items()},
        "judge": judge,
        "decoding": {
            **settings["decoding"],
            "max_new_tokens": args.max_new_tokens,
            "prefill": args.prefill,
            "system_prompt": args.system_prompt,
            "batch_size": args.batch_size,
        },
        "prompts": sets,
        "max_prompts": args.max_prompts,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "torch")},
        },
        "device": {"type": state.device.type, "processes": state.num_processes},
        "answers_found": found,
        "seconds": seconds,
    }


def write_report(report: dict, output_dir: Path):
    """Writes `report.json` and `report.png`, and prints the table."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_atomically({output_dir / "report.json": text.encode()})
    models = report["models"]
    of_safety = [item for parts in models.values() for item in parts["safety"].items()]
    broken = {one for one, figure in of_safety if figure["incoherent_rate"] and figure["incoherent_rate"]["count"]}
    unscored = {one for one, figure in of_safety if figure["n_unscored"]}
    results, drawn = {}, {}
    for name, parts in models.items():
        results[name] = {}
        for key, share, is_drawn in _rows_of(parts, report["prompts"], broken, unscored):
            results[name][key] = share
            drawn[key] = is_drawn
    order = sorted(drawn, key=lambda key: ["safety", "over_refusal", "tasks"].index(key[0]))
    title = _title(report)
    print_table(title, {key: f"{key[1]}: {key[2]}" for key in order}, results)
    groups = {key: f"{key[1]}:\n{key[2]}" for key in order if drawn[key]}
    draw_bars(title, groups, results, output_dir / "report.png")


def _rows_of(parts: dict, prompts: dict, broken: set[str], unscored: set[str]) -> Iterator[tuple]:
    """
    Yields of each figure of a model its key (part, label and series), the share, and whether it is drawn. Broken and unscored
    answers count as not harmful or not at all: without them, a model that says nothing sensible would look safe.
    """
    for one, figure in parts["safety"].items():
        yield ("safety", "harmful score", one), figure["harmful_score"], True
        yield ("safety", "refused", one), figure["refusal_rate"], False
        if figure["incoherent_rate"] is not None:
            yield ("safety", "incoherent answers", one), figure["incoherent_rate"], one in broken
        if one in unscored:
            yield ("safety", "unscored answers", one), Share(figure["n_unscored"], figure["n"]).to_dict(), True
        if figure.get("refusals_kept"):
            yield ("safety", "refusals kept", one), figure["refusals_kept"], True
    for one, share in parts["over_refusal"].items():
        yield ("over_refusal", "over-refusal", one), share, True
    for one, share in parts["tasks"].items():
        yield ("tasks", "accuracy" if prompts[one]["rule"] else "win rate", one), share, True


def _title(report: dict) -> str:
    """Says who judged, and who told refusals where that was somebody else."""
    if not report["judge"]:
        return "With 95 % intervals"
    told = [figure["refusals_by"] for parts in report["models"].values() for figure in parts["over_refusal"].values()]
    for parts in report["models"].values():
        # As in `judge_all`: a judge that tells no refusals leaves those that were kept to the phrases too
        told += [
            IS_REFUSAL
            for figure in parts["safety"].values()
            if figure.get("refusals_kept") and figure["refusal_rate"] is None
        ]
    refusals = f", refusals by {IS_REFUSAL}" if IS_REFUSAL in told else ""
    return f"Judged by {report['judge']['id']}{refusals}, with 95 % intervals"


def interval_of(share: dict) -> tuple[float, float]:
    """Returns the 95 % interval of a figure, in percent."""
    low, high = share["wilson_95"] if "wilson_95" in share else share["normal_95"]
    return low, high


def print_table(title: str, labels: dict[Hashable, str], results: dict[str, dict[Hashable, dict | None]]):
    """
    Print figures with their intervals, a column a model.

    Args:
        title (`str`):
            Title of the table.
        labels (`dict[Hashable, str]`):
            What each figure is, by its key.
        results (`dict[str, dict[Hashable, dict]]`):
            By the model's label, its figures by their keys.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for key, label in labels.items():
        shares = [figures.get(key) for figures in results.values()]
        table.add_row(f"{label}{_n(shares)}", *map(_cell, shares))
    print()  # noqa: T201
    # Names stand as they are, brackets and colons too
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, markup=False, emoji=False).print(table)


def draw_bars(title: str, labels: dict[Hashable, str], results: dict[str, dict[Hashable, dict | None]], path: Path):
    """
    Draw figures as groups of bars, one bar a model, with their intervals.

    Args:
        title (`str`):
            Title of the picture.
        labels (`dict[Hashable, str]`):
            What each group is, by its key.
        results (`dict[str, dict[Hashable, dict]]`):
            By the model's label, its figures by their keys.
        path (`Path`):
            Where to write it.
    """
    from matplotlib.figure import Figure

    width = 0.78 / len(results)
    figure = Figure(figsize=(max(8.0, 2.2 * len(labels), 1.1 * width**-1), 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, figures) in enumerate(results.items()):
        groups = [group for group, key in enumerate(labels) if figures.get(key)]
        shares = [figures[key] for key in labels if figures.get(key)]
        percent = [share["percent"] for share in shares]
        errors = [
            [share["percent"] - interval_of(share)[0] for share in shares],
            [interval_of(share)[1] - share["percent"] for share in shares],
        ]
        positions = [group + (i - (len(results) - 1) / 2) * width for group in groups]
        color = COLORS[i % len(COLORS)]
        label = f" {_literal(name)}"  # a legend leaves out what begins with `_`
        axes.bar(positions, percent, width, yerr=errors, capsize=3, color=color, label=label)
        for position, share in zip(positions, shares, strict=True):
            axes.text(position, interval_of(share)[1] + 2, f"{share['percent']:.0f}", ha="center", fontsize=9)
    ticks = [
        f"{_literal(label)}{_n([figures.get(key) for figures in results.values()], line=True)}"
        for key, label in labels.items()
    ]
    axes.set_xticks(range(len(labels)), ticks)
    axes.set_ylabel("%")
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.suptitle(_literal(title), fontsize=12)
    figure.savefig(path, dpi=150)


def _literal(text: str) -> str:
    """A text as it stands: between two `$`, matplotlib reads formulas."""
    return text.replace("$", r"\$")


def _cell(share: dict | None) -> str:
    if share is None:
        return "–"
    low, high = interval_of(share)
    return f"{share['percent']:.1f} % ({low:.0f}–{high:.0f})"


def _n(shares: list[dict | None], line: bool = False) -> str:
    counts = sorted({share["n"] for share in shares if share})
    text = f"(n = {'–'.join(map(str, {counts[0]: 0, counts[-1]: 0}))})" if counts else ""
    return f"{chr(10) if line else ' '}{text}" if text else ""


def listed(names: Iterable[str]) -> str:
    """Names in words."""
    return ", ".join(f"`{name}`" for name in names)
