# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Attacks × defences, in one table: fine-tune models under each defence on what each attack puts in, and measure.

```bash
trl-sbr stress --config smollm2 --output_dir my-stress --dry_run
trl-sbr stress --config smollm2 --output_dir my-stress --only /standard/
trl-sbr stress --config my-grid.yaml --output_dir my-stress --shard 1/4
```

Finished cells are not run again, interrupted ones go on from their checkpoint, and the report is made of whatever cells
are there: `report.json`, `report.md`, `accuracy.png` and `steps.png`. A cell runs on one device: with several, give each
shard its own by `CUDA_VISIBLE_DEVICES`.
"""

import os
import sys
import time
import traceback

from trl_sbr.recipes import find_recipe, recipe_names
from trl_sbr.scripts.common import parse_strictly


def main(argv: list[str] | None = None) -> int:
    from accelerate import PartialState

    from trl_sbr.stress.grid import StressArguments

    argv = _name_grid(sys.argv[1:] if argv is None else argv)
    (args,) = parse_strictly(
        (StressArguments,),
        command="stress",
        description="Attacks × defences: fine-tune models under each defence on each attack's data, and measure.",
        argv=argv,
    )
    if args.output_dir is None:
        raise ValueError("Where shall the cells go? Give `--output_dir FOLDER`.")
    code = stress(args)
    PartialState().destroy_process_group()
    return code


def _name_grid(argv: list[str]) -> list[str]:
    """The grids that come with the package are recipes under `stress/`, and go by their own names here."""
    flags = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    at = flags.index("--config") + 1 if "--config" in flags[:-1] else None
    if at is not None and f"stress/{flags[at]}" in recipe_names():
        flags[at] = str(find_recipe(f"stress/{flags[at]}"))
    return flags


def stress(args) -> int:
    """Runs the cells that are not finished, and writes the report. Returns 1 if a cell failed."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # a cell is one process on one device

    import datasets
    import torch
    from transformers.utils import logging

    from trl_sbr.stress.grid import cell_folder
    from trl_sbr.stress.run import attack, defence, load_plugins

    datasets.disable_progress_bars()  # they would bury the lines about cells
    logging.disable_progress_bar()
    load_plugins(args.plugins)
    for registry, rows in ((attack, args.attacks), (defence, args.defences)):
        for name, row in rows.items():
            registry.check(name, row)
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    from trl_sbr.stress.cell import Bench, check_cells, read_cell, run_cell
    from trl_sbr.stress.report import write_report

    cells = args.cells()
    # All, also those that are not selected: the report is made of them, and one of another grid would end it after the work
    on_disk = {cell: read_cell(args, cell) for cell in args.all_cells()}
    finished = {cell: on_disk[cell] for cell in cells if on_disk[cell] is not None}
    seconds = {cell.attack is None: [] for cell in cells}
    for cell, found in finished.items():
        seconds[cell.attack is None].append(found["seconds"]["total"])
    pending = [cell for cell in cells if cell not in finished]
    bench, failed = Bench(args), []
    if pending:  # a report is made without what the cells were made of
        check_cells(bench, pending)
    print(f"{len(finished)} of {len(cells)} cells finished.{_time_left(pending, seconds)}", flush=True)
    if args.dry_run:
        for cell in pending:
            print(f"  {cell.name}")
        return 0
    for i, cell in enumerate(pending, start=1):
        start = time.monotonic()
        print(f"[{i}/{len(pending)}] {cell.name}", flush=True)
        try:
            result = run_cell(bench, cell)
        except FileExistsError:
            raise  # what lies there is of another grid or model, and the other cells' folders too
        except Exception:
            # The others do not depend on it; repeating the command tries it again
            failed.append(cell)
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            continue
        seconds[cell.attack is None].append(time.monotonic() - start)
        left = _time_left(pending[i:], seconds)
        print(f"    {_summary(result)}; {time.monotonic() - start:.0f} s.{left}", flush=True)
        write_report(args)
    path = write_report(args)
    print(f"\nWrote {path}, report.json, accuracy.png and steps.png.")
    for cell in failed:
        print(f"FAILED, and not in the report: {cell.name} (see above; {cell_folder(args.output_dir, cell)})")
    return 1 if failed else 0


def _summary(result: dict) -> str:
    figures = result["figures"]
    harmful = figures["harmful"]["plain"]
    score = "not judged" if harmful["harmful"] is None else f"{harmful['harmful']['percent']:.1f} %"
    return (
        f"harmful {score}, answered {harmful['answered']['percent']:.1f} %, "
        f"incoherent {harmful['incoherent']['percent']:.1f} %, benign refused "
        f"{figures['benign']['plain']['refused']['percent']:.1f} %, accuracy {figures['task']['correct']['percent']:.1f} %"
    )


def _time_left(pending: list, seconds: dict[bool, list[float]]) -> str:
    """Says how long the pending cells take, by the mean of the finished ones."""
    if not pending:
        return ""
    known = {kind: sum(times) / len(times) for kind, times in seconds.items() if times}
    if any((cell.attack is None) not in known for cell in pending):
        return " How long the others take is known when one of them is finished."
    minutes = sum(known[cell.attack is None] for cell in pending) / 60
    return f" About {minutes:.0f} minutes left."


if __name__ == "__main__":
    from trl_sbr.cli import main as cli

    sys.exit(cli(["stress", *sys.argv[1:]]))
