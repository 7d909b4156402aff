# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_sbr.anchors.adapters import AdapterFiles
from trl_sbr.evaluation.models import ModelEntry, resolve_models

from ..hub.test_cards import RUN
from ..tiny import build_model


@pytest.fixture
def base(tmp_path):
    """A tiny model in a folder."""
    path = tmp_path / "base"
    build_model("llama").save_pretrained(path)
    return str(path)


@pytest.fixture
def adapter(base, tmp_path):
    """An adapter of it."""
    model = build_model("llama")
    model.name_or_path = base
    path = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(path)
    return str(path)


def resolve(model=None, adapter=None, compare=(), revision="main"):
    return resolve_models(model, revision, adapter, list(compare))


class TestResolveModels:
    def test_model_with_adapter(self, base, adapter):
        assert resolve(base, adapter) == [ModelEntry("adapter", base, "main", AdapterFiles(adapter))]

    def test_comparison(self, base, adapter):
        assert resolve(base, compare=[f"sbr={adapter}", "Qwen/Qwen3-0.6B"], revision="abc") == [
            ModelEntry("base", base, "abc"),
            ModelEntry("sbr", base, "abc", AdapterFiles(adapter)),
            ModelEntry("Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ]

    def test_adapter_brings_its_base(self, base, adapter):
        assert resolve(adapter) == [ModelEntry("adapter", base, "main", AdapterFiles(adapter, "main"))]
        assert resolve(compare=[adapter]) == [ModelEntry("adapter", base, "main", AdapterFiles(adapter))]

    def test_base_of_the_revision_that_was_trained_on(self, base, adapter):
        path = Path(adapter, "adapter_config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "v1"}))
        assert [entry.revision for entry in (*resolve(adapter), *resolve(compare=[adapter]))] == ["v1", "v1"]
        held = {"anchor_loss_coef": 50.0, "anchor_loss_type": "mse", "anchor_reference": "base"}
        run = {**RUN, "sbr": held, "files": {}, "base_model": {"name_or_path": base, "revision": "0ab"}}
        Path(adapter, "sbr_run.json").write_text(json.dumps(run))
        assert [entry.revision for entry in (*resolve(adapter), *resolve(compare=[adapter]))] == ["0ab", "0ab"]
        assert resolve(base, adapter, revision="mine")[0].revision == "mine"  # who names a model says which

    def test_hardened_model_is_one(self, base, adapter, tmp_path):
        shutil.copytree(base, tmp_path / "hardened")
        hardened = str(tmp_path / "hardened")
        shutil.copytree(adapter, tmp_path / "hardened" / "adapter")
        assert resolve(hardened) == resolve(compare=[hardened]) == [ModelEntry("hardened", hardened)]

    def test_path_with_an_equals_sign(self, adapter, base, tmp_path, monkeypatch):
        path = tmp_path / "runs" / "lr=1e-4,seed=0"
        shutil.copytree(adapter, path)
        monkeypatch.chdir(tmp_path)
        text = "runs/lr=1e-4,seed=0"
        assert resolve(compare=[f"sbr={text}", text]) == [
            ModelEntry("sbr", base, "main", AdapterFiles(text)),
            ModelEntry("lr=1e-4,seed=0", base, "main", AdapterFiles(text)),
        ]

    def test_address_with_an_equals_sign(self):
        address = "http://localhost:8000/v1#lora=3"
        entries = resolve(compare=[address, f"sbr={address}"])
        assert entries == [
            ModelEntry(name, "lora=3", endpoint="http://localhost:8000/v1") for name in ("lora=3", "sbr")
        ]

    def test_folder_that_one_stands_in(self, base, adapter, monkeypatch):
        monkeypatch.chdir(base)
        assert resolve(".") == [ModelEntry("base", ".")]
        assert resolve(".", adapter) == [ModelEntry("adapter", ".", "main", AdapterFiles(adapter))]

    @pytest.mark.parametrize("name", ["", " ", "runs/one", "runs\\one"])
    def test_name_that_is_none(self, base, name):
        with pytest.raises(
            ValueError, match="Found the name .* expected one that is not empty and has no `/`.*NAME=PATH"
        ):
            resolve(base, compare=[f"{name}={base}"])

    def test_base_that_was_moved(self, base, adapter, tmp_path):
        shutil.move(base, tmp_path / "elsewhere" / "Base")
        moved = str(tmp_path / "elsewhere" / "Base")
        assert resolve(moved, adapter) == [ModelEntry("adapter", moved, "main", AdapterFiles(adapter))]

    def test_base_in_the_cache(self, base, adapter):
        cached = f"/cache/models--owner--base/snapshots/{'a' * 40}"
        assert resolve(cached, adapter)[0].model_name_or_path == cached

    def test_adapter_of_another_base(self, adapter):
        with pytest.raises(ValueError, match="was trained on `.*base`, and would be put on `owner/other`"):
            resolve("owner/other", adapter)

    def test_adapter_without_base(self, adapter, tmp_path):
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
        with pytest.raises(ValueError, match="names no base model: give it with `--model_name_or_path`"):
            resolve(compare=[adapter])
        assert resolve("owner/any", adapter)[0].model_name_or_path == "owner/any"

    def test_errors(self, base):
        with pytest.raises(ValueError, match="No model: give `model_name_or_path`"):
            resolve()
        with pytest.raises(ValueError, match="Two models are called `base`.*NAME=PATH"):
            resolve(base, compare=[base])
        with pytest.raises(FileNotFoundError, match="There is no model or adapter `./gone`"):
            resolve(base, compare=["./gone"])


class TestPinned:
    @pytest.mark.parametrize(("revision", "commit"), [("main", "a" * 40), ("v1", "b" * 40)])
    def test_commit_of_a_branch(self, hub_cache, revision, commit):
        (entry,) = resolve("org/base", revision=revision)
        assert entry.pinned() == ModelEntry("base", "org/base", commit)
        assert entry.pinned().identify() == {"model_name_or_path": "org/base", "revision": commit}

    def test_folders_have_none(self, base, adapter):
        (entry,) = resolve(base, adapter)
        assert entry.pinned() == entry


class TestIdentify:
    def test_weights_decide(self, base, adapter, tmp_path):
        entry = ModelEntry("a", base, "main", AdapterFiles(adapter))
        first = entry.identify()
        assert first["model_name_or_path"] == base and first["adapter"]["name_or_path"] == adapter
        assert len(first["sha256"]) == len(first["adapter"]["sha256"]) == 64
        (tmp_path / "adapter" / "README.md").write_text("A card")
        assert entry.identify() == first
        model = build_model("llama", seed=1)
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
        assert entry.identify()["adapter"]["sha256"] != first["adapter"]["sha256"]
        assert entry.identify()["sha256"] == first["sha256"]
        build_model("llama", seed=1).save_pretrained(base)
        assert entry.identify()["sha256"] != first["sha256"]

    def test_of_an_adapter_that_has_another_name(self, base, tmp_path):
        path = tmp_path / "named"

        def save(seed):
            model = build_model("llama")
            model.name_or_path = base
            torch.manual_seed(seed)
            lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
            get_peft_model(model, lora, adapter_name="sft").save_pretrained(path)
            return ModelEntry("", str(path)).identify(), resolve(base, str(path))

        first, (entry,) = save(0)
        assert entry == ModelEntry("named", base, "main", AdapterFiles(str(path), subfolder="sft"))
        assert entry.identify()["adapter"] == {"name_or_path": f"{path}/sft", "sha256": first["sha256"]}
        assert save(1)[0]["sha256"] != first["sha256"]
