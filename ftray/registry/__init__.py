"""Adapters that are kept for good, the aliases that point at them, and the proof that one is alive."""
