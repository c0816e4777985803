"""ftray: one job file in; an adapter shown to be better than its base out, in front of traffic.

Rooms, in import order (downwards only, tested): errors, config, artifacts, tracking -> data, model -> evaluate ->
train, selection -> report -> job -> finetune -> sweep -> serve -> submit -> cli. Ray is imported only where it is
spoken to (the list is in tests/test_layout.py), DeepSpeed only in `train/deepspeed.py`; everything else runs wherever
torch, transformers and peft do.
"""

__version__ = "0.1.0"
