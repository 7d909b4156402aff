# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Configurations as people have them for `trl sft`: TRL's own and the alignment handbook's, written anew key for key."""

import json

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from trl.scripts.sft import make_parser

from trl_sbr import SafetyAnchor
from trl_sbr.cli import main
from trl_sbr.scripts.common import parse_strictly
from trl_sbr.scripts.launcher import launcher_options
from trl_sbr.scripts.sft import get_dataclass_types

from ..tiny import conversation_rows
from .test_launcher import sft, world_size


# examples/cli_configs/example_config.yaml, with its commented `env`
TRL_EXAMPLE = """
env:
  CUDA_VISIBLE_DEVICES: 0
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: stanfordnlp/imdb
report_to: none
learning_rate: 0.0001
lr_scheduler_type: cosine
"""
# docs/source/clis.md: "Scaling up with Accelerate"
TRL_LAUNCH = """
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: stanfordnlp/imdb
accelerate_config: multi_gpu
num_processes: 2
"""
# recipes/zephyr-7b-beta/sft/config_full.yaml, its old keys by their names of today
ZEPHYR = """
model_name_or_path: mistralai/Mistral-7B-v0.1
model_revision: main
dtype: bfloat16
attn_implementation: sdpa
chat_template_path: chat_template.jinja
datasets:
  - path: HuggingFaceH4/ultrachat_200k
    name: default
    split: train_sft
    columns:
      - messages
    fraction: 1.0
test_split_size: 0.25
dataset_num_proc: 2
bf16: true
do_eval: true
eval_strategy: epoch
gradient_accumulation_steps: 1
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: False
hub_model_id: zephyr-7b-sft-full
hub_strategy: every_save
learning_rate: 2.0e-05
log_level: info
logging_steps: 5
logging_strategy: steps
lr_scheduler_type: cosine
max_length: 2048
max_steps: -1
num_train_epochs: 1
output_dir: data/zephyr-7b-sft-full
per_device_eval_batch_size: 8
per_device_train_batch_size: 16
push_to_hub: true
remove_unused_columns: true
report_to:
  - wandb
save_strategy: "steps"
save_steps: 100
save_total_limit: 1
seed: 42
warmup_steps: 0.1
"""
# recipes/zephyr-7b-beta/sft/config_qlora.yaml, likewise
ZEPHYR_QLORA = (
    ZEPHYR
    + """
load_in_4bit: true
use_peft: true
lora_r: 16
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
  - q_proj
  - k_proj
  - v_proj
"""
)
# recipes/smollm3/sft/sft.yaml, likewise; `ffd` is now `bfd`
SMOLLM3 = """
model_name_or_path: HuggingFaceTB/SmolLM3-3B-checkpoints
model_revision: it-mid-training
dtype: bfloat16
attn_implementation: sdpa
trust_remote_code: true
datasets:
  - path: HuggingFaceTB/smoltalk2
    name: SFT
    split: train
    columns: [messages]
    fraction: 1.0
  - path: HuggingFaceTB/smoltalk2
    name: SFT
    split: test
    columns: [messages]
    fraction: 0.5
dataset_num_proc: 2
eos_token: <|im_end|>
assistant_only_loss: false
bf16: true
ddp_timeout: 18000
do_eval: false
eval_strategy: 'no'
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: true
hub_strategy: every_save
learning_rate: 2.0e-05
log_level: info
logging_steps: 1
logging_strategy: steps
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 0.1
packing: true
packing_strategy: bfd
max_grad_norm: 0.2
max_length: 512
max_steps: -1
num_train_epochs: 5
output_dir: data/SmolLM3-SFT
per_device_train_batch_size: 1
push_to_hub: true
report_to: [wandb]
save_strategy: epoch
save_total_limit: 1
seed: 42
use_liger_kernel: false
warmup_steps: 0.03
run_name: smollm3-sft-training
average_tokens_across_devices: true
"""
RECIPES = {
    "trl-example": TRL_EXAMPLE,
    "trl-launch": TRL_LAUNCH,
    "zephyr-7b-beta": ZEPHYR,
    "zephyr-7b-beta-qlora": ZEPHYR_QLORA,
    "smollm3": SMOLLM3,
}
ANCHOR = """
anchor_loss_coef: 20.0
anchor_loss_type: mse
"""
# What a test changes: it trains two steps, here, and pushes and reports to nobody
HERE = ["--max_steps", "2", "--push_to_hub", "false", "--report_to", "none", "--bf16", "false"]


