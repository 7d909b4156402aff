# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Run by `accelerate launch`: trains one optimizer step in every configuration that it is given, and saves the gradients."""

import gc
import json
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.trainers import test_any_trainer, test_gradient


def main(output_dir: Path, configurations: list[dict]) -> None:
    for number, settings in enumerate(configurations):
        module = test_any_trainer if "kind" in settings else test_gradient  # of SFT
        steps, trainer = module.train(output_dir / f"run-{number}", **settings)
        assert trainer.accelerator.num_processes == 2, trainer.accelerator.num_processes
        assert isinstance(trainer.model_wrapped, DistributedDataParallel), type(trainer.model_wrapped)
        if trainer.is_world_process_zero():
            torch.save(steps, output_dir / f"gradients-{number}.pt")
    # A DDP model that outlives its process group can hang the process at its end
    del trainer
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
