"""The HTTP API, OpenAI-compatible, without Ray."""
