# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest

from trl_sbr.evaluation.report import draw_bars, print_table, read_alpaca_eval, refusals_kept, safety_figures
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

    def test_no_win_rate(self, tmp_path):
        (tmp_path / "leaderboard.csv").write_text("name,score\nsft,3\n")
        with pytest.raises(ValueError, match="the row of `sft` has no `win_rate`"):
            read_alpaca_eval(str(tmp_path / "leaderboard.csv"), ["sft"])


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
