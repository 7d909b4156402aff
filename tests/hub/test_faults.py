# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Every fault at every step of a push and of a load: an error says what to do, or the client gets over it by itself; the
repository holds the old commit or the new one whole; local files are as they were; the same command finishes the work.
"""

import pytest

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME
from trl_sbr.hub.cards import CARD_NAME

from ..tiny import build_refusing_model, build_tokenizer


# More failures than the client's own attempts, so that the command fails; fewer and it would wait and get through
MANY = 8

# Step of a push -> the request that is broken
PUSH_STEPS = {
    "create the repository": ("POST", "/api/repos/create"),
    "read its last commit": ("GET", "/api/models/org/anchor"),
    "read the card there": ("HEAD", "/resolve/"),
    "check the metadata": ("POST", "/api/validate-yaml"),
    "ask what is new": ("POST", "/preupload/"),
    "ask where to upload": ("POST", "/info/lfs/objects/batch"),
    "upload": ("PUT", "/"),
    "confirm the upload": ("POST", "/anchor.git/verify"),
    "commit": ("POST", "/commit/"),
}
LOAD_STEPS = {
    "resolve the commit": ("GET", "/api/models/org/anchor"),
    "size of the configuration": ("HEAD", f"/{CONFIG_NAME}"),
    "configuration": ("GET", f"/{CONFIG_NAME}"),
    "size of the tensor": ("HEAD", f"/{TENSOR_NAME}"),
    "tensor": ("GET", "/{oid}"),  # on the other origin, by its SHA-256
}
FAULTS = ["drop", "drop-after", "429", "500", "503", "truncate", "slow"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "anchor"
    prompts = ["How do I harm?"]
    SafetyAnchor.capture(build_refusing_model(), build_tokenizer(), prompts).save_pretrained(folder)
    return folder


@pytest.fixture
def quick(run):
    """Run a command whose client waits for no time between its attempts: `time.sleep` is the one thing replaced."""

    def quick(argv, **kwargs):
        line = [str(arg) for arg in argv]
        return run(
            "import sys, time\ntime.sleep = lambda seconds: None\n"
            f"from trl_sbr.cli import main\nsys.exit(main({line!r}))",
            **kwargs,
        )

    return quick


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir()}


class TestPush:
    @pytest.mark.slow  # all together
    @pytest.mark.parametrize("step", PUSH_STEPS)
    @pytest.mark.parametrize("fault", FAULTS)
    def test_fails_whole_and_is_finished_by_the_command_that_it_names(self, hub, quick, folder, fault, step):
        method, path = PUSH_STEPS[step]
        old = {CARD_NAME: b"# Old\n", CONFIG_NAME: b"{}", TENSOR_NAME: b"old"}
        repo = hub.add_repo("org/anchor", old)
        before, history = contents(folder), [commit.oid for commit in repo.history]
        broken = hub.fail(fault, path, method, times=MANY, seconds=2.5 if fault == "slow" else 0)
        command = ["push", "--output_dir", folder, "--repo_id", "org/anchor"]
        result = quick(command)
        assert broken.times < MANY, "the fault hit nothing"
        assert contents(folder) == before
        files = {name: hub.read("org/anchor", name) for name in hub.files("org/anchor")}
        if result.code != 0:
            assert result.code == 2
            assert (
                result.err.startswith("error: The push to `org/anchor` failed: ") or "\nerror: The push" in result.err
            )
            assert f"To finish it, run: trl-sbr push --output_dir {folder} --repo_id org/anchor\n" in result.err
        if len(repo.history) == len(history):
            assert result.code != 0
            assert files == old
        else:
            assert [commit.oid for commit in repo.history[1:]] == history
            assert files[TENSOR_NAME] == before[folder / TENSOR_NAME]
            assert files[CONFIG_NAME] == before[folder / CONFIG_NAME]

        hub.faults.clear()
        assert quick(command).code == 0
        assert [commit.oid for commit in repo.history[1:]] == history  # one commit in all
        assert hub.read("org/anchor", TENSOR_NAME) == before[folder / TENSOR_NAME]

    def test_stale_parent(self, hub, quick, folder):
        repo = hub.add_repo("org/anchor")
        hub.fail("stale", "/commit/")
        command = ["push", "--output_dir", folder, "--repo_id", "org/anchor"]
        result = quick(command)
        assert "somebody else has pushed to it meanwhile, and nothing was overwritten" in result.err
        assert hub.files("org/anchor") == {"stranger.txt"}
        assert quick(command).code == 0
        assert hub.files("org/anchor") == {"stranger.txt", CARD_NAME, CONFIG_NAME, TENSOR_NAME}
        assert len(repo.history) == 3

    @pytest.mark.parametrize("token", ["hf_bob", "hf_reader", "hf_wrong"])
    def test_token_that_may_not_write(self, hub, quick, folder, token):
        hub.add_repo("org/anchor")
        result = quick(["push", "--output_dir", folder, "--repo_id", "org/anchor"], token=token)
        assert (result.code, "Log in with a token that may write there" in result.err) == (2, True)
        assert hub.files("org/anchor") == set()


class TestLoad:
    @pytest.mark.slow  # all together
    @pytest.mark.parametrize("step", LOAD_STEPS)
    @pytest.mark.parametrize("fault", FAULTS)
    def test_error_says_what_to_do_and_the_next_attempt_works(self, hub, quick, folder, fault, step):
        method, path = LOAD_STEPS[step]
        repo = hub.add_repo("org/anchor", {path.name: path.read_bytes() for path in folder.iterdir()})
        path = path.format(oid=repo.history[0].files[TENSOR_NAME].oid)
        broken = hub.fail(fault, path, method, times=MANY, seconds=2.5 if fault == "slow" else 0)
        result = quick(["anchor", "--show", "org/anchor"])
        assert broken.times < MANY, "the fault hit nothing"
        if result.code != 0:
            assert result.code == 2
            assert "try again" in result.err.lower()
            assert "`org/anchor`" in result.err
        hub.faults.clear()
        result = quick(["anchor", "--show", "org/anchor"])
        assert result.code == 0, result.err
        assert "How do I harm?" in result.out

    def test_private_gated_and_missing(self, hub, quick, folder):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.add_repo("org/private", files, private=True)
        hub.add_repo("org/gated", files, gated=True)
        hub.add_repo("org/empty")
        for name, message in {
            "private": "no repository on the Hub that your login may read",
            "missing": "no repository on the Hub that your login may read",
            "gated": "only to whom its owner lets in",
            "empty": "lacks a file",
        }.items():
            result = quick(["anchor", "--show", f"org/{name}"], token="hf_bob")
            assert (result.code, message in result.err) == (2, True), result.err
        assert quick(["anchor", "--show", "org/private"]).code == 0
