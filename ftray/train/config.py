"""The `train` and `compute` sections of a job: the recipe, and the machines it runs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftray.config import Config


class EarlyStopping(Config):
    """Stop when validation loss diverges from training loss or nothing improves any more."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations in a row that must be worse before training stops; three times as many that bring nothing new."""
    margin: Annotated[float, Field(ge=0)] = 0.02
    """Relative rise of validation loss over its best that counts as worse."""
    after: Literal["warmup", "start"] = "warmup"
    """From when on evaluations count."""


class TrainConfig(Config):
    """The recipe: what changes the weights."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; null means 1e-4 for LoRA and 2e-5 for full fine-tuning."""
    epochs: Annotated[float, Field(gt=0)] = 2.0
    """Passes over the training rows; may be fractional."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; when given it takes the place of epochs."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples per optimizer step, over all workers."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Examples (rows, when packing) per forward pass of one worker; changes memory, never the result."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning-rate schedule after warm-up; `wsd` is warmup-stable-decay with the last 20 % decaying."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Where cosine, linear and wsd end."""
    warmup: Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=0)] = 0.03
    """Linear warm-up: a share of all steps (0.03), or a number of steps (20)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW, on matrices only."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm is clipped to this; 0 turns clipping off."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target mass spread evenly over the vocabulary (training loss only)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward; trained weights and optimizer state are fp32. auto: bf16 on GPUs that
    have it, else fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Optimizer steps between lines of metrics.jsonl."""
    evaluate_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Steps between evaluations on validation data; auto: every 500 steps or 4 times an epoch, the more frequent."""
    checkpoint_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Steps between checkpoints, each of which is evaluated; auto: at every evaluation."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3
    """Checkpoints kept; the best and the last always survive."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """On by default; null turns it off."""


class DeepSpeedConfig(Config):
    """How DeepSpeed shares the training state among workers (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054)."""

    stage: Literal[0, 1, 2, 3] | None = None
    """0 shares nothing, 1 optimizer state, 2 also gradients, 3 also weights; null means 0 for LoRA, 2 for full."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Keep optimizer state in host memory or on NVMe (stages 1-3; nvme: stage 3)."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Keep weights in host memory or on NVMe (stage 3)."""
    nvme_path: str = "/local_nvme"
    """Folder for nvme offload, on every worker."""


class ComputeConfig(Config):
    """Where the run happens. Never changes the result beyond rounding; changing it resumes the same run."""

    workers: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=1)]] = 1
    """0: plain torch in this process. N ≥ 1: Ray Train with DeepSpeed on N workers. [min, max]: elastic."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs per worker, and its number of threads (at least one)."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per worker."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """ZeRO stage and offload; not used with workers: 0."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced before the run fails."""
