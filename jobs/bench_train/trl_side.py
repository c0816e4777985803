"""TRL's side: one training by SFTTrainer in a process of its own, from an order file to a record file.

It fails unless TRL's tokens and labels of every row are those that ftray trains on. Timed is what Trainer itself calls
`train_runtime`: the loop, without start-up, tokenization or saving.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

IGNORED = -100


def main(order_file: Path) -> None:
    order = json.loads(order_file.read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in Path(order["rows"]).read_text(encoding="utf-8").splitlines()]
    torch.set_num_threads(order["threads"])
    set_seed(order["seed"])
    trainer = build_trainer(order, rows)
    require_same_tokens(trainer.train_dataset, rows)
    outcome = trainer.train()
    if int(os.environ.get("RANK", "0")) > 0:
        return
    trainer.save_model(order["adapter"])
    steps = [line for line in trainer.state.log_history if "grad_norm" in line]
    record = {
        "steps": trainer.state.global_step,
        "tokens": int(max(line.get("num_tokens", 0) for line in trainer.state.log_history)),
        "train_seconds": outcome.metrics["train_runtime"],
        "losses": [line["loss"] for line in steps],
        "grad_norms": [line["grad_norm"] for line in steps],
        "adapter": order["adapter"],
        "threads": torch.get_num_threads(),
        "label_tokens_per_epoch": sum(sum(row["is_label"]) for row in rows),
    }
    Path(order["record"]).write_text(json.dumps(record), encoding="utf-8")


def build_trainer(order: dict[str, Any], rows: list[dict[str, Any]]) -> SFTTrainer:
    lora, recipe = order["lora"], order["recipe"]
    tokenizer = AutoTokenizer.from_pretrained(order["model"])
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32),
        args=SFTConfig(
            output_dir=order["folder"],
            seed=order["seed"],
            per_device_train_batch_size=recipe["batch_size"] // order["processes"],
            num_train_epochs=recipe["epochs"],
            max_steps=recipe["max_steps"] or -1,
            learning_rate=recipe["learning_rate"],
            lr_scheduler_type=recipe["schedule"],
            warmup_steps=recipe["warmup_steps"],
            weight_decay=recipe["weight_decay"],
            max_grad_norm=recipe["max_grad_norm"],
            ddp_backend="gloo" if order["processes"] > 1 else None,
            ddp_find_unused_parameters=False if order["processes"] > 1 else None,
            **order["arguments"],
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=lora["target_modules"],
        ),
    )


def require_same_tokens(dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    """Stop unless both sides learn the same tokens from the same tokens."""
    assert len(dataset) == len(rows), f"TRL trains on {len(dataset)} rows, ftray on {len(rows)}"
    for theirs, ours in zip(dataset, rows, strict=True):
        labels = [
            token if learned else IGNORED for token, learned in zip(ours["tokens"], ours["is_label"], strict=True)
        ]
        assert theirs["input_ids"] == ours["tokens"], f"other tokens: {theirs['input_ids']} and {ours['tokens']}"
        assert theirs["labels"] == labels, f"other labels: {theirs['labels']} and {labels}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
