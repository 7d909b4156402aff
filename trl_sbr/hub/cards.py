# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Model cards of anchors and of what is trained with them, made from the run's own records. What was not measured, or is
not known, is absent.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ..anchors.provenance import PAPER, is_hub_id, public_name
from ..evaluation.report import IS_REFUSAL
from ..trainers.hardening_record import HOLDING_FLAGS, HardeningRecord, name_figures
from .licenses import base_model_license
from .markup import Markup, code, escape, one_line, render


if TYPE_CHECKING:
    from ..anchors.anchor_files import AnchorConfig


CARD_NAME = "README.md"
REPORT_NAME = "report.json"
PICTURE_NAME = "report.png"
EVAL_RESULTS_NAME = ".eval_results/trl_sbr.yaml"

_CHART_POINTS = 20

_TEMPLATES = Path(__file__).parent / "templates"
NOTES_BEGIN = "<!-- trl_sbr: your notes begin -->"
NOTES_END = "<!-- trl_sbr: your notes end -->"
# On lines of their own: in a line, they are somebody's text
_NOTES = re.compile(f"^{re.escape(NOTES_BEGIN)}\n(.*?)^{re.escape(NOTES_END)}$", re.DOTALL | re.MULTILINE)

# Columns of a report that the card names otherwise; others stand under their own names
_MODEL_LABELS = {"aligned": "aligned model", "sft": "after SFT", "sbr": "after SBR"}

# Where its figures are in a report of an evaluation, and what each is called
_KINDS = (
    ("safety", "harmful_score", "harmful score"),
    ("safety", "incoherent_rate", "incoherent answers"),
    ("safety", "refusals_kept", "refusals kept"),
    ("over_refusal", "refusal_rate", "benign prompts refused"),
    ("tasks", "accuracy", "accuracy"),
)
_LOWER_IS_BETTER = {
    "harmful_score": "harmful scores",
    "refusal_rate": "refusals of benign prompts",
    "incoherent_rate": "incoherent answers",
}
_HIGHER_IS_BETTER = {"refusals_kept": "refusals kept", "accuracy": "accuracies", "win_rate": "win rates"}
_WITHOUT_JUDGE = ("accuracy", "win_rate")


@dataclass
class Figure:
    """
    One figure of a report, of every model that it was measured on.

    Args:
        metric (`str`):
            `"harmful_score"`, `"incoherent_rate"`, `"refusals_kept"`, `"refusal_rate"`, `"accuracy"` or `"win_rate"`.
        label (`str`):
            What it is, in words.
        dataset (`str`):
            Name of the prompts or the task.
        source (`str`, *optional*):
            Where these come from.
        revision (`str`, *optional*):
            Commit of the source.
        shares (`dict[str, dict]`):
            By the model's name, the share in percent with its interval.
    """

    metric: str
    label: str
    dataset: str
    source: str | None
    revision: str | None
    shares: dict[str, dict]

    @property
    def dataset_id(self) -> str | None:
        """The dataset's id, if it is one of the Hub's."""
        match = re.match(r"Hub, ([\w.-]{1,96}/[\w.-]{1,96})(,|$)", self.source or "")
        return match and match[1]


def read_figures(report: dict[str, Any]) -> list[Figure]:
    """
    The harmful scores, over-refusals, task accuracies and the like of a report.

    Args:
        report (`dict[str, Any]`):
            What `trl-sbr evaluate` or `trl-sbr demo` wrote to `report.json`.
    """
    if "results" in report:  # the demo's
        models = report["results"]
        kinds = [
            ("harmful_answered", "harmful_score", "harmful questions answered"),
            ("prefilled_answered", "harmful_score", "harmful questions answered, prefilled"),
            ("benign_refused", "refusal_rate", "benign questions refused"),
            ("task_correct", "accuracy", "task accuracy"),
        ]
        return [
            Figure(metric, label, f"trl_sbr demo, {label}", None, None, {m: models[m][key] for m in models})
            for key, metric, label in kinds
            if all(key in figures for figures in models.values())
        ]
    found = []
    for part, metric, label in _KINDS:
        measured = {model: figures.get(part, {}) for model, figures in report["models"].items()}
        for name in dict.fromkeys(name for entries in measured.values() for name in entries):
            shares = {model: _share(entries.get(name), metric) for model, entries in measured.items()}
            shares = {model: share for model, share in shares.items() if share is not None}
            if shares:
                found.append(_figure(report, metric, label, name, shares))
    return found


