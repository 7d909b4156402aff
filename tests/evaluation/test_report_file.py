# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import copy
import json
from pathlib import Path

import pytest

from trl_sbr.evaluation.report_file import read_report
from trl_sbr.metrics.harmful_score.verdicts import Share

from ..hub.test_cards import DEMO_REPORT, REPORT


ROOT = Path(__file__).parents[2]


def changed(report, path, value):
    report = copy.deepcopy(report)
    *parents, last = path
    part = report
    for key in parents:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return report


class TestReadReport:
    @pytest.mark.parametrize("report", [REPORT, DEMO_REPORT])
    def test_reports(self, tmp_path, report):
        (tmp_path / "report.json").write_text(json.dumps(report))
        assert read_report(tmp_path / "report.json") == report

    def test_reports_of_this_repository(self):
        assert "results" in read_report(ROOT / "benchmarks" / "results" / "demo.json")

    def test_win_rate_in_place_of_an_accuracy(self, tmp_path):
        rate = {"percent": 50.0, "n": 104, "standard_error": 1.0, "normal_95": [48.0, 52.0]}
        report = changed(REPORT, ("models", "sbr", "tasks", "alpaca_eval"), rate)
        report["models"]["sft"]["tasks"]["alpaca_eval"] = None
        (tmp_path / "report.json").write_text(json.dumps(report))
        assert read_report(tmp_path / "report.json") == report

    @pytest.mark.parametrize(
        ("report", "path", "value", "message"),
        [
            (REPORT, ("models",), None, "expected an object with `judge`, `models`, `prompts`, without `models`"),
            (REPORT, ("models",), {}, "holds no model's figures"),
            (REPORT, ("models", "sbr"), "good", "`models`: 'sbr': expected an object, found 'good'"),
            (
                REPORT,
                ("models", "sbr", "tasks", "sst2"),
                {"percent": 3},
                "'sst2': .*without `n`, `wilson_95`",
            ),
            (REPORT, ("models", "sbr", "tasks", "sst2", "percent"), "93", "`percent`: expected a number, found '93'"),
            (REPORT, ("models", "sbr", "tasks", "sst2", "percent"), 101, "`percent`: expected a number from 0 to 100"),
            (REPORT, ("models", "sbr", "tasks", "sst2", "n"), [1], "`n`: expected an integer"),
            (
                REPORT,
                ("models", "sbr", "over_refusal", "xstest", "wilson_95"),
                [1],
                "`wilson_95`: expected a list of 2",
            ),
            (REPORT, ("models", "sbr", "model"), {"adapter": "0"}, "`adapter`: expected an object"),
            (REPORT, ("prompts",), [], "`prompts`: expected an object"),
            (REPORT, ("prompts", "sst2", "source"), 5, "`source`: expected"),
            (REPORT, ("judge",), "lexical", "`judge`: expected"),
            (DEMO_REPORT, ("results", "sbr", "task_correct"), None, "without `task_correct`"),
            (DEMO_REPORT, ("judge",), ["x"], "`judge`: expected a string"),
        ],
    )
    def test_other_shapes(self, tmp_path, report, path, value, message):
        (tmp_path / "report.json").write_text(json.dumps(changed(report, path, value)))
        with pytest.raises(ValueError, match=f"report.json: .*{message}.*Evaluate again"):
            read_report(tmp_path / "report.json")

    @pytest.mark.parametrize("text", ["", "null", "[]", '{"results": []}', '{"a": 1, "a": 2}', "[" * 10**5])
    def test_no_report(self, tmp_path, text):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match="report.json: .*Evaluate again"):
            read_report(tmp_path / "report.json")

    def test_share_has_the_shape_that_is_written(self, tmp_path):
        report = changed(DEMO_REPORT, ("results", "sbr", "task_correct"), Share(0, 1).to_dict())
        (tmp_path / "report.json").write_text(json.dumps(report))
        assert read_report(tmp_path / "report.json") == report
