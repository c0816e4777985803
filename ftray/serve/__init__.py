"""The endpoint: engines, the OpenAI-compatible API, experiments and their statistics."""