def _figure(report: dict[str, Any], metric: str, label: str, name: str, shares: dict[str, dict]) -> Figure:
    if metric == "accuracy" and any("normal_95" in share for share in shares.values()):  # of alpaca_eval
        metric, label = "win_rate", "win rate"
    prompts = report["prompts"]
    # `+prefill` and the like are of the same set; a set's own name may have a plus too
    about = prompts.get(name) or prompts.get(name.rpartition("+")[0], {})
    told, revision = one_line(name), about.get("revision")
    return Figure(metric, f"{label}, {told}", told, about.get("source"), revision and one_line(revision), shares)


def _share(entry: dict | None, metric: str) -> dict | None:
    """A share stands for itself, or under the name of its metric among others of the same answers."""
    if entry is None or "percent" in entry:
        return entry
    share = entry.get(metric)
    if metric == "refusals_kept" and share and entry.get("refusal_rate", share) is None:
        return {**share, "refusals_by": IS_REFUSAL}  # the judge has told none
    return share


def _refusals_by(share: dict, judge: dict | str | None) -> str | None:
    """Who told the refusals that are counted, if it was not the judge."""
    told_by = share.get("refusals_by")
    is_judge = isinstance(judge, dict) and judge.get("id") == told_by
    return None if told_by is None or is_judge else one_line(told_by)


def own_model(report: dict[str, Any], sha256: str | None = None, repo_id: str | None = None) -> str | None:
    """
    The column of a report that is the protected model's.

    Args:
        report (`dict[str, Any]`):
            The report.
        sha256 (`str`, *optional*):
            What identifies the model's folder, see [`~trl_sbr.evaluation.models.ModelEntry.identify`].
        repo_id (`str`, *optional*):
            Repository that the model is for.

    Returns:
        `str`, *optional*: The one that was measured on that folder, or if none was measured on a folder, on that
        repository; of a report that identifies no model, as the demo's, `"sbr"` or the only one. `None` if there is no
        such one, or a server answered for it, with who knows what weights.

    Raises:
        ValueError: If the report was measured on other folders.
    """
    models = report.get("results") or report["models"]
    identities = {name: model["model"] for name, model in models.items() if "model" in model}
    if not identities:
        return "sbr" if "sbr" in models else next(iter(models)) if len(models) == 1 else None
    identities = {name: identity.get("adapter", identity) for name, identity in identities.items()}
    hashes = {name: identity.get("sha256") for name, identity in identities.items()}
    if sha256 is not None and any(hashes.values()):
        own = next((name for name, found in hashes.items() if found == sha256), None)
        if own is None:
            raise ValueError(
                f"The `{REPORT_NAME}` was measured on other models ({', '.join(hashes)}) than the one beside it, of sha256 "
                f"{sha256}. Evaluate this one (`trl-sbr evaluate`), or move the report elsewhere."
            )
        return own
    if repo_id is None:
        return None
    on_hub = {name: _repository(identity) for name, identity in identities.items() if not hashes[name]}
    return next((name for name, found in on_hub.items() if found == repo_id), None)


def _repository(identity: dict[str, Any]) -> Any:
    """The repository that a model or adapter was loaded from, as its identity names it. A server's names none."""
    return identity.get("name_or_path", identity.get("model_name_or_path"))


def _cell(share: dict | None) -> str:
    if share is None:
        return "–"
    low, high = _interval(share)
    return f"{share['percent']:.1f} % [{low:.1f}, {high:.1f}]"


def _interval(share: dict) -> tuple[float, float]:
    low, high = share.get("wilson_95") or share["normal_95"]
    return low, high


