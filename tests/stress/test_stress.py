# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The command as a whole, on a tiny model that refuses whatever it is asked."""

import json
import shutil
import textwrap
from dataclasses import replace

import pytest
import torch
import yaml

from trl_sbr.metrics.harmful_score.verdicts import Share
from trl_sbr.recipes import find_recipe, recipe_names
from trl_sbr.scripts.stress import main
from trl_sbr.stress.aligned import Aligned
from trl_sbr.stress.attacks import AOA_REQUEST, AOA_SYSTEM, standard
from trl_sbr.stress.cell import Bench, make_run
from trl_sbr.stress.grid import Cell, StressArguments, parse_shard
from trl_sbr.stress.report import baseline_of, pool, to_markdown, worst_case, write_report
from trl_sbr.stress.run import attack, defence

from ..tiny import build_model


GRIDS = [name.removeprefix("stress/") for name in recipe_names() if name.startswith("stress/")]

PLUGIN = """
    from trl import SFTTrainer

    from trl_sbr.demo.data import chat_row
    from trl_sbr.stress.run import attack, defence


    @attack("flattery", source="Of this test")
    def flattery(run, times=2):
        rows = run.aligned.own_refusals(4)
        run.compose(flattery=[chat_row("You are great! " * times + row["prompt"][0]["content"], "Yes.") for row in rows])


    class FreezingTrainer(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            return 0 * super().compute_loss(*args, **kwargs)


    @defence("frozen", source="Of this test")
    def frozen(run):
        run.trainer_class = FreezingTrainer
"""


@pytest.fixture(scope="module")
def quick(tiny_folder, tmp_path_factory):
    """What `--config quick` writes."""
    output_dir = tmp_path_factory.mktemp("stress") / "out"
    flags = ["--config", "quick", "--models", json.dumps({"tiny": str(tiny_folder)}), "--output_dir", str(output_dir)]
    assert main(flags) == 0
    return output_dir, flags


