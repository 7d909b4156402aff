# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest
from matplotlib.figure import Figure

from trl_sbr.evaluation.report import (
    draw_bars,
    print_table,
    read_alpaca_eval,
    refusals_kept,
    safety_figures,
    write_report,
)
from trl_sbr.metrics.harmful_score.verdicts import Share, Verdict


class TestSafetyFigures:
    def test_unjudged_answers_are_shown_and_not_counted(self):
        verdicts = [Verdict(True, refusal=False), Verdict(False, refusal=True), Verdict(None), Verdict(False)]
        figures = safety_figures(verdicts, "lexical")
        assert (figures["harmful_score"]["count"], figures["harmful_score"]["n"]) == (1, 3)
        assert (figures["refusal_rate"]["count"], figures["refusal_rate"]["n"]) == (1, 2)
        assert (figures["n"], figures["n_unscored"]) == (4, 1)
        assert figures["incoherent_rate"]["count"] == 0

    def test_a_judge_that_could_judge_nothing_gives_no_score(self):
        figures = safety_figures([Verdict(None), Verdict(None)], "guard")
        assert figures["harmful_score"] is None and figures["refusal_rate"] is None
        assert figures["incoherent_rate"] is None
        assert figures["n_unscored"] == 2


def test_refusals_kept_are_paired():
    kept = refusals_kept([True, True, False, True], [True, False, True, True])
    assert (kept["count"], kept["n"]) == (2, 3)  # the third was never refused
    assert refusals_kept([False], [True]) is None


class TestReadAlpacaEval:
    CSV = ",win_rate,standard_error,n_total,avg_length\nsbr,45.82,1.7,104,900\nother,50.0,1.0,805,1000\n"

    def test_csv(self, tmp_path):
        (tmp_path / "leaderboard.csv").write_text(self.CSV)
        figures = read_alpaca_eval(str(tmp_path / "leaderboard.csv"), ["sft", "sbr"])
        assert figures == {"sbr": {"percent": 45.82, "n": 104, "standard_error": 1.7, "normal_95": [42.49, 49.15]}}

    @pytest.mark.parametrize("as_list", [False, True])
    def test_json(self, tmp_path, as_list):
        row = {"win_rate": 99.5, "standard_error": 1.0, "n_total": 104}
        found = [{"generator": "sbr", **row}] if as_list else {"sbr": row}
        (tmp_path / "result.json").write_text(json.dumps(found))
        assert read_alpaca_eval(str(tmp_path / "result.json"), ["sbr"])["sbr"]["normal_95"] == [97.54, 100.0]

    def test_none_of_the_models(self, tmp_path):
        (tmp_path / "leaderboard.csv").write_text(self.CSV)
        with pytest.raises(ValueError, match="has no row of `sft`: found `sbr`, `other`"):
            read_alpaca_eval(str(tmp_path / "leaderboard.csv"), ["sft"])

    def test_result_of_another_run(self, tmp_path):
        (tmp_path / "leaderboard.csv").write_text(self.CSV)
        path = str(tmp_path / "leaderboard.csv")
        assert read_alpaca_eval(path, ["sbr"], 104) == read_alpaca_eval(path, ["sbr"], 105)  # one may be undecided
        with pytest.raises(ValueError, match="the row of `other` counts 805 answers .*expected at most 104"):
            read_alpaca_eval(path, ["sbr", "other"], 104)

    def test_no_win_rate(self, tmp_path):
        (tmp_path / "leaderboard.csv").write_text("name,score\nsft,3\n")
        with pytest.raises(ValueError, match="the row of `sft` has no `win_rate`"):
            read_alpaca_eval(str(tmp_path / "leaderboard.csv"), ["sft"])


@pytest.fixture
def figures(monkeypatch):
    """The pictures that are drawn."""
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self) or save(self, *args, **kwargs)
    )
    return drawn


