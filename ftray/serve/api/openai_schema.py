"""What OpenAI's API may ask of us. A parameter that would change nothing is refused, unless it says what is anyway."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue, model_validator
from pydantic_core import PydanticCustomError, core_schema

from ftray.config import Config

MOST_TOP_LOGPROBS = 20
MOST_STOPS = 4
MOST_CHOICES = 128
SEED = 2**63
UNIT_PATTERN = r"^[^\x00-\x1f\x7f]{1,256}$"


@dataclass(frozen=True, eq=False)
class Only:
    """Annotates a parameter that may only have the values that mean what happens anyway.

    Each is itself alone: typing keeps one of several equal annotations, and 0 equals False.
    """

    values: tuple[JsonValue, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Check the value after what it is annotated on."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """List the values."""
        return {"enum": list(self.values)}

    def _check(self, value: JsonValue) -> JsonValue:
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values):
            return value
        allowed = " or ".join(json.dumps(one) for one in self.values)
        raise PydanticCustomError(
            "unsupported_parameter", "it has no effect here; leave it out, or give {allowed}", {"allowed": allowed}
        )


def _only(*values: JsonValue) -> Only:
    return Only(values)


Zero = Annotated[JsonValue, _only(None, 0)]
Absent = Annotated[JsonValue, _only(None)]
No = Annotated[JsonValue, _only(None, False)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Unit = Annotated[str, Field(pattern=UNIT_PATTERN)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Config):
    """A part of a message; models here read text only."""

    type: Literal["text"]
    """Images, audio and files are refused."""
    text: str
    """The text; several parts are joined by line ends."""


Content = str | list[TextPart]


class SystemMessage(Config):
    """What the model is told about itself."""

    role: Literal["system", "developer"]
    """A developer's message is a system message."""
    content: Content
    """Text."""
    name: str | None = None
    """Passed to the template."""


class UserMessage(Config):
    """What is asked."""

    role: Literal["user"]
    """Who speaks."""
    content: Content
    """Text."""
    name: str | None = None
    """Passed to the template."""


class FunctionCall(Config):
    """A call that the model has asked for."""

    name: ToolName
    """Of the function."""
    arguments: str
    """A JSON object; the template gets it as such."""


class ToolCall(Config):
    """A call of a tool, in an earlier answer."""

    id: Annotated[str, Field(max_length=256)]
    """What the tool's message answers to."""
    type: Literal["function"]
    """Functions are the only tools."""
    function: FunctionCall
    """What was called."""


class AssistantMessage(Config):
    """What was answered before."""

    role: Literal["assistant"]
    """Who speaks."""
    content: Content | None = None
    """Text, or none beside tool calls."""
    name: str | None = None
    """Passed to the template."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    """Passed to the template."""
    refusal: Absent = None
    """Null."""
    annotations: Annotated[JsonValue, _only(None, [])] = None
    """Null or empty."""
    audio: Absent = None
    """Null."""
    function_call: Absent = None
    """Null; tool_calls took its place."""


class ToolMessage(Config):
    """What a tool has said."""

    role: Literal["tool"]
    """Who speaks."""
    content: Content
    """Text."""
    tool_call_id: Annotated[str, Field(max_length=256)]
    """Which call it answers."""


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Config):
    """A function that the model may call."""

    name: ToolName
    """How it is called."""
    description: str | None = None
    """What it does."""
    parameters: dict[str, JsonValue] | None = None
    """JSON Schema of its arguments."""
    strict: No = None
    """Answers are not forced into a schema."""


class Tool(Config):
    """A tool, as the template shows it to the model."""

    type: Literal["function"]
    """Functions are the only tools."""
    function: Function
    """The function."""


class StreamOptions(Config):
    """How an answer is streamed."""

    include_usage: bool = False
    """One more chunk at the end, with the counts."""
    include_obfuscation: No = None
    """Chunks are not padded."""


class Wanted(Config):
    """What both routes share."""

    model: ModelName
    """<base>, <base>:<name>, <base>:<name>@<digest> or exp:<experiment>."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """1 where it is not given; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Take from the likeliest tokens that have this share together."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Take from so many tokens; 0 for all. Not part of OpenAI's API."""
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    """Answers to each prompt."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer."""
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    """Texts that end an answer."""
    seed: Annotated[int, Field(ge=-SEED, lt=SEED)] | None = None
    """The same again gives the same answer."""
    stream: bool | None = None
    """Answer with events, as it grows."""
    stream_options: StreamOptions | None = None
    """With `stream` only."""
    user: Unit | None = None
    """The unit of an experiment, where no X-Ftray-Unit header names one."""
    safety_identifier: Unit | None = None
    """The unit, where neither header nor `user` name one."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Given back with the answer."""
    presence_penalty: Zero = None
    """Null or 0."""
    frequency_penalty: Zero = None
    """Null or 0."""
    logit_bias: Annotated[JsonValue, _only(None, {})] = None
    """Null or empty."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true only")
        if "" in self.stops:
            raise ValueError("an empty stop text would end every answer")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Wanted):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    """The chat so far; rendered with the template that the adapter was trained with."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """max_tokens, as it is called today."""
    logprobs: bool | None = None
    """The log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    """And of so many of the likeliest; with `logprobs` only."""
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    """Passed to the template; what the model says of them is text."""
    tool_choice: Annotated[JsonValue, _only(None, "auto", "none")] = None
    """"none" hides the tools; the model cannot be made to call one."""
    parallel_tool_calls: Annotated[JsonValue, _only(None, True)] = None
    """Null or true."""
    response_format: Annotated[JsonValue, _only(None, {"type": "text"})] = None
    """Null or {"type": "text"}: answers are not forced into a format."""
    modalities: Annotated[JsonValue, _only(None, ["text"])] = None
    """Null or ["text"]."""
    service_tier: Annotated[JsonValue, _only(None, "auto", "default")] = None
    """Null, "auto" or "default"."""
    store: No = None
    """Null or false."""
    audio: Absent = None
    """Null."""
    function_call: Absent = None
    """Null."""
    functions: Absent = None
    """Null."""
    moderation: Absent = None
    """Null."""
    prediction: Absent = None
    """Null."""
    prompt_cache_key: Absent = None
    """Null."""
    prompt_cache_options: Absent = None
    """Null."""
    prompt_cache_retention: Absent = None
    """Null."""
    reasoning_effort: Absent = None
    """Null."""
    verbosity: Absent = None
    """Null."""
    web_search_options: Absent = None
    """Null."""

    @model_validator(mode="after")
    def _chat_fits(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true only")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens are one thing, and differ")
        return self


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompt = (
    str
    | Annotated[list[str], Field(min_length=1)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
)


class CompletionRequest(Wanted):
    """POST /v1/completions."""

    prompt: Prompt
    """A text or its tokens, or several."""
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    """Longest answer."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    """The log-probability of each token, and of so many of the likeliest."""
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    """Null or `n`: all answers are returned."""
    echo: No = None
    """Null or false."""
    suffix: Annotated[JsonValue, _only(None, "")] = None
    """Null or empty."""

    @model_validator(mode="after")
    def _completion_fits(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise PydanticCustomError("unsupported_parameter", "best_of has no effect here; leave it out, or give n")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, each a text or its tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(part for part in self.prompt if isinstance(part, int))]
        return [part if isinstance(part, str) else _tokens(part) for part in self.prompt]


def _tokens(part: Any) -> tuple[int, ...]:
    return tuple(part)