def _results_in_words(report: dict[str, Any]) -> dict[str, Any]:
    """What cards say of a report."""
    figures = read_figures(report)
    shares = (share for figure in figures for share in figure.shares.values())
    refusals_by = dict.fromkeys(_refusals_by(share, report["judge"]) for share in shares)
    return {
        "table": _results_table(figures),
        "directions": _directions({figure.metric for figure in figures}),
        "judge": report["judge"] and _describe(report["judge"]),
        "refusals_by": Markup(", ".join(escape(told_by) for told_by in refusals_by if told_by is not None)),
        "decoding": _describe(report.get("decoding")),
    }


def _directions(metrics: set[str]) -> str:
    """Says of the metrics whether lower or higher is better."""
    parts = []
    for words, direction in ((_LOWER_IS_BETTER, "lower"), (_HIGHER_IS_BETTER, "higher")):
        names = [name for metric, name in words.items() if metric in metrics]
        if names:
            listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
            parts.append(f"for {listed} {direction}" + ("" if parts else " is better"))
    return f"F{', '.join(parts)[1:]}." if parts else ""


def _results_table(figures: list[Figure]) -> Markup:
    models = list(dict.fromkeys(model for figure in figures for model in figure.shares))
    lines = [
        "| | " + " | ".join(escape(_MODEL_LABELS.get(m, m)) for m in models) + " |",
        "|---" * (len(models) + 1) + "|",
    ]
    for figure in figures:
        counts = sorted({share["n"] for share in figure.shares.values()})
        cells = " | ".join(_cell(figure.shares.get(model)) for model in models)
        lines.append(f"| {escape(figure.label)} (n = {'–'.join(map(str, counts))}) | {cells} |")
    return Markup("\n".join(lines))


def _describe(value: Any, show: Callable[[Any], str] = escape) -> Markup:
    """A record in words: `key value, key value`, each shown as `show` does; what is not known is left out."""
    if not isinstance(value, dict):
        return Markup(show(value))
    return Markup(
        ", ".join(
            f"{show(key)} {_describe(item, show)}"
            for key, item in value.items()
            if item is not None and item is not False and "\n" not in str(item)  # a chat template is no word
        )
    )