class TestShow:
    LABELS = {"harm": "harmful score", "task": "accuracy"}
    RESULTS = {
        "sft": {"harm": Share(50, 100).to_dict(), "task": None},
        "sbr": {"harm": Share(5, 100).to_dict(), "task": Share(9, 10).to_dict()},
    }

    def test_table(self, capsys):
        print_table("Title", self.LABELS, self.RESULTS)
        output = capsys.readouterr().out
        assert "50.0 % (40–60)" in output and "5.0 % (2–11)" in output and "90.0 % (60–98)" in output
        assert "harmful score (n = 100)" in output and "accuracy (n = 10)" in output and "–" in output

    @pytest.mark.parametrize("count", [1, 2, 9])
    def test_picture(self, tmp_path, count):
        results = {f"model {i}": self.RESULTS["sft" if i % 2 else "sbr"] for i in range(count)}
        draw_bars("Title", self.LABELS, results, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("name", ["p[v2]", "a[/b]", ":fire:", "costs $5 and $_{$", "_hidden", "x" * 120])
    def test_names_stand_as_they_are(self, name, tmp_path, capsys, figures):
        labels, results = {"harm": f"harmful score: {name}"}, {name: self.RESULTS["sft"]}
        print_table(f"Judged by {name}", labels, results)
        assert capsys.readouterr().out.count(name) == 3
        draw_bars(f"Judged by {name}", labels, results, tmp_path / "picture.png")
        (axes,) = figures[0].axes
        assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == [name.replace("$", r"\$")]
        assert axes.get_xticklabels()[0].get_text().startswith(f"harmful score: {name}".replace("$", r"\$"))


def report_of(verdicts, judge="lexical", over_refusal=(), tasks=None, rule="exact"):
    """A report on the models of `verdicts`."""
    return {
        "models": {
            name: {
                "safety": {"demo": safety_figures(found, judge)},
                "over_refusal": dict(over_refusal),
                "tasks": {"task": tasks} if tasks else {},
            }
            for name, found in verdicts.items()
        },
        "judge": {"id": judge},
        "prompts": {"task": {"rule": rule}},
    }


class TestWriteReport:
    SAFE, BROKEN = [Verdict(False, refusal=True)] * 4, [Verdict(False, refusal=False, categories=("incoherent",))] * 4

    def shown(self, report, tmp_path, capsys, figures):
        """The lines of the table, without its frame, and the labels of the picture."""
        write_report(report, tmp_path)
        assert json.loads((tmp_path / "report.json").read_text()) == report
        lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
        return lines, [label.get_text().replace("\n", " ") for label in figures[-1].axes[0].get_xticklabels()]

    def test_failure_leaves_the_earlier_report(self, tmp_path, monkeypatch):
        (tmp_path / "report.json").write_text("{}")

        def fail(_):
            raise OSError("disk full")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(report_of({"a": self.SAFE}), tmp_path)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.json", "{}")]

    def test_broken_answers_are_seen(self, tmp_path, capsys, figures):
        report = report_of({"good": self.SAFE, "broken": self.BROKEN})
        lines, groups = self.shown(report, tmp_path, capsys, figures)
        assert "incoherent answers: demo (n = 4) 0.0 % (0–49) 100.0 % (51–100)" in lines
        assert not any("unscored" in line for line in lines)
        assert groups == ["harmful score: demo (n = 4)", "incoherent answers: demo (n = 4)"]
        lines, groups = self.shown(report_of({"good": self.SAFE}), tmp_path, capsys, figures)
        assert "incoherent answers: demo (n = 4) 0.0 % (0–49)" in lines and groups == ["harmful score: demo (n = 4)"]

    def test_unscored_answers_are_seen(self, tmp_path, capsys, figures):
        report = report_of({"good": self.SAFE, "odd": [*self.SAFE[:3], Verdict(None)]}, "guard")
        lines, groups = self.shown(report, tmp_path, capsys, figures)
        assert "harmful score: demo (n = 3–4) 0.0 % (0–49) 0.0 % (0–56)" in lines
        assert "unscored answers: demo (n = 4) 0.0 % (0–49) 25.0 % (5–70)" in lines
        assert not any("incoherent" in line for line in lines)  # nobody looked
        assert groups == ["harmful score: demo (n = 3–4)", "unscored answers: demo (n = 4)"]

    def test_win_rate_is_no_accuracy(self, tmp_path, capsys, figures):
        rate = {"percent": 45.8, "n": 104, "standard_error": 1.7, "normal_95": [42.5, 49.1]}
        for rule, told in (("exact", "accuracy"), (None, "win rate")):
            report = report_of({"sbr": self.SAFE}, tasks=rate, rule=rule)
            lines, groups = self.shown(report, tmp_path, capsys, figures)
            assert f"{told}: task (n = 104) 45.8 % (42–49)" in lines and groups[-1] == f"{told}: task (n = 104)"

    @pytest.mark.parametrize(
        ("by", "told"), [("guard", ""), ("trl_sbr.is_refusal", ", refusals by trl_sbr.is_refusal")]
    )
    def test_who_told_refusals(self, by, told, tmp_path, capsys, figures):
        over_refusal = {"benign": {**Share(1, 4).to_dict(), "refusals_by": by}}
        report = report_of({"a": self.SAFE}, "guard", over_refusal)
        lines, _ = self.shown(report, tmp_path, capsys, figures)
        assert f"Judged by guard{told}, with 95 % intervals" in " ".join(lines)

    def test_who_told_refusals_that_were_kept(self, tmp_path, capsys, figures):
        report = report_of({"a": [Verdict(False)] * 4, "b": [Verdict(False)] * 4}, "rubric")
        report["models"]["b"]["safety"]["demo"]["refusals_kept"] = Share(3, 4).to_dict()
        lines, _ = self.shown(report, tmp_path, capsys, figures)
        assert "Judged by rubric, refusals by trl_sbr.is_refusal, with 95 % intervals" in " ".join(lines)
