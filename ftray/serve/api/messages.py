"""From the messages of a request to those that a chat template renders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ftray.serve.api.openai_schema import ChatRequest, Content, Message, Tool, ToolCall
from ftray.serve.api.problems import refused
from ftray.serve.api.strict_json import read_strictly


def template_messages(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """Return messages as templates know them: text content, `system` for developers, arguments as objects.

    Raises Problem (400) for arguments that are no JSON object.
    """
    return tuple(_rendered(number, message) for number, message in enumerate(messages))


def template_tools(wanted: ChatRequest) -> tuple[dict[str, Any], ...]:
    """Return the tools that the model is shown."""
    if wanted.tool_choice == "none":
        return ()
    return tuple(_tool(tool) for tool in wanted.tools or ())


def plain_text(messages: Sequence[Message]) -> str:
    """Return a chat as people read it: what is kept of a prompt."""
    return "\n".join(f"{message.role}: {_text(message.content)}" for message in messages)


def _rendered(number: int, message: Message) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, Any] = {"role": role, "content": _text(message.content)}
    if message.role != "tool" and message.name is not None:
        rendered["name"] = message.name
    if message.role == "assistant" and message.tool_calls:
        rendered["tool_calls"] = [_call(number, position, call) for position, call in enumerate(message.tool_calls)]
    if message.role == "tool":
        rendered["tool_call_id"] = message.tool_call_id
    return rendered


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def _call(number: int, position: int, call: ToolCall) -> dict[str, Any]:
    try:
        arguments = read_strictly(call.function.arguments)
    except json.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise refused(
            "The arguments of a tool call are a JSON object, as text.",
            param=f"messages[{number}].tool_calls[{position}].function.arguments",
        )
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _tool(tool: Tool) -> dict[str, Any]:
    shown: dict[str, Any] = tool.model_dump(mode="json", exclude_none=True)
    shown["function"].pop("strict", None)
    return shown
