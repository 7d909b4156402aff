# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Run by `accelerate launch`: trains whatever it is given, makes sure that several processes did it in the way that was
asked for, and saves the results. Imported by the tests, which train the same in one process.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig

from tests.tiny import conversation_rows
from trl_sbr import SafetyAnchor, SafetyMonitor, SBRConfig, SBRSFTTrainer


WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPModule",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}


def train(
    output_dir: Path,
    model: str,
    wrapper: str | None = None,
    lora: bool = False,
    num_rows: int = 24,
    repeated_rows: int = 0,
    resume: str | bool | None = None,
    monitor: dict | None = None,
    **settings,
) -> SBRSFTTrainer:
    """
    Train the model in a folder as `settings` say and save it. The first `repeated_rows` rows come again at the end. `monitor`
    has the settings of a monitor on the held-out anchor that lies beside the model.
    """
    for state in (AcceleratorState, GradientState):  # that of an earlier run
        state._reset_state()
    args = SBRConfig(
        output_dir,
        **{
            "use_cpu": True,
            "bf16": False,
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "anchor_require_refusal": False,
            "train_sampling_strategy": "sequential",
            **settings,
        },
    )
    if wrapper == "fsdp2":
        # accelerate shards on accelerators only. Told that this is one, its engine runs on gloo all the same.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    rows = conversation_rows(num_rows)
    trainer = SBRSFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(rows + rows[:repeated_rows]),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )
    if monitor is not None:
        held_out = SafetyAnchor.from_pretrained(model, subfolder="held_out")
        trainer.add_callback(SafetyMonitor(trainer, held_out, **monitor))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.is_world_process_zero():
        (output_dir / "log_history.json").write_text(json.dumps(trainer.state.log_history))
    return trainer


def main(output_dir: Path, wrapper: str, num_processes: int, runs: dict[str, dict]) -> None:
    for name, settings in runs.items():
        trainer = train(output_dir / name, wrapper=wrapper, **settings)
        # A wrong launcher flag, or a sharding engine that stands aside, runs otherwise in silence
        assert trainer.accelerator.num_processes == num_processes, trainer.accelerator.num_processes
        wrappers = [cls.__name__ for cls in type(trainer.model_wrapped).__mro__]
        assert WRAPPERS[wrapper] in wrappers, wrappers
    # A DDP model that outlives its process group can hang the process at its end
    del trainer
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
