"""A small world, a small base model pretrained on it and a small task: fine-tuning shown offline, in minutes."""