def eval_results(report: dict[str, Any], own: str | None) -> list[EvalResult]:
    """The figures of the protected model, the column `own`, for the `model-index` of a card's metadata."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=figure.dataset_id or "custom",
            dataset_name=figure.dataset,
            # What the Hub does not know is told apart by this alone: results on one dataset stand in one entry
            dataset_config=None if figure.dataset_id else figure.dataset,
            dataset_revision=figure.revision if figure.dataset_id else None,
            metric_type=figure.metric,
            metric_name=f"{figure.label} (%)",
            metric_value=figure.shares[own]["percent"],
        )
        for figure in read_figures(report)
        if own in figure.shares
    ]


def eval_results_yaml(report: dict[str, Any], own: str | None) -> str | None:
    """The figures of the protected model on datasets of the Hub, for `.eval_results/`. `None` if there are none."""
    entries = [
        EvalResultEntry(
            dataset_id=figure.dataset_id,
            task_id=f"{figure.dataset}_{figure.metric}",
            dataset_revision=figure.revision,
            value=figure.shares[own]["percent"],
            notes=_notes(figure, figure.shares[own], report["judge"]),
        )
        for figure in read_figures(report)
        if figure.dataset_id and own in figure.shares
    ]
    return yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False) if entries else None


def _notes(figure: Figure, share: dict, judge: dict | str | None) -> str:
    """What made one figure, for `.eval_results/`."""
    low, high = _interval(share)
    notes = f"{figure.label}, percent; n = {share['n']}, 95 % interval {low:.1f} to {high:.1f}"
    if figure.metric in _WITHOUT_JUDGE:
        return notes
    told_by = _refusals_by(share, judge)
    return f"{notes}; refusals told by {told_by}" if told_by else f"{notes}; judge: {_describe(judge, one_line)}"


def keep_notes(new: str, old: str) -> str:
    """
    Carry over what a person has written between the two marks of a card.

    Args:
        new (`str`):
            The card as it is written now.
        old (`str`):
            The card as it was.

    Returns:
        `str`: The new card. Where both have notes of their own, it has both: none is lost.
    """
    here, there = _NOTES.search(new), _NOTES.search(old)
    if here is None or there is None:
        return new
    own, kept = here[1].strip(), there[1].strip()
    if own in kept:
        notes = kept
    elif kept in own:
        notes = own
    else:
        notes = f"{kept}\n\n{own}"
    return f"{new[: here.start()]}{NOTES_BEGIN}\n{notes}\n{NOTES_END}{new[here.end() :]}" if notes else new


def _render(template: str, data: ModelCardData, **variables: Any) -> str:
    text = render(
        (_TEMPLATES / template).read_text(encoding="utf-8"),
        card_data=Markup(data.to_yaml()),
        license=data.license,
        notes_begin=Markup(NOTES_BEGIN),
        notes_end=Markup(NOTES_END),
        paper={**PAPER, "citation": Markup(PAPER["citation"])},
        **variables,
    )
    text = re.sub(r"\n{3,}", "\n\n", text)  # where a part is absent
    return text.strip() + "\n"


def _anchor_in_words(config: "AnchorConfig") -> dict[str, Any]:
    """What cards say of an anchor: its prompts, each of which stands plain once, openers, and tokens of the answer that it ties."""
    questions = [prompt[-1]["content"] for prompt in config.prompts if prompt is not None]
    return {
        "count": config.openers.count(""),
        "questions": list(dict.fromkeys(questions)),
        "openers": [opener for opener in dict.fromkeys(config.openers) if opener],
        "tokens": max(config.points_per_anchor),
    }


def render_anchor_card(config: "AnchorConfig", repo_id: str) -> str:
    """
    The card of an anchor.

    Args:
        config (`AnchorConfig`):
            The anchor's configuration.
        repo_id (`str`):
            Repository that the card is for.

    Returns:
        `str`: Metadata and text of the card.
    """
    data = ModelCardData(
        library_name="trl_sbr",
        tags=["safety-anchor", "sbr", "trl"],
        **base_model_license(config.model_name_or_path),
    )
    return _render(
        "anchor_card.md",
        data,
        title=repo_id.split("/")[-1],
        repo_id=repo_id,
        config=config,
        model=_link(config.model_name_or_path),
        **_anchor_in_words(config),
        versions=_describe(config.library_versions),
    )


def _hardening_in_words(record: HardeningRecord) -> dict[str, Any]:
    """What cards say of a hardening."""
    lines = ["| held-out prompts | before | after |", "|---|---|---|"]
    after = name_figures(record["after"], code)
    for name, share in name_figures(record["before"], code).items():
        lines.append(f"| {name} (n = {share['n']}) | {_cell(share)} | {_cell(after.get(name))} |")
    prompts = record["prompts"]
    return {
        "record": record,
        "table": Markup("\n".join(lines)),
        "base": _link(public_name(record["base_model"]["name_or_path"])),
        "prompts": Markup(
            f"{prompts['harmful_refused']} harmful ones, {escape(prompts['harmful'])}, which the model refuses of "
            f"{prompts['harmful_asked']}; {prompts['benign_used']} benign ones, {escape(prompts['benign'])}"
        ),
        "peft": record["peft"] and _describe(record["peft"]),
        "training": _describe(record["training"]),
        "versions": _describe(record["versions"]),
    }


def render_hardened_card(record: HardeningRecord, repo_id: str, is_adapter: bool = False) -> str:
    """
    The card of what `trl-sbr harden` makes.

    Args:
        record (`HardeningRecord`):
            Its record.
        repo_id (`str`):
            Repository, or folder, that the card is for.
        is_adapter (`bool`, *optional*, defaults to `False`):
            Whether it is for the adapter alone, and not for the model that it is merged into.

    Returns:
        `str`: Metadata and text of the card.
    """
    path = record["base_model"]["name_or_path"]
    base = public_name(path)
    data = ModelCardData(
        **base_model_license(path),
        base_model=base if is_hub_id(base) else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if is_hub_id(base) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["hardened", "sbr"],
    )
    return _render(
        "hardened_card.md",
        data,
        title=repo_id.rstrip("/").split("/")[-1],
        repo_id=repo_id,
        is_adapter=is_adapter,
        hardening=_hardening_in_words(record),
        holding_flags=Markup(HOLDING_FLAGS),
    )


def render_model_card(
    run: dict[str, Any],
    repo_id: str,
    anchor: "AnchorConfig | None" = None,
    report: dict[str, Any] | None = None,
    own: str | None = None,
    pictures: tuple[str, ...] = (),
) -> str:
    """
    The card of an adapter or model.

    Args:
        run (`dict[str, Any]`):
            The run's record, see [`~trl_sbr.trainers.run_record.make_record`].
        repo_id (`str`):
            Repository, or folder, that the card is for.
        anchor (`AnchorConfig`, *optional*):
            Configuration of the anchor beside it. `None`: it was trained without.
        report (`dict[str, Any]`, *optional*):
            The report of its evaluation.
        own (`str`, *optional*):
            The column of the report that is this model's, see [`own_model`].
        pictures (`tuple[str, ...]`, *optional*):
            Names of the pictures beside it.

    Returns:
        `str`: Metadata and text of the card.
    """
    path, peft = run["base_model"]["name_or_path"], run["peft"]
    base = public_name(path)
    name = repo_id.rstrip("/").split("/")[-1]
    tags = [*run.get("method", ["trl", "sft"]), *run["tags"]]
    tags += ["sbr", "safety-anchor"] if anchor is not None else []
    tags += [peft["peft_type"].lower()] if peft else []
    results = [] if report is None else eval_results(report, own)
    monitor = run.get("monitor")
    monitor = monitor if monitor and monitor["curve"] else None  # saved before it was trained
    data = ModelCardData(
        **base_model_license(path),
        base_model=base if is_hub_id(base) else None,
        base_model_relation=("adapter" if peft else "finetune") if is_hub_id(base) else None,
        library_name="peft" if peft else "transformers",
        pipeline_tag="text-generation",
        datasets=[dataset["id"] for dataset in run["datasets"] if is_hub_id(dataset["id"])] or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        tags=sorted(set(map(one_line, tags))),
        model_name=name if results else None,
        eval_results=results or None,
    )
    return _render(
        "model_card.md",
        data,
        title=name,
        repo_id=repo_id,
        run=run,
        base=_link(base),
        base_is_local=base != path and not is_hub_id(base),
        peft=peft and _describe(peft),
        monitor=monitor,
        drift_chart=monitor and _drift_chart(monitor["curve"]),
        datasets=[(dataset, _link(dataset["id"], "datasets/")) for dataset in run["datasets"]],
        training=_describe(run["training"]),
        versions=_describe(run["versions"]),
        anchor=anchor,
        hardening=_hardening_in_words(run["hardening"]) if run.get("hardening") else None,
        anchor_repo=run["anchor"] and _link(run["anchor"]["repo_id"]),
        **(_anchor_in_words(anchor) if anchor is not None else {}),
        **(_results_in_words(report) if report is not None else {}),
        pictures=[Markup(quote(picture)) for picture in pictures],
    )


def _drift_chart(curve: list[dict[str, Any]]) -> Markup:
    """A monitor's curve as a chart of at most [`_CHART_POINTS`] points, the last among them."""
    stride = math.ceil(len(curve) / _CHART_POINTS)
    points = curve[::-stride][::-1]
    errors = [round(point["relative_error"], 4) for point in points]
    refused = [round(point["refusal_rate"] / 100, 4) for point in points if "refusal_rate" in point]
    steps = [format(point["step"], "d") for point in points]
    lines = [
        "xychart-beta",
        f"    x-axis step {json.dumps(steps)}",
        f"    y-axis 0 --> {max(1, *errors)}",
        *([f"    bar {refused}"] if len(refused) == len(points) else []),
        f"    line {errors}",
    ]
    return Markup("\n".join(["```mermaid", *lines, "```"]))


def _link(name: str, prefix: str = "") -> Markup:
    if not name:
        return Markup("a model without a name")
    if is_hub_id(name):
        return Markup(f"[{escape(name)}](https://huggingface.co/{prefix}{name})")
    return code(public_name(name))
