# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Which releases of TRL, transformers and PEFT work? Runs the fast tests on the oldest and the newest release of each minor
version that the package index has, one package at a time, the rest as in `constraints.txt`.

```bash
python benchmarks/compatibility.py --trl 1.15 --transformers 5.15 --peft 0.19   # the oldest minor version to try
```

Prints a line a release and writes `benchmarks/results/compatibility.json`, to which a later call adds. About three
minutes a release; those that are in the file are not run again.
"""

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "compatibility.json"
PACKAGES = ("trl", "transformers", "peft")
# What a release brings along in its own version
FREE = {"transformers": ("huggingface_hub", "tokenizers")}


def parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def releases(package: str, oldest_minor: str) -> list[str]:
    """The oldest and the newest release of each minor version, the newest version first."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    versions = re.search(r"Available versions: (.*)", output)[1].split(", ")
    versions = [v for v in versions if re.fullmatch(r"\d+\.\d+\.\d+", v) and parts(v)[:2] >= parts(oldest_minor)]
    versions.sort(key=parts, reverse=True)
    minors = (list(group) for _, group in itertools.groupby(versions, key=lambda v: parts(v)[:2]))
    return [v for group in minors for v in dict.fromkeys((group[0], group[-1]))]


def install(python: Path, package: str, version: str, folder: Path) -> subprocess.CompletedProcess:
    """Everything as in `constraints.txt`, but for one package and what it brings along."""
    free = {package, *FREE.get(package, ())}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in pins if line.split("==")[0] not in free) + "\n")
    # trl_sbr itself is there already: its own bounds would be in the way of what is measured here
    wanted = [f"{package}=={version}", *(name for name in PACKAGES if name != package), *FREE.get(package, ())]
    command = [python, "-m", "pip", "install", "-q", "-c", constraints, *wanted]
    return subprocess.run(command, capture_output=True, text=True)


def run_tests(python: Path) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-q", "-m", "not slow", "--tb=line", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    counts = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)s?\b", result.stdout[-500:])
    }
    return {"counts": counts, "failures": re.findall(r"^(?:FAILED|ERROR) (.*)$", result.stdout, re.MULTILINE)[:20]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for package in PACKAGES:
        parser.add_argument(
            f"--{package}", metavar="MINOR", help="oldest minor version to try (default: none is tried)"
        )
    args = parser.parse_args()

    report = {
        "what": "pytest -m 'not slow'",
        "python": platform.python_version(),
        "rest": "constraints.txt, but for " + ", ".join(f"{n} with {p}" for p, names in FREE.items() for n in names),
        "rows": json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else [],
    }
    done = {(row["package"], row["version"]) for row in report["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        python = folder / "venv" / "bin" / "python"
        everything = ["pip", "install", "-q", "-c", ROOT / "constraints.txt", "-e", f"{ROOT}[test]"]
        for package in PACKAGES:
            oldest = getattr(args, package)
            for version in releases(package, oldest) if oldest else ():
                if (package, version) in done:
                    continue
                subprocess.run([python, "-m", *everything], check=True)
                installed = install(python, package, version, folder)
                row = {"package": package, "version": version}
                if installed.returncode != 0:
                    row["cannot_be_installed"] = installed.stderr.strip().splitlines()[-1]
                else:
                    row |= run_tests(python)
                print(json.dumps(row), flush=True)
                report["rows"].append(row)
                report["rows"].sort(key=lambda row: (row["package"], parts(row["version"])))
                RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Wrote {RESULTS}.")


if __name__ == "__main__":
    main()
