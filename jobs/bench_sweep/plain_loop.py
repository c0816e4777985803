"""One trial by transformers and PEFT alone: the loop of both plain sides, and a process of its own for one of them.

python plain_loop.py CAMPAIGN TRIAL FOLDER    trains trial number TRIAL; after each evaluation it prints its result and
                                              reads a line: go or stop
Nothing of ftray is imported. Rows, their order, learning rates and evaluations come from the campaign's file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100
Record = dict[str, Any]
Report = Callable[[Record, Any], bool]
"""Takes an evaluation's numbers, and the model where they are its best so far; returns whether to go on."""


def train_trial(campaign: Record, trial: Record, report: Report) -> None:
    """Train one configuration to its last step, or until it is told to stop."""
    torch.set_num_threads(campaign["plain"]["threads"])
    tokenizer = AutoTokenizer.from_pretrained(campaign["model"])
    model: Any = build_model(campaign, trial)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=campaign["weight_decay"], fused=True)
    pad, evaluations = tokenizer.pad_token_id, set(campaign["evaluate_at"])
    tokens, best, losses = 0, -1.0, []
    model.train()
    for step, (indices, rate) in enumerate(zip(campaign["batches"], trial["learning_rates"], strict=True), start=1):
        rows = [campaign["train"][index] for index in indices]
        loss = model(**padded(rows, pad), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, campaign["max_grad_norm"] or float("inf"))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tokens += sum(len(row["tokens"]) for row in rows)
        if step not in evaluations:
            continue
        validation_loss, accuracy = evaluate(model, tokenizer, campaign)
        is_best, best = accuracy > best, max(accuracy, best)
        numbers = {
            "step": step,
            "tokens": tokens,
            "train_loss": losses[-1],
            "validation_loss": validation_loss,
            "validation_accuracy": accuracy,
            "best_validation_accuracy": best,
        }
        if not report(numbers, model if is_best else None):
            return
        model.train()


def build_model(campaign: Record, trial: Record) -> Any:
    """Return the base with a fresh adapter, drawn from the campaign's seed."""
    base = AutoModelForCausalLM.from_pretrained(campaign["model"], dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=trial["rank"],
        lora_alpha=trial["alpha"],
        lora_dropout=trial["dropout"],
        target_modules=trial["target_modules"],
    )
    torch.manual_seed(campaign["seed"])
    return get_peft_model(base, config)


def padded(rows: Sequence[Record], pad: int) -> dict[str, Tensor]:
    """Return rows as one batch, padded on the right; labels where the loss counts."""
    width = max(len(row["tokens"]) for row in rows)
    tokens, mask, labels = [], [], []
    for row in rows:
        length = len(row["tokens"])
        learned = [
            token if is_label else IGNORED for token, is_label in zip(row["tokens"], row["is_label"], strict=True)
        ]
        tokens.append(row["tokens"] + [pad] * (width - length))
        mask.append([1] * length + [0] * (width - length))
        labels.append(learned + [IGNORED] * (width - length))
    return {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, campaign: Record) -> tuple[float, float]:
    """Return the mean loss per label and the share of right answers on the validation rows."""
    model.eval()
    rows = sorted(campaign["validation"], key=lambda row: len(row["tokens"]))
    size, total, labels, right = campaign["plain"]["evaluation_batch"], 0.0, 0, 0
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        counted = sum(sum(row["is_label"][1:]) for row in batch)
        total += model(**padded(batch, tokenizer.pad_token_id), use_cache=False).loss.item() * counted
        labels += counted
        answers = answer(model, tokenizer, campaign, [row["prompt"] for row in batch])
        right += sum(plain(said) == plain(row["expected"]) for said, row in zip(answers, batch, strict=True))
    return total / labels, right / len(rows)


def answer(model: Any, tokenizer: Any, campaign: Record, prompts: list[list[int]]) -> list[str]:
    """Return the likeliest answers, generated in one batch."""
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    produced = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=campaign["max_new_tokens"],
        do_sample=False,
        eos_token_id=campaign["stop_token_ids"],
        pad_token_id=pad,
    )
    texts: list[str] = tokenizer.batch_decode(produced[:, width:], skip_special_tokens=True)
    return texts


def plain(text: str) -> str:
    """Return a text as answers are compared."""
    return " ".join(text.split()).casefold()


def main(campaign_file: Path, index: int, folder: Path) -> None:
    campaign = json.loads(campaign_file.read_text(encoding="utf-8"))

    def report(numbers: Record, best_model: Any) -> bool:
        if best_model is not None:
            best_model.save_pretrained(str(folder / f"trial-{index}"))
        print(json.dumps(numbers), flush=True)
        return sys.stdin.readline().strip() == "go"

    train_trial(campaign, campaign["trials"][index], report)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
