# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Thousands of files with faults, given to everything that reads a file: see `tests/fuzzing.py`.

```bash
python benchmarks/fuzz.py --cases 1500
```

Prints what fell through and writes the counts to `benchmarks/results/fuzz.json`. Its exit code is 1 if anything did.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # names of models change too, and none is asked for

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.fuzzing import TARGETS, Outcome, run  # noqa: E402


RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--cases", type=int, default=1500, help="Number of cases of each kind of file.")
    parser.add_argument("--only", choices=TARGETS, help="One kind alone; nothing is written.")
    args = parser.parse_args()
    results, start = {}, time.monotonic()
    for name in [args.only] if args.only else TARGETS:
        outcome, begin = Outcome(), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            for case in range(args.cases):
                run(TARGETS[name], name, case, Path(folder), outcome)
        for line in outcome.fallen:
            print(line)
        counts = {kind: outcome.counts[kind] for kind in ("read", "refused", "fallen_through")}
        results[name] = {**counts, "seconds": round(time.monotonic() - begin, 1)}
        print(f"{name}: {results[name]}", flush=True)
    total = {kind: sum(row[kind] for row in results.values()) for kind in ("read", "refused", "fallen_through")}
    report = {
        "cases": sum(total.values()),
        **total,
        "files": results,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(time.monotonic() - start, 1),
        "versions": {"python": platform.python_version(), "trl_sbr": version("trl_sbr")},
    }
    if not args.only:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['cases']} cases: {total} in {report['seconds']} s, at most {report['peak_memory_mib']} MiB.")
    return min(1, total["fallen_through"])


if __name__ == "__main__":
    sys.exit(main())
