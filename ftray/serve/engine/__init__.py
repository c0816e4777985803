"""Whoever runs the model: the bank engine, and the vLLM one."""