@pytest.fixture
def write(refusing_model_dir, tmp_path, monkeypatch):
    """Writes one of them, with the tiny model and data in the place of the large ones."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # is set by `env` in TRL's, and set back behind the test
    rows = [{"messages": row["prompt"] + row["completion"]} for row in conversation_rows(16)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "chat_template.jinja"
    template.write_text((refusing_model_dir / "chat_template.jinja").read_text().replace("<|im_start|>", "<|"))

    def write(text):
        config = yaml.safe_load(text)
        config |= {"model_name_or_path": str(refusing_model_dir), "output_dir": str(tmp_path / "out")}
        config |= {"model_revision": "main"} if "model_revision" in config else {}
        config |= {"dataset_name": str(data)} if "dataset_name" in config else {}
        config |= {"chat_template_path": str(template)} if "chat_template_path" in config else {}
        for dataset in config.get("datasets", []):
            dataset |= {"path": str(data), "name": "default", "split": "train"}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return write


class TestParsing:
    @pytest.mark.parametrize("anchor", ["", ANCHOR])
    @pytest.mark.parametrize("name", RECIPES)
    def test_as_trl_does(self, name, anchor, tmp_path, monkeypatch):
        """The values are TRL's, and so are the keys that go to the launcher."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        trls, ours = tmp_path / "trl.yaml", tmp_path / "ours.yaml"
        trls.write_text(RECIPES[name])
        ours.write_text(RECIPES[name] + anchor)
        *expected, rest = make_parser().parse_args_and_config(
            ["--config", str(trls), "--use_cpu", "true"], return_remaining_strings=True
        )
        found = parse_strictly(get_dataclass_types(), "sft", "", ["--config", str(ours), "--use_cpu", "true"])
        for theirs, mine in zip(expected, found, strict=True):
            differing = {key for key, value in vars(theirs).items() if vars(mine)[key] != value}
            assert not differing - {"distributed_state", "logging_dir"}
        assert found[1].anchor_loss_coef == (20.0 if anchor else 50.0)
        assert {key.removeprefix("--") for key in rest[::2]} <= launcher_options().keys()

    def test_every_key_of_trl(self):
        trls = {action.dest for action in make_parser()._actions} - {"help"}
        trls |= {action.dest for action in launch_command_parser()._actions}
        trls -= {"env", "help", "module", "no_python", "training_script", "training_script_args"}
        from trl_sbr.scripts.common import make_parser as make_ours

        ours = {action.dest for action in make_ours(get_dataclass_types(), "sft", "")._actions}
        assert trls | {"accelerate_config"} <= ours | launcher_options().keys()

    @pytest.mark.parametrize(
        "line",
        [
            "torch_dtype: bfloat16",
            "max_seq_length: 2048",
            "warmup_ratio: 0.1",
            "overwrite_output_dir: true",
            "dataset_mixture: {datasets: []}",
            "chat_template: '{{ messages }}'",
            "use_flash_attention_2: true",
            "evaluation_strategy: epoch",
        ],
    )
    def test_keys_of_old_are_errors_as_in_trl(self, line, tmp_path, capsys):
        config = tmp_path / "config.yaml"
        config.write_text(ZEPHYR + line + "\n")
        *_, rest = make_parser().parse_args_and_config(
            ["--config", str(config), "--use_cpu", "true"], return_remaining_strings=True
        )
        with pytest.raises(SystemExit):  # in TRL: of `accelerate launch`, to which the key goes
            launch_command_parser().parse_args([*rest, "sft.py"])
        capsys.readouterr()
        assert main(["sft", "--config", str(config)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: Unknown key: `{line.split(':')[0]}`") and error.count("\n") == 1


@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize("name", ["trl-example", "zephyr-7b-beta", "zephyr-7b-beta-qlora", "smollm3"])
    def test_in_one_process(self, name, write, tmp_path, capsys):
        assert main(["sft", "--config", write(RECIPES[name] + ANCHOR), *HERE]) == 0
        assert "with its safety anchor" in capsys.readouterr().out
        assert len(SafetyAnchor.from_pretrained(tmp_path / "out").prompts) == 8
        if "zephyr" in name:
            (state,) = (tmp_path / "out").glob("checkpoint-*/trainer_state.json")
            assert any("eval_anchor_loss" in log for log in json.loads(state.read_text())["log_history"])

    @pytest.mark.distributed
    @pytest.mark.parametrize("name", ["trl-launch", "zephyr-7b-beta"])
    def test_in_two_processes(self, name, write, tmp_path):
        text = RECIPES[name].replace("accelerate_config: multi_gpu\nnum_processes: 2\n", "")
        text += "accelerate_config: multi_gpu\nnum_processes: 2\nmain_process_port: 0\n"
        run = sft("--config", write(text), *HERE)
        assert run.returncode == 0, run.stderr
        assert world_size(tmp_path) == 2
        assert (tmp_path / "out" / "safety_anchor.safetensors").is_file()

    def test_the_anchor_of_the_same_file(self, write, tmp_path):
        """What launches a training is left alone where an anchor is captured."""
        config = write(TRL_LAUNCH + ANCHOR)
        assert main(["anchor", "--config", config, "--output_dir", str(tmp_path / "anchor")]) == 0
        assert len(SafetyAnchor.from_pretrained(tmp_path / "anchor").prompts) == 8
