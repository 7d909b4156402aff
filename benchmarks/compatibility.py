# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Beside which trainers and servers can trl_sbr be installed, and do its core's tests pass on what comes out?

```bash
pip install uv && python benchmarks/compatibility.py            # all sets; or name some
python benchmarks/compatibility.py --table                      # the table of benchmarks/README.md, from the last results
```

For each set it asks the resolver for the package and trl_sbr together, writes what trl_sbr needs of the answer to
`constraints/`, installs that with torch's CPU build, and runs the fast tests of the core. Neither the package itself nor
its torch is installed: they need a GPU, and gigabytes. About four minutes a set on an idle core; `UV_FIND_LINKS` names a
folder of wheels for uv. Writes `benchmarks/results/compatibility.json`, where the other sets' rows stay.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "compatibility.json"
TORCH = "torch==2.13.0"  # the newest that the package index has a CPU build of
TESTS = ["-m", "not slow", "@tests/core.txt"]
SHOWN = ("trl", "transformers", "peft", "accelerate", "datasets", "huggingface-hub", "torch", "numpy")

# By the name of its set: the package, and the Python that it is resolved for (the tests run on this one's)
PACKAGES = {
    "axolotl-0.19": ("axolotl==0.19.0", "3.11"),
    "axolotl-0.21": ("axolotl==0.21.0", "3.12"),
    "unsloth": ("unsloth==2026.10.9", "3.11"),
    "vllm": ("vllm==0.33.0", "3.11"),
    "ms-swift": ("ms-swift==4.6.0", "3.11"),
    "llama-factory": ("llamafactory==0.9.5", "3.11"),
}
SETS = ["newest", *PACKAGES, "oldest"]


def resolve(requirements: list[str], *options: str) -> dict[str, str]:
    """Versions by name. `ValueError` with the resolver's words if there is no answer."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-header", "--no-annotate", *options, "-"]
    result = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True)
    if result.returncode != 0:
        message = " ".join(result.stderr.split())
        because = re.search(r"Because (.*?), we can conclude", message)
        raise ValueError(because[1] if because else message)
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", result.stdout, re.MULTILINE))


def direct_dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [re.match(r"[\w-]+", line)[0].replace("_", "-") for line in project["dependencies"]]


def write_constraints(name: str, versions: dict[str, str], about: str) -> Path:
    path = ROOT / "constraints" / f"{name}.txt"
    path.parent.mkdir(exist_ok=True)
    gpu = ("nvidia-", "cuda-", "triton")
    pins = [f"{package}=={version}\n" for package, version in versions.items() if not package.startswith(gpu)]
    path.write_text(f"# {about} Written by benchmarks/compatibility.py\n" + "".join(pins))
    return path


def choose(name: str) -> dict:
    """Ask the resolver, and write the set to `constraints/`."""
    ours = f"trl_sbr[test] @ {ROOT.as_uri()}"
    override = tempfile.NamedTemporaryFile("w", suffix=".txt")
    override.write(TORCH)
    override.flush()
    here = ("--python-version", "{}.{}".format(*platform.python_version_tuple()), "--override", override.name)
    if name == "newest":
        return {"constraints": "constraints.txt"}
    if name == "oldest":
        oldest = resolve([ours], "--resolution", "lowest-direct", *here)
        path = write_constraints(name, oldest, "The floors of pyproject.toml, but for torch's.")
        return {"constraints": str(path.relative_to(ROOT))}
    package, python = PACKAGES[name]
    row = {"beside": package, "resolved_for_python": python}
    try:
        together = resolve([package, f"trl_sbr @ {ROOT.as_uri()}"], "--python-version", python)
    except ValueError as error:
        return {**row, "resolver": f"refuses, since {error}"}
    # The rest is the resolver's again: what it gives for another Python may not be there for this one
    pins = [f"{key}=={together[key]}" for key in direct_dependencies() if key != "torch"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        versions = resolve([ours], "--constraints", file.name, *here)
    path = write_constraints(name, versions, f"What trl_sbr gets beside {package}, but for torch.")
    row["resolved"] = {key: together[key] for key in SHOWN}
    return {**row, "resolver": "accepts", "constraints": str(path.relative_to(ROOT))}


def run_tests(constraints: str) -> dict:
    """Install a set in a new environment, and run the fast tests of the core."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv", "bin", "python")
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, python.parents[1]], check=True)
        install = [*uv, "pip", "install", "-q", "--python", python, "-c", ROOT / constraints, "-e", f"{ROOT}[test]"]
        subprocess.run(install, check=True)
        command = [python, "-m", "pytest", "-q", "-rfEs", "--tb=line", "-p", "no:cacheprovider"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run([*command, *TESTS], cwd=ROOT, env=environment, capture_output=True, text=True)
        freeze = [*uv, "pip", "list", "-q", "--format", "json", "--python", python]
        found = {package["name"]: package["version"] for package in json.loads(subprocess.check_output(freeze))}
    counts = dict.fromkeys(("passed", "failed", "skipped", "error"), 0)
    for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", result.stdout.splitlines()[-1]):
        counts[word] = int(number)
    skipped = {}
    for number, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+: (.*)$", result.stdout, re.MULTILINE):
        skipped[reason] = skipped.get(reason, 0) + int(number)
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)$", result.stdout, re.MULTILINE)
    return {
        "tested": {key: found[key] for key in SHOWN},
        "tests": {**counts, "reasons_of_skips": skipped, "failures": failures},
    }


def table(rows: dict[str, dict]) -> str:
    lines = ["| set | " + " | ".join(SHOWN) + " | beside it | core's tests |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, row in rows.items():
        versions = {**row.get("tested", {}), **row.get("resolved", {})}  # of torch, the one of the resolver's
        tests = row.get("tests")
        result = "–"
        if tests:
            result = f"{tests['passed']} pass"
            result += f", {tests['failed'] + tests['error']} fail" if tests["failed"] + tests["error"] else ""
            result += "".join(f", {count} skipped: {why}" for why, count in tests["reasons_of_skips"].items())
        beside = f"`{row['beside']}`: {row['resolver']}" if "beside" in row else ""
        cells = [name, *(versions.get(key, "–") for key in SHOWN), beside, result]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)} (default: all)")
    parser.add_argument("--no_tests", action="store_true", help="only ask the resolver, in a minute")
    parser.add_argument("--table", action="store_true", help="only print the table of the last results")
    args = parser.parse_args()
    if unknown := set(args.sets) - set(SETS):
        parser.error(f"Found no set {', '.join(sorted(unknown))}, expected some of {', '.join(SETS)}.")

    for name in [] if args.table else args.sets or SETS:
        row = choose(name)
        if "constraints" in row and not args.no_tests:
            row |= run_tests(row["constraints"])
        print(json.dumps({name: row}), flush=True)
        # Read again: another call may have added a row meanwhile
        rows = {**json.loads(RESULTS.read_text())["sets"], name: row} if RESULTS.is_file() else {name: row}
        report = {
            "what": shlex.join(["pytest", *TESTS]),
            "python": platform.python_version(),
            "sets": {key: rows[key] for key in SETS if key in rows},
        }
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(table(json.loads(RESULTS.read_text())["sets"]))


if __name__ == "__main__":
    main()
