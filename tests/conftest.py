# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Tiny models and a tokenizer, built here: nothing is fetched."""

import os


os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they give

import threading

import pytest
import torch
from datasets import Dataset

from .endpoint_server import Endpoint
from .releases import skip_where_trl_fails
from .tiny import build_model, build_refusing_model, build_tokenizer, conversation_rows


torch.set_num_threads(1)
skip_where_trl_fails()


@pytest.fixture
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def model():
    """A tiny random Llama. It refuses nothing."""
    return build_model("llama")


@pytest.fixture
def refusing_model():
    """A tiny model that answers every prompt with a refusal."""
    return build_refusing_model()


@pytest.fixture
def dataset():
    return Dataset.from_list(conversation_rows(8))


@pytest.fixture
def refusing_model_dir(refusing_model, tokenizer, tmp_path):
    """A folder with a tiny model that refuses, and its tokenizer."""
    path = tmp_path / "aligned-model"
    refusing_model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The folder of `org/base`, a tiny model that refuses, in a cache of the Hub that holds two commits of it: `main` and `v1`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--org--base"
    (folder / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (folder / "refs" / revision).write_text(commit)
        for part in (build_refusing_model(), build_tokenizer()):
            part.save_pretrained(folder / "snapshots" / commit)
    return folder


@pytest.fixture
def endpoint():
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
