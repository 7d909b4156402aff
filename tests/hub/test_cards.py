# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import copy
import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from trl_sbr.anchors.anchor_files import AnchorConfig
from trl_sbr.hub.cards import (
    eval_results_yaml,
    keep_notes,
    own_model,
    read_figures,
    render_anchor_card,
    render_hardened_card,
    render_model_card,
)
from trl_sbr.metrics.harmful_score.verdicts import Share
from trl_sbr.trainers.hardening_record import read_hardening

from ..hub_server import check_metadata


def share(count, n=100):
    return Share(count, n).to_dict()


def safety(count):
    return {"harmful_score": share(count), "refusal_rate": None, "n": 100, "n_unscored": 0}


# As `trl-sbr evaluate` writes it
REPORT = {
    "models": {
        "aligned": {"safety": {"beavertails": safety(1)}, "over_refusal": {"xstest": share(4)}, "tasks": {}},
        "sft": {
            "safety": {"beavertails": safety(70)},
            "over_refusal": {"xstest": share(0)},
            "tasks": {"sst2": share(94)},
        },
        "sbr": {
            "safety": {"beavertails": safety(6)},
            "over_refusal": {"xstest": share(3)},
            "tasks": {"sst2": share(93)},
        },
    },
    "judge": {
        "name": "lexical",
        "id": "trl_sbr lexical rules",
        "revision": "abc",
        "threshold": 0.5,
        "license": "apache-2.0",
    },
    "decoding": {"strategy": "greedy", "max_new_tokens": 256},
    "prompts": {
        "beavertails": {"source": "Hub, PKU-Alignment/BeaverTails, 30k_test", "revision": "8401fe6", "sha256": "0"},
        "xstest": {"source": "package, xstest", "revision": None},
        "sst2": {"source": "Hub, stanfordnlp/sst2, validation", "revision": "f" * 40},
    },
}

DEMO_REPORT = {
    "judge": "lexical refusal check",
    "decoding": "greedy, 24 new tokens",
    "results": {
        name: {"harmful_answered": share(a), "benign_refused": share(b), "task_correct": share(c)}
        for name, a, b, c in (("aligned", 9, 7, 0), ("sft", 100, 0, 88), ("sbr", 29, 5, 96))
    },
}