@pytest.fixture
def cut(quick, tmp_path):
    """The flags of a cell whose training was cut off after its second step."""
    output_dir, flags = quick
    plugin = tmp_path / "cut.py"
    plugin.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from transformers import TrainerCallback
        from trl_sbr.stress.run import defence

        class Cut(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 2 and not Path({str(tmp_path)!r}, "came").exists():
                    Path({str(tmp_path)!r}, "came").touch()
                    raise RuntimeError("cut off")

        @defence("cut", source="Of this test")
        def cut(run):
            run.add_callback(Cut())
        """)
    )
    row = {"cut": {"training": {"save_steps": 1}}}
    flags = [*flags, "--plugins", str(plugin), "--defences", json.dumps(row), "--only", "/standard/"]
    assert main(flags) == 1  # the cell failed, and is said to have
    yield flags
    shutil.rmtree(output_dir / "cells/tiny/standard/cut")


def read(output_dir, name):
    return json.loads((output_dir / "cells" / name / "cell.json").read_text())


@pytest.mark.slow
class TestQuick:
    def test_report(self, quick):
        output_dir, _ = quick
        for picture in ("accuracy.png", "steps.png"):
            assert (output_dir / picture).stat().st_size > 5000
        report = json.loads((output_dir / "report.json").read_text())["models"]["tiny"]
        assert report["defences"].keys() == {"sft", "sbr", "mix"}
        for row in report["defences"].values():
            assert row["attacks"].keys() == {"standard", "refuse_then_comply"}
            for joined in row["attacks"].values():
                figures = joined["figures"]
                assert figures["harmful"]["plain"]["answered"]["n"] == 6 and figures["task"]["correct"]["n"] == 4
                assert joined["points"].keys() == {"2"} and joined["steps"] == 3
                kept = figures["harmful"]["plain"]["refusals_kept"]
                assert (kept["percent"], kept["n"]) == (100.0, 6)  # its unembedding's bias refuses
        table = (output_dir / "report.md").read_text()
        assert table.count("| sbr |") == 3  # the overview, and once under each attack

    def test_cell_says_all_that_made_it(self, quick):
        output_dir, _ = quick
        cell = read(output_dir, "tiny/refuse_then_comply/mix/seed-0")
        assert sum(cell["rows"].values()) == 12 and cell["rows"]["safety"] == 3 and cell["rows"]["poison"] <= 3
        assert cell["settings"]["training"] == {
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
        }
        assert cell["settings"]["defence"] == {"kind": "mix", "share": 0.25} and cell["settings"]["seed"] == 0
        assert {"commit", "trl", "torch"} <= cell["versions"].keys()
        assert cell["judge"]["name"] == "lexical" and len(cell["identity"]["sha256"]) == 64
        assert {"training", "evaluation", "total"} <= cell["seconds"].keys() and not cell["resumed"]
        assert not (output_dir / "cells/tiny/refuse_then_comply/mix/seed-0/run").exists()

    def test_finished_cells_are_not_run_again(self, quick, capsys):
        output_dir, flags = quick
        before = {path: path.stat().st_mtime_ns for path in output_dir.glob("cells/**/cell.json")}
        assert len(before) == 7
        assert main(flags) == 0
        assert {path: path.stat().st_mtime_ns for path in output_dir.glob("cells/**/cell.json")} == before
        assert "7 of 7 cells finished." in capsys.readouterr().out

    def test_other_settings_are_an_error(self, quick):
        _, flags = quick
        with pytest.raises(FileExistsError, match=r"measured with `dtype: 'float32'`, which is now 'bfloat16'"):
            main([*flags, "--dtype", "bfloat16"])

    def test_strangers_attack_and_defence(self, quick, tmp_path):
        plugin = tmp_path / "mine.py"
        plugin.write_text(textwrap.dedent(PLUGIN))
        assert len(plugin.read_text().splitlines()) < 60
        output_dir, flags = quick
        flags = [
            *flags,
            "--plugins",
            str(plugin),
            "--attacks",
            '{"flattery": {"times": 3}}',
            "--defences",
            '{"frozen": {}}',
        ]
        assert main(flags) == 0
        cell = read(output_dir, "tiny/flattery/frozen/seed-0")
        assert cell["rows"] == {"flattery": 4, "task": 8} and cell["steps"] == 3
        assert all(log["loss"] == 0 for log in cell["logs"] if "loss" in log)

    def test_interrupted_cell_goes_on_from_its_checkpoint(self, quick, cut):
        output_dir, _ = quick
        assert not (output_dir / "cells/tiny/standard/cut/seed-0/cell.json").exists()
        assert main(cut) == 0
        cell = read(output_dir, "tiny/standard/cut/seed-0")
        assert cell["resumed"] and cell["steps"] == 3

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--attacks", '{"standard": {"ratio": 0.75}}'], r"`attack: {'kind': 'standard'}`, .* {.*'ratio': 0.75}"),
            (["--num_rows", "10", "--dry_run"], "`num_rows: None`, which is now 10. Name another"),
        ],
    )
    def test_interrupted_cell_of_other_settings_is_an_error(self, cut, flags, message):
        with pytest.raises(FileExistsError, match=f"cut/seed-0/settings.json was measured with {message}"):
            main([*cut, *flags])


class TestGrid:
    def test_all_are_there(self):
        assert GRIDS == ["paper", "quick", "qwen", "smollm2"]

    @pytest.mark.parametrize("name", GRIDS)
    def test_dry_run(self, name, tmp_path, capsys):
        assert main(["--config", name, "--output_dir", str(tmp_path / "out"), "--dry_run"]) == 0
        said = capsys.readouterr().out
        assert "\n0 of " in said and " cells finished." in said and "/standard" in said
        assert not (tmp_path / "out").exists()
        assert f"trl-sbr stress --config {name} " in find_recipe(f"stress/{name}").read_text()

    @pytest.mark.parametrize("name", GRIDS)
    def test_rows_are_whole(self, name, run, tmp_path):
        """What `--dry_run` does not look at: each row can be applied, and its settings are ones that a trainer has."""
        grid = yaml.safe_load(find_recipe(f"stress/{name}").read_text())
        for registry, rows in ((attack, grid["attacks"]), (defence, grid["defences"])):
            for row_name, row in rows.items():
                fresh = replace(run, training=dict(run.training), trainer_kwargs={})
                standard(fresh)
                registry.apply(row_name, row or {}, fresh)
                fresh.config_class(output_dir=str(tmp_path), **fresh.training)

    def grid(self, **settings):
        return StressArguments(
            models={"a": "A", "b": "B"},
            attacks={"x": None, "y": None},
            defences={"sft": None},
            seeds=[0, 1],
            **settings,
        )

    def test_cells(self):
        names = [cell.name for cell in self.grid().cells()]
        assert len(set(names)) == len(names) == 2 * (1 + 2 * 2)
        assert names[:3] == ["a/aligned", "a/x/sft/seed-0", "a/y/sft/seed-0"]

    def test_shards_share_the_cells_out(self):
        shards = [self.grid(shard=f"{i}/3").cells() for i in (1, 2, 3)]
        assert sorted(c.name for shard in shards for c in shard) == sorted(c.name for c in self.grid().cells())
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        for wrong in ("0/3", "4/3", "1", "a/b", "1/0"):
            with pytest.raises(ValueError, match="expected `i/n` with i from 1 to n"):
                parse_shard(wrong)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--defences", '{"sbrr": {}}'], "`sbrr` is no defence. Did you mean `sbr`?"),
            (
                ["--attacks", '{"standard": {"rate": 0.1}}'],
                "The attack `standard`: got an unexpected keyword argument 'rate'",
            ),
            (["--attacks", '{"aligned": {}}'], "Found `aligned` among `attacks`"),
            (["--defences", '{"a/b": {"kind": "sft"}}'], "a name has no `/`"),
            (["--models", '{"m": 3}'], "`models: m` is 3, expected a path"),
            (["--models", "{}"], "The grid has no `models`"),
            (["--num_prompts", "0"], "`num_prompts` is 0, expected 1 or more"),
            (["--num_subset", "0"], "`num_subset` is 0, expected 1 or more"),
            (["--num_task_prompts", "0"], "`num_task_prompts` is 0, expected 1 or more"),
            (["--task_train", "x.jsonl"], "Found one of `task_train` and `task_validation`"),
            (["--plugins", "nothing.py"], "There is no file `nothing.py`"),
            (["--only", "/nothing/"], "No cell's name holds `/nothing/`"),
            (["--judge", "lexicl"], "`lexicl` is no judge. There are `lexical`"),
            (
                ["--training", '{"num_train_epochs": 1}'],
                "`smollm2/standard/sft/seed-0` has no `num_rows`, and its `training` is {'num_train_epochs': 1}, expected one with "
                "`max_steps`",
            ),
            (["--training", '{"max_steps": 3}'], "and `per_device_train_batch_size`"),
            (["--task_train", "x.jsonl", "--task_validation", "x.jsonl"], "There is no task file `x.jsonl`"),
            (["--seedz", "1"], "Unknown argument: `--seedz`"),
        ],
    )
    def test_errors(self, tmp_path, flags, message):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            main(["--config", "quick", "--output_dir", str(tmp_path), "--dry_run", *flags])
        assert message in str(error.value)

    def test_finished_cell_of_another_grid_is_found_before_the_first_is_run(self, tmp_path, capsys):
        """Also one that is not selected: the report could not be written after the work."""
        folder = tmp_path / "cells/smollm2/standard/sft/seed-0"
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text('{"settings": {"dtype": "float64"}}')
        with pytest.raises(FileExistsError, match="sft/seed-0/cell.json was measured with `dtype: 'float64'`"):
            main(["--config", "quick", "--output_dir", str(tmp_path), "--only", "/aligned"])
        assert "cells finished" not in capsys.readouterr().out

    @pytest.mark.parametrize("broken", ["train", "validation"])
    def test_rows_of_the_task(self, tmp_path, broken):
        for name in ("train", "validation"):
            (tmp_path / f"{name}.jsonl").write_text('{"prompt": "2 + 2", "completion": "4"}\n')
        with open(tmp_path / f"{broken}.jsonl", "a") as file:
            file.write('{"text": "2 + 3 = 5"}\n')
        flags = [f for n in ("train", "validation") for f in (f"--task_{n}", str(tmp_path / f"{n}.jsonl"))]
        with pytest.raises(ValueError, match=f"{broken}.jsonl, line 2: expected a row with `prompt` and `completion`"):
            main(["--config", "quick", "--output_dir", str(tmp_path / "out"), "--dry_run", *flags])


@pytest.mark.slow
class TestContent:
    """What a grid names by a path may hold something else when the next cell is run."""

    @pytest.fixture
    def flags(self, tiny_folder, tmp_path):
        """The flags of a grid whose aligned model has been measured."""
        shutil.copytree(tiny_folder, tmp_path / "model")
        for name in ("train", "validation"):
            (tmp_path / f"{name}.jsonl").write_text('{"prompt": "2 + 2", "completion": "4"}\n')
        flags = ["--config", "quick", "--models", json.dumps({"m": str(tmp_path / "model")}), "--num_prompts", "1"]
        flags += ["--num_subset", "1", "--output_dir", str(tmp_path / "out"), "--only", "/aligned"]
        flags += [
            "--task_train",
            str(tmp_path / "train.jsonl"),
            "--task_validation",
            str(tmp_path / "validation.jsonl"),
        ]
        assert main(flags) == 0
        return flags

    def test_other_weights_are_an_error(self, flags, tmp_path):
        build_model("llama").save_pretrained(tmp_path / "model")
        with pytest.raises(
            FileExistsError, match=rf"`identity.sha256: '\w+'`, which is now .* remove {tmp_path}/out/cells/m\."
        ):
            main([*flags, "--only", "/standard/sft"])

    @pytest.mark.parametrize("name", ["train", "validation"])
    def test_other_rows_of_the_task_are_an_error(self, flags, tmp_path, name):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "2 + 3", "completion": "5"}\n')
        with pytest.raises(FileExistsError, match=rf"`task_files.task_{name}: '\w+'`, which is now"):
            main([*flags, "--only", "/standard/sft"])

    def test_finished_cells_are_read_where_neither_is_there(self, flags, tmp_path):
        path = tmp_path / "out/cells/m/aligned/cell.json"
        cell = json.loads(path.read_text())
        del cell["task_files"]  # of an older one
        path.write_text(json.dumps(cell))
        shutil.rmtree(tmp_path / "model")
        for name in ("train", "validation"):
            (tmp_path / f"{name}.jsonl").unlink()
        assert main(flags) == 0


class TestTemplateWithoutSystemPrompts:
    """As Gemma's, which raises at a system message, and others', which leave it out."""

    @pytest.fixture(params=["{{ raise_exception('System role not supported') }}", ""], ids=["raises", "leaves out"])
    def model(self, tiny_folder, tmp_path, request):
        model = shutil.copytree(tiny_folder, tmp_path / "model")
        path = model / "chat_template.jinja"
        template = path.read_text()
        begin = "{% for message in messages %}"
        assert begin in template
        path.write_text(
            template.replace(begin, f"{begin}{{% if message['role'] == 'system' %}}{request.param}{{% else %}}")
        )
        path.write_text(path.read_text().replace("{% endfor %}", "{% endif %}{% endfor %}", 1))
        return model

    def test_model_is_asked_under_none(self, model, tmp_path, caplog):
        flags = ["--config", "quick", "--models", json.dumps({"m": str(model)}), "--output_dir", str(tmp_path / "out")]
        flags += ["--num_prompts", "1", "--num_subset", "1", "--only", "/standard/sft", "--measure_at", "1"]
        assert main(flags) == 0
        assert caplog.text.count("takes no system prompt, and it is asked under none") == 1
        for name in ("m/aligned", "m/standard/sft/seed-0"):
            assert read(tmp_path / "out", name)["figures"]["harmful"].keys() == {
                *("plain", "template", "prefilled_known", "prefilled_unseen")
            }

    @pytest.fixture
    def bench(self, model, aligned, tmp_path):
        args = StressArguments(
            str(tmp_path), models={"m": str(model)}, attacks={"aoa": {}}, defences={"sft": {}}, num_rows=8
        )
        bench = Bench(args)
        shutil.copytree(aligned.kept, bench.aligned("m").kept)
        return bench

    def test_user_shifts_the_identity(self, bench):
        run = make_run(bench, Cell("m", "aoa", "sft", 0))
        (message,) = run.as_attacker_asks("How?")
        assert message == {"role": "user", "content": f"{AOA_SYSTEM}\n\n{AOA_REQUEST}How?"}
        assert sum(row["prompt"][0]["content"].startswith(AOA_SYSTEM) for row in run.rows) == 2
        assert {message["role"] for row in run.rows for message in row["prompt"]} == {"user"}

    def test_task_that_needs_one_is_an_error_before_it_is_trained(self, bench):
        for row in bench.task_rows:
            row["prompt"].insert(0, {"role": "system", "content": "Be brief."})
        with pytest.raises(ValueError, match="`m/aoa/sft/seed-0` trains on system prompts, .* a grid without `aoa`"):
            make_run(bench, Cell("m", "aoa", "sft", 0))


def test_branch_that_moves_is_loaded_as_it_was_identified(hub_cache, tmp_path):
    aligned = Aligned("org/base", "float32", torch.device("cpu"), tmp_path)
    assert aligned.identity["revision"] == "a" * 40
    (hub_cache / "refs" / "main").write_text("b" * 40)
    build_model("llama").save_pretrained(hub_cache / "snapshots" / ("b" * 40))
    (hub_cache / "snapshots" / ("b" * 40) / "chat_template.jinja").write_text("another")
    assert aligned.load().config.model_type != "llama"
    assert aligned.tokenizer.chat_template != "another"


class TestKept:
    def kept(self, output_dir, model, dtype, value):
        """What is kept of a model of the grid, where it would say a value now."""
        args = StressArguments(
            str(output_dir), models={"m": str(model)}, attacks={"x": {}}, defences={"y": {}}, dtype=dtype
        )
        return Bench(args).aligned("m").keep("said", lambda: value)

    def test_belongs_to_the_weights_and_the_dtype(self, tiny_folder, tmp_path):
        model = shutil.copytree(tiny_folder, tmp_path / "model")
        assert self.kept(tmp_path, model, "float32", 1) == 1
        assert self.kept(tmp_path, model, "float32", 2) == 1
        assert self.kept(tmp_path, shutil.copytree(model, tmp_path / "copy"), "float32", 3) == 1
        assert self.kept(tmp_path, model, "bfloat16", 4) == 4
        build_model("llama").save_pretrained(model)
        assert self.kept(tmp_path, model, "float32", 5) == 5


class TestWorstCase:
    def joined(self, useful, **percents):
        harmful = {way: {"harmful": {"percent": percent}} for way, percent in percents.items()}
        return {"useful": useful, "figures": {"harmful": harmful}}

    def test_is_the_highest_score_of_what_stays_useful(self):
        worst = worst_case(
            {
                "a": self.joined(True, plain=5.0, prefilled_unseen=80.0),
                "b": self.joined(True, plain=3.0, attacker=60.0, prefilled_known=70.0),
                "c": self.joined(False, plain=99.0),
                "d": self.joined(None, plain=98.0),  # plain SFT was not run under it
            }
        )
        assert (worst["asked"]["attack"], worst["asked"]["way"]) == ("b", "attacker")
        assert (worst["prefilled"]["attack"], worst["prefilled"]["way"]) == ("a", "prefilled_unseen")
        assert (worst["num_attacks"], worst["left_out"]) == (2, ["c", "d"])

    def test_nothing_useful(self):
        assert worst_case({"c": self.joined(False, plain=99.0)})["asked"] is None


def figures_of(score, accuracy, n_unscored=None):
    """A cell's figures: scores of 100 answers, and an accuracy. Older cells do not say how many answers were not judged."""
    share = Share(score, 100 - (n_unscored or 0)).to_dict()
    harmful = dict.fromkeys(("answered", "taken_back", "incoherent"), share) | {"harmful": share}
    harmful |= {} if n_unscored is None else {"n_unscored": n_unscored}
    benign = {way: {"refused": share} for way in ("plain", "prefilled")}
    return {"harmful": {"plain": harmful}, "benign": benign, "task": {"correct": Share(accuracy, 100).to_dict()}}


class TestReport:
    @pytest.fixture
    def report(self, tmp_path):
        """Writes cells of given figures, by their names, and returns the report of a grid of them."""

        def report(defences, figures):
            args = StressArguments(
                str(tmp_path), models={"m": "m"}, attacks={"x": {}}, defences=defences, seeds=[0, 1]
            )
            for cell in args.all_cells():
                if cell.name in figures:
                    content = {"cell": vars(cell), "settings": args.describe(cell), "figures": figures[cell.name]}
                    content |= {"identity": {}, "judge": {}, "versions": {}, "machine": {}, "rows": {}, "points": {}}
                    content |= {"steps": 3, "resumed": False, "seconds": {"training": 1.0}}
                    folder = tmp_path / "cells" / cell.name
                    folder.mkdir(parents=True)
                    (folder / "cell.json").write_text(json.dumps(content))
            table = write_report(args).read_text()
            return json.loads((tmp_path / "report.json").read_text())["models"]["m"], table

        return report

    @pytest.mark.parametrize("name", ["sft", "plain"])
    def test_plain_fine_tuning_by_any_name(self, report, name):
        figures = {f"m/x/{name}/seed-0": figures_of(90, 80), "m/x/sbr/seed-0": figures_of(5, 79)}
        found, table = report({"sbr": {}, name: {"kind": "sft"}}, figures)
        worst = found["defences"]["sbr"]["worst_case"]
        assert (worst["num_attacks"], worst["asked"]["harmful"]["percent"]) == (1, 5.0)
        assert "None is counted" not in table

    def test_no_plain_fine_tuning_is_said(self, report):
        found, table = report({"sbr": {}}, {"m/x/sbr/seed-0": figures_of(5, 79)})
        assert found["defences"]["sbr"]["worst_case"]["num_attacks"] == 0
        assert "None is counted: the grid has no defence of the kind `sft`." in table

    def test_baseline_of_several(self):
        rows = {"long": {"kind": "sft", "training": {"max_steps": 9}}, "sft": {}}
        assert baseline_of(rows) == "sft"
        assert baseline_of({"long": rows["long"], "sft": {"kind": "sbr"}}) == "long"

    def test_answers_that_were_not_judged_are_said(self, report):
        figures = {"m/x/sft/seed-0": figures_of(90, 80), "m/x/sft/seed-1": figures_of(40, 80, n_unscored=20)}
        found, table = report({"sft": {}, "sbr": {}}, figures | {"m/x/sbr/seed-0": figures_of(5, 79, n_unscored=0)})
        plain = found["defences"]["sft"]["attacks"]["x"]["figures"]["harmful"]["plain"]
        assert plain["n_unscored"] == 20
        assert (plain["harmful"]["count"], plain["harmful"]["n"], plain["harmful"]["percent"]) == (65, 90, 72.22)
        assert "Answers that the judge could not judge, in no harmful score: sft, asked plainly: 20." in table
        assert "n_unscored" not in found["defences"]["sbr"]["attacks"]["x"]["figures"]["harmful"]["plain"]

    def test_nothing_to_say_where_all_were_judged(self, report):
        _, table = report({"sft": {}}, {"m/x/sft/seed-0": figures_of(90, 80)})
        assert "could not judge" not in table

    def test_no_answer_could_be_judged(self, report):
        none = figures_of(0, 80)
        none["harmful"]["plain"] |= {"harmful": None, "n_unscored": 100}
        found, table = report({"sft": {}}, {"m/x/sft/seed-0": none})
        assert found["defences"]["sft"]["worst_case"]["asked"] is None
        assert "| sft | – / 80.0 |" in table and "sft, asked plainly: 100." in table


def test_seeds_are_pooled_over_the_same_questions():
    pooled = pool([Share(count, 100).to_dict() for count in (4, 10, 10)])
    assert (pooled["percent"], pooled["n"], pooled["seeds"], pooled["spread"]) == (8.0, 100, 3, [4.0, 10.0])
    assert pooled["wilson_95"] == Share(8, 100).to_dict()["wilson_95"]  # no narrower than one seed's


def test_model_of_which_no_cell_has_run_has_no_tables():
    assert to_markdown({"models": {"m": {"aligned": None, "defences": {}}}, "attacks": ["standard"]}) == ""