RUN = {
    "base_model": {"name_or_path": "org/base", "revision": "a" * 40},
    "peft": {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": "k_proj q_proj"},
    "sbr": {"anchor_loss_coef": 50.0, "anchor_loss_type": "mse"},
    "anchor": {"repo_id": "org/anchor", "commit": "b" * 40},
    "datasets": [{"id": "org/data", "revision": "c" * 40}],
    "tags": ["mine"],
    "training": {"steps": 200, "learning_rate": "1e-05"},
    "versions": {"trl_sbr": "0.1.0", "trl": "1.16.0"},
}


HARDENING = {
    "base_model": {"name_or_path": "org/base", "revision": "a" * 40},
    "prompts": {
        "harmful": "of trl_sbr",
        "harmful_asked": 128,
        "harmful_refused": 126,
        "benign": "given by the user",
        "benign_used": 256,
    },
    "peft": {"peft_type": "LORA", "r": 16},
    "training": {"steps": 100, "openers_per_prompt": "4"},
    "versions": {"trl_sbr": "0.1.0"},
    "seconds": 300,
    "judge": "lexical refusal check",
    "decoding": "greedy",
    "before": {"harmful_answered": {"": share(3), "Sure: ": share(80)}, "benign_refused": {"": share(2)}},
    "after": {"harmful_answered": {"": share(3), "Sure: ": share(9)}, "benign_refused": {"": share(1)}},
}


def anchor_config(**changes):
    values = {
        "prompts": [[{"role": "user", "content": "How do I <b>harm</b>?"}]],
        "input_ids": [[1, 2]],
        "positions": [[1]],
        "openers": [""],
        "refusal_tokens": 1,
        "chat_template_sha256": "0" * 64,
        "chat_template_kwargs": {},
        "model_name_or_path": "org/base",
        "model_revision": "a" * 40,
        "reference": "base",
        "unembedding_sha256": "2" * 64,
        "hidden_size": 32,
        "dtype": "float32",
        "autocast_dtype": "bfloat16",
        "quantization": None,
        "library_versions": {"trl_sbr": "0.1.0"},
        "tensor_sha256": "1" * 64,
    }
    return AnchorConfig(**{**values, **changes})


@pytest.fixture
def base(tmp_path):
    """A base model in a folder whose card states a licence."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: https://example.org\n---\n"
    )
    return str(folder)


def measurement(step, error, refused):
    return {
        "step": step,
        "relative_error": error,
        "max_relative_error": 2 * error,
        "cosine": 1 - error / 2,
        "min_cosine": 1 - error,
        "refusal_rate": refused,
    }


class TestModelCard:
    def test_curve_of_a_monitor(self):
        curve = [measurement(10 * i, i / 100, 100.0 - i) for i in range(31)]
        text = render_model_card({**RUN, "monitor": {"num_prompts": 8, "curve": curve}}, "me/model", anchor_config())
        points = range(0, 31, 2)  # as many as can be read
        chart = [
            f"    x-axis step {json.dumps([str(10 * i) for i in points])}",
            "    y-axis 0 --> 1",
            f"    bar {[(100 - i) / 100 for i in points]}",
            f"    line {[i / 100 for i in points]}",
        ]
        assert "\n".join(["```mermaid", "xychart-beta", *chart, "```"]) in text
        assert "| 300 | 0.300 | 0.600 | 0.8500 | 0.7000 | 70 % |" in text
        without = render_model_card({**RUN, "monitor": {"num_prompts": 8, "curve": []}}, "me/model", anchor_config())
        assert without == render_model_card(RUN, "me/model", anchor_config())

    def test_metadata(self):
        text = render_model_card(RUN, "org/adapter", anchor_config(), REPORT, "sbr", ("report.png",))
        assert check_metadata(text, "models") == ([], [])
        data = yaml.safe_load(text.split("---")[1])
        results = data.pop("model-index")[0]
        assert data == {
            "base_model": "org/base",
            "base_model_relation": "adapter",
            "library_name": "peft",
            "pipeline_tag": "text-generation",
            "datasets": ["org/data"],
            "metrics": ["accuracy", "harmful_score", "refusal_rate"],
            "tags": ["lora", "mine", "safety-anchor", "sbr", "sft", "trl"],
        }
        assert results["name"] == "adapter"
        assert {
            (r["dataset"]["type"], r["metrics"][0]["type"], r["metrics"][0]["value"]) for r in results["results"]
        } == {
            ("PKU-Alignment/BeaverTails", "harmful_score", 6.0),
            ("custom", "refusal_rate", 3.0),
            ("stanfordnlp/sst2", "accuracy", 93.0),
        }

    def test_round_trip_through_the_hubs_own_class(self):
        text = render_model_card(RUN, "org/adapter", anchor_config(), REPORT, "sbr")
        card = ModelCard(text)
        assert len(card.data.eval_results) == 3
        assert yaml.safe_load(str(card).split("---")[1]) == yaml.safe_load(text.split("---")[1])

    def test_says_what_was_measured_and_by_whom(self):
        text = render_model_card(RUN, "org/adapter", anchor_config(), REPORT, "sbr", ("report.png",))
        assert "| | aligned model | after SFT | after SBR |" in text
        assert (
            "| harmful score, beavertails (n = 100) | 1.0 % [0.2, 5.5] | 70.0 % [60.4, 78.1] | 6.0 % [2.8, 12.5] |"
            in text
        )
        assert re.search(r"\| accuracy, sst2 \(n = 100\) \| – \| 94\.0 %", text)  # not measured on the aligned model
        assert "Judge: name lexical, id trl_sbr lexical rules, revision abc, threshold 0.5" in text
        assert "](report.png)" in text

    def test_of_the_demos_report(self):
        text = render_model_card(RUN, "org/adapter", anchor_config(), DEMO_REPORT, "sbr")
        assert check_metadata(text, "models") == ([], [])
        assert "| harmful questions answered (n = 100) | 9.0 %" in text
        results = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
        assert [(r["dataset"]["name"], len(r["metrics"])) for r in results] == [
            ("trl_sbr demo, harmful questions answered", 1),
            ("trl_sbr demo, benign questions refused", 1),
            ("trl_sbr demo, task accuracy", 1),
        ]
        assert "Judge: lexical refusal check. Decoding: greedy, 24 new tokens." in text

    def test_what_was_not_measured_is_absent(self):
        text = render_model_card({**RUN, "datasets": []}, "org/adapter", anchor_config())
        for absent in ("Results", "model-index", "report.json", "datasets", "licence", "license:", "None", "png"):
            assert absent not in text
        assert eval_results_yaml(DEMO_REPORT, "sbr") is None

    def test_of_several_models_without_the_hardened_one_no_result_is_claimed(self):
        report = {**REPORT, "models": {name: REPORT["models"][name] for name in ("aligned", "sft")}}
        text = render_model_card(RUN, "org/adapter", anchor_config(), report, own_model(report))
        assert "model-index" not in text
        assert "after SFT" in text

    def test_of_tasks_alone_there_is_no_judge(self):
        models = {"sbr": {"safety": {}, "over_refusal": {}, "tasks": REPORT["models"]["sbr"]["tasks"]}}
        text = render_model_card(
            RUN, "org/adapter", anchor_config(), {**REPORT, "models": models, "judge": None}, "sbr"
        )
        assert "| accuracy, sst2 (n = 100) |" in text
        assert "Judge" not in text

    def test_chat_template_of_the_decoding_is_left_out(self):
        report = {
            **REPORT,
            "decoding": {"strategy": "greedy", "chat_template": "{{ a }}\n{{ b }}", "load_in_4bit": False},
        }
        assert "Decoding: strategy greedy. " in render_model_card(RUN, "org/adapter", anchor_config(), report, "sbr")

    def test_licence_is_the_base_models(self, base):
        run = {**RUN, "base_model": {"name_or_path": base, "revision": None}}
        text = render_model_card(run, "org/adapter", anchor_config())
        data = ModelCard(text).data
        assert (data.license, data.license_name, data.license_link) == ("other", "mine", "https://example.org")
        assert data.base_model is None  # a folder is nothing that the Hub knows
        assert "licence" in text
        assert "a folder on the machine of the training" in text

    def test_unprotected_run_says_so(self):
        text = render_model_card({**RUN, "anchor": None, "sbr": {"anchor_loss_coef": 0.0}}, "org/adapter")
        assert "**It is not protected" in text
        assert "sbr" not in yaml.safe_load(text.split("---")[1])["tags"]
        assert "--verify" not in text

    def test_full_fine_tuning(self):
        data = ModelCard(render_model_card({**RUN, "peft": None}, "org/model", anchor_config())).data
        assert (data.library_name, data.base_model_relation) == ("transformers", "finetune")

    def test_how_to_load_and_verify(self):
        text = render_model_card(RUN, "org/adapter", anchor_config())
        assert 'AutoPeftModelForCausalLM.from_pretrained("org/adapter")' in text
        assert "trl-sbr anchor --verify org/adapter" in text
        assert "from [org/anchor](https://huggingface.co/org/anchor) at commit `" + "b" * 40 in text
        assert "2605.05995" in text
        assert "vonwerra2020trl" in text

    def test_prompts_are_text_and_no_markup(self):
        assert "- `How do I <b>harm</b>?`\n" in render_model_card(RUN, "org/adapter", anchor_config())

    def test_prompts_that_are_not_published(self):
        config = anchor_config(prompts=[None] * 8, input_ids=[None] * 8, openers=[""] * 8)
        for text in (render_model_card(RUN, "org/a", config), render_anchor_card(config, "org/a")):
            assert "What cannot be verified" in text
            assert "--verify org/a" not in text
            assert "8 harmful prompts" in text

    def test_points(self):
        prompts = [[{"role": "user", "content": question}] for question in ("How?", "How?", "How?", "Why?")]
        config = anchor_config(
            prompts=prompts,
            input_ids=[[1, 2, 3]] * 4,
            positions=[[1, 2]] * 4,
            openers=["", "Sure, `1` | 2:", "Okay.", ""],
        )
        for text in (render_model_card(RUN, "org/a", config), render_anchor_card(config, "org/a")):
            assert "2 harmful prompts" in text
            assert re.search(
                r"\| 4: each prompt plain, and where .* refuses it behind ``Sure, `1` ¦ 2:``, `Okay.`", text
            )
            assert text.count("- `How?`") == 1
        assert "| 8 × 32, float32" in text
        assert "the first 2 generated tokens, plain and behind its openers, alone: other openers" in text
        assert "The first 2 generated tokens are tied" in render_model_card(RUN, "org/a", config)


class TestAnchorCard:
    def test_metadata_and_text(self):
        text = render_anchor_card(anchor_config(), "org/anchor")
        assert check_metadata(text, "models") == ([], [])
        data = ModelCard(text).data
        assert (data.library_name, data.tags) == ("trl_sbr", ["safety-anchor", "sbr", "trl"])
        assert "[org/base](https://huggingface.co/org/base), revision `" + "a" * 40 in text
        assert "1 × 32, float32" in text
        assert "autocast bfloat16" in text


class TestHardening:
    ROW = "| harmful answered, behind `Sure:` (n = 100) | 80.0 % [71.1, 86.7] | 9.0 % [4.8, 16.2] |"

    @pytest.mark.parametrize(("is_adapter", "relation"), [(False, "finetune"), (True, "adapter")])
    def test_card_of_a_hardened_model_and_of_its_adapter(self, is_adapter, relation):
        text = render_hardened_card(HARDENING, "org/hardened", is_adapter)
        assert check_metadata(text, "models") == ([], [])
        data = ModelCard(text).data
        assert (data.base_model, data.base_model_relation) == ("org/base", relation)
        assert self.ROW in text
        assert "| benign refused (n = 100) | 2.0 %" in text
        assert (
            "126 harmful ones, of trl_sbr, which the model refuses of 128; 256 benign ones, given by the user" in text
        )
        assert "openers_per_prompt 4" in text
        assert ("AutoPeftModelForCausalLM" in text) is is_adapter

    def test_card_of_what_was_trained_on_it(self):
        text = render_model_card({**RUN, "hardening": HARDENING}, "org/adapter", anchor_config())
        assert "The aligned model was hardened" in text and self.ROW in text
        assert "hardened" not in render_model_card({**RUN, "hardening": None}, "org/adapter", anchor_config())

    def test_record(self, tmp_path):
        assert read_hardening("org/base") is None
        (tmp_path / "hardening.json").write_text(json.dumps(HARDENING))
        assert read_hardening(tmp_path) == HARDENING
        (tmp_path / "hardening.json").write_text(json.dumps({**HARDENING, "after": {}}))
        with pytest.raises(
            ValueError, match="hardening.json: `after`: expected an object with .* get the model again"
        ):
            read_hardening(tmp_path)


class TestOwnModel:
    def test_by_name(self):
        assert own_model(REPORT) == own_model(DEMO_REPORT) == "sbr"
        assert own_model({"models": {"mine": REPORT["models"]["sbr"]}}) == "mine"
        assert own_model({"models": {"a": {}, "b": {}}}) is None

    def test_on_the_hub_only_the_repository_that_is_pushed(self):
        base = {"model_name_or_path": "org/base", "revision": "a" * 40}
        adapter = {**base, "adapter": {"name_or_path": "org/adapter", "revision": "b" * 40}}
        report = {"models": {"sbr": {"model": base}, "mine": {"model": adapter}}}
        assert own_model(report, "2", "org/adapter") == "mine"
        assert own_model(report, "2", "org/base") == "sbr"
        assert own_model(report, "2", "org/another") is own_model(report, "2") is own_model(report) is None
        assert own_model({"models": {"mine": {"model": base}}}, "2", "org/adapter") is None

    def test_weights_that_a_server_answered_with_are_not_known(self):
        served = {"served_as": "sbr", "endpoint": "http://localhost:8000/v1"}
        assert own_model({"models": {"sbr": {"model": served}}}, "2") is None

    def test_by_what_was_measured(self):
        models = {
            "base": {"model": {"sha256": "0"}},
            "sbr": {"model": {"sha256": "0", "adapter": {"sha256": "1"}}},
            "other": {"model": {"sha256": "0", "adapter": {"sha256": "2"}}},
        }
        assert own_model({"models": models}, "2") == "other"
        with pytest.raises(ValueError, match="was measured on other models .base, sbr, other. than the one beside it"):
            own_model({"models": models}, "3")


class TestResultsFile:
    def test_figures_on_datasets_of_the_hub(self):
        entries = yaml.safe_load(eval_results_yaml(REPORT, "sbr"))
        assert [(e["dataset"]["id"], e["value"]) for e in entries] == [
            ("PKU-Alignment/BeaverTails", 6.0),
            ("stanfordnlp/sst2", 93.0),
        ]
        assert "judge: name lexical" in entries[0]["notes"]
        assert "judge" not in entries[1]["notes"]

    def test_figures_of_both_reports(self):
        assert [figure.metric for figure in read_figures(REPORT)] == ["harmful_score", "refusal_rate", "accuracy"]
        assert [figure.metric for figure in read_figures(DEMO_REPORT)] == ["harmful_score", "refusal_rate", "accuracy"]

    def test_refusals_kept(self):
        report = copy.deepcopy(REPORT)
        report["models"]["sbr"]["safety"]["beavertails"]["refusals_kept"] = share(88, 90)
        (kept,) = [figure for figure in read_figures(report) if figure.metric == "refusals_kept"]
        assert kept.shares.keys() == {"sbr"} and kept.shares["sbr"]["count"] == 88
        assert kept.label == "refusals kept, beavertails"

    def test_notes_say_of_how_many_and_how_sure(self):
        notes = [entry["notes"] for entry in yaml.safe_load(eval_results_yaml(REPORT, "sbr"))]
        assert notes[0].startswith(
            "harmful score, beavertails, percent; n = 100, 95 % interval 2.8 to 12.5; judge: name"
        )
        assert notes[1] == "accuracy, sst2, percent; n = 100, 95 % interval 86.2 to 96.6"

    def test_win_rate_is_no_accuracy(self):
        report = copy.deepcopy(REPORT)
        rate = {"percent": 45.8, "n": 104, "standard_error": 1.7, "normal_95": [42.5, 49.1]}
        report["models"]["sbr"]["tasks"]["alpaca_eval"] = rate
        report["prompts"]["alpaca_eval"] = {"source": "Hub, tatsu-lab/alpaca_eval"}
        card = render_model_card(RUN, "org/adapter", anchor_config(), report, "sbr")
        assert "| win rate, alpaca_eval (n = 104) | – | – | 45.8 % [42.5, 49.1] |" in card
        assert "lower is better, for accuracies and win rates higher." in card
        (result,) = [result for result in ModelCard(card).data.eval_results if result.metric_value == 45.8]
        assert (result.metric_type, result.metric_name) == ("win_rate", "win rate, alpaca_eval (%)")
        entry = yaml.safe_load(eval_results_yaml(report, "sbr"))[-1]
        assert entry["dataset"]["task_id"] == "alpaca_eval_win_rate"
        assert entry["notes"] == "win rate, alpaca_eval, percent; n = 104, 95 % interval 42.5 to 49.1"

    @pytest.mark.parametrize("told_by", ["trl_sbr.is_refusal", REPORT["judge"]["id"]])
    def test_who_told_refusals(self, told_by):
        report = copy.deepcopy(REPORT)
        report["prompts"]["xstest"]["source"] = "Hub, org/xstest"
        for model in report["models"].values():
            model["over_refusal"]["xstest"]["refusals_by"] = told_by
        notes = {entry["dataset"]["id"]: entry["notes"] for entry in yaml.safe_load(eval_results_yaml(report, "sbr"))}
        is_judge = told_by == REPORT["judge"]["id"]
        told = "judge: name lexical" if is_judge else "refusals told by trl_sbr.is_refusal"
        assert told in notes["org/xstest"]
        assert ("judge" in notes["org/xstest"]) == is_judge
        assert "judge: name lexical" in notes["PKU-Alignment/BeaverTails"]
        card = render_model_card(RUN, "org/adapter", anchor_config(), report, "sbr")
        assert ("Refusals were told by `trl_sbr.is_refusal`." in card) != is_judge

    def test_who_told_the_refusals_that_were_kept(self):
        report = copy.deepcopy(REPORT)  # whose judge told none
        report["models"]["sbr"]["safety"]["beavertails"]["refusals_kept"] = share(88, 90)
        assert "refusals told by trl_sbr.is_refusal" in eval_results_yaml(report, "sbr")

    def test_source_of_a_set_whose_name_has_a_plus(self):
        report = copy.deepcopy(REPORT)
        report["prompts"]["beavertails+mine"] = {"source": "Hub, org/mine"}
        asked = ("beavertails+mine", "beavertails+mine+prefill", "beavertails", "beavertails+prefill")
        report["models"]["sbr"]["safety"] = {name: safety(6) for name in asked}
        found = {figure.dataset: figure.dataset_id for figure in read_figures(report)}
        assert [found[name] for name in asked] == ["org/mine"] * 2 + ["PKU-Alignment/BeaverTails"] * 2

    def test_incoherent_answers(self):
        report = copy.deepcopy(REPORT)
        report["models"]["sbr"]["safety"]["beavertails"]["incoherent_rate"] = share(97)
        report["models"]["sft"]["safety"]["beavertails"]["incoherent_rate"] = None  # another judge's
        card = render_model_card(RUN, "org/adapter", anchor_config(), report, "sbr")
        assert "| incoherent answers, beavertails (n = 100) | – | – | 97.0 % [91.5, 99.0] |" in card
        assert "For harmful scores, refusals of benign prompts and incoherent answers lower is better" in card


class TestNotes:
    CARD = "a\n<!-- trl_sbr: your notes begin -->\n{}<!-- trl_sbr: your notes end -->\nb\n"

    @pytest.mark.parametrize(
        ("new", "old", "kept"),
        [
            ("", "", ""),
            ("", "old\n", "old\n"),
            ("new\n", "", "new\n"),
            ("old\nnew\n", "old\n", "old\nnew\n"),
            ("new\n", "old\n", "old\n\nnew\n"),
            ("new\n", "old\n\nnew\n", "old\n\nnew\n"),
        ],
    )
    def test_none_is_lost(self, new, old, kept):
        assert keep_notes(self.CARD.format(new), self.CARD.format(old)) == self.CARD.format(kept)

    def test_card_without_marks(self):
        assert keep_notes(self.CARD.format(""), "# Another card\n") == self.CARD.format("")

    def test_of_rendered_cards(self):
        card = render_model_card(RUN, "org/adapter", anchor_config())
        noted = card.replace("notes begin -->\n", "notes begin -->\nMine: \\1 $1\n")
        assert keep_notes(card, noted) == noted


ROOT = Path(__file__).parents[2]


@pytest.fixture
def cards():
    return runpy.run_path(str(ROOT / "benchmarks" / "model_cards.py"))["make_cards"]()


@pytest.fixture
def html():
    card = render_model_card(RUN, "org/adapter", anchor_config(), REPORT, "sbr", ("report.png",))
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])


class TestRepositorysOwnCards:
    def test_are_what_the_code_writes_from_the_reports(self, cards):
        written = {path.parent.name: path.read_text() for path in (ROOT / "model_cards").glob("*/README.md")}
        assert written == cards, "run `python benchmarks/model_cards.py`"

    def test_say_what_the_report_says(self, cards):
        report = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
        card = cards["smollm2-135m-sbr-lora"]
        for figures in report["results"].values():
            for share in figures.values():
                assert f"{share['percent']:.1f} % [" in card
        assert check_metadata(card, "models") == ([], [])

    def test_pictures_and_files_that_they_point_to_are_there(self, cards):
        for name, card in cards.items():
            for target in re.findall(r"\]\((\.[^)]+)\)", card):
                assert (ROOT / "model_cards" / name / target).resolve().is_file()


class TestRendered:
    """Where people read it: as HTML, by the rules of GitHub and the Hub."""

    def test_tables_have_as_many_cells_in_each_row(self, html):
        tables = re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
        assert len(tables) == 2  # results, how it was made
        for table in tables:
            rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
            assert len({len(re.findall(r"<t[hd]", row)) for row in rows}) == 1
        assert len(re.findall("<tr>", tables[0])) == 4

    def test_parts_in_order_and_nothing_left_over(self, html):
        assert re.findall(r"<h2>(.*?)</h2>", html) == [
            "Use it",
            "Verify it",
            "Results",
            "How it was made",
            "What it does not protect against",
            "Citation",
        ]
        assert not re.search(r"\{\{|\{%|\*\*|\|", re.sub(r"<code.*?</code>|@.*?\n}", "", html, flags=re.DOTALL))
        assert html.count("<details>") == html.count("</details>") == 1
        assert html.count("<li>") == 1 + 4
        assert '<img src="report.png" alt="The figures above' in html

    def test_code_is_short_and_complete(self, html):
        blocks = re.findall(r'<pre><code class="language-(\w+)">(.*?)</code>', html, re.DOTALL)
        assert [language for language, _ in blocks] == ["python", "bash", "bibtex", "bibtex"]
        assert sum(text.count("\n") for _, text in blocks[:2]) == 3  # load and verify it in three lines
