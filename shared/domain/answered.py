"""What a model said, read back from what its client was told, in whatever dialect that was."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shared.domain.inference import Dialect, Frame


class Finish(StrEnum):
    """How an answer ended. `UNKNOWN`: it is gone, or ended in a word that we do not know."""

    BY_ITSELF = "by_itself"
    CUT_OFF = "cut_off"
    FILTERED = "filtered"
    ERROR = "error"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


_ENDINGS: Mapping[str, Finish] = {
    **dict.fromkeys(("end_turn", "stop_sequence", "tool_use"), Finish.BY_ITSELF),
    **dict.fromkeys(("stop", "tool_calls", "function_call"), Finish.BY_ITSELF),
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded", "length"), Finish.CUT_OFF),
    **dict.fromkeys(("refusal", "content_filter"), Finish.FILTERED),
}


@dataclass(slots=True)
class ToolUse:
    """A call of a tool; `arguments` is the JSON text as it came, or its value if it was parsed."""

    name: str = ""
    arguments: Any = ""


@dataclass(slots=True)
class Answered:
    text: str = ""
    tools: list[ToolUse] = field(default_factory=list)
    finish: Finish = Finish.UNKNOWN


def from_body(dialect: Dialect, body: Mapping[str, Any]) -> Answered:
    """A whole answer in one body. Raises KeyError, TypeError and the like for a strange one."""
    if dialect is Dialect.ANTHROPIC:
        blocks = body["content"]
        return Answered(
            "".join(b["text"] for b in blocks if b["type"] == "text"),
            [ToolUse(b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"],
            _ending(body.get("stop_reason")),
        )
    if dialect is Dialect.NATIVE:
        return Answered(
            body["content"], _openai_tools(body["tool_calls"]), _ending(body["finish_reason"])
        )
    choice = body["choices"][0]
    message = choice["message"]
    return Answered(
        message.get("content") or "",
        _openai_tools(message.get("tool_calls") or ()),
        _ending(choice.get("finish_reason")),
    )


def from_frames(dialect: Dialect, frames: Iterable[Frame]) -> Answered:
    """The same from the frames of a stream; raises as `from_body` does."""
    if dialect is Dialect.NATIVE:
        whole = next(data for name, data in frames if name == "completed")
        return from_body(dialect, whole)
    reading = _Reading()
    add = reading.anthropic if dialect is Dialect.ANTHROPIC else reading.openai
    for _, data in frames:
        add(data)
    return reading.answered()


class _Reading:
    """A stream on its way to an answer; texts are joined once, at the end."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._tools: dict[int, tuple[str, list[str]]] = {}
        self._finish: str | None = None

    def answered(self) -> Answered:
        tools = [ToolUse(name, "".join(pieces)) for name, pieces in self._tools.values()]
        return Answered("".join(self._texts), tools, _ending(self._finish))

    def anthropic(self, data: Mapping[str, Any]) -> None:
        match data.get("type"):
            case "content_block_start":
                block = data["content_block"]
                if block["type"] == "tool_use":
                    self._tools[data["index"]] = (block["name"], [])
                elif block["type"] == "text":
                    self._texts.append(block.get("text") or "")
            case "content_block_delta":
                delta = data["delta"]
                if delta["type"] == "text_delta":
                    self._texts.append(delta["text"])
                elif delta["type"] == "input_json_delta" and data["index"] in self._tools:
                    self._tools[data["index"]][1].append(delta["partial_json"])
            case "message_delta":
                self._finish = data["delta"].get("stop_reason") or self._finish

    def openai(self, data: Mapping[str, Any]) -> None:
        for choice in data.get("choices") or ():
            delta = choice.get("delta") or {}
            self._texts.append(delta.get("content") or "")
            for part in delta.get("tool_calls") or ():
                function = part.get("function") or {}
                name, pieces = self._tools.get(part["index"], ("", []))
                self._tools[part["index"]] = (name or function.get("name") or "", pieces)
                pieces.append(function.get("arguments") or "")
            self._finish = choice.get("finish_reason") or self._finish


def _openai_tools(calls: Iterable[Mapping[str, Any]]) -> list[ToolUse]:
    functions = [call["function"] for call in calls if "function" in call]
    return [ToolUse(each["name"], each["arguments"]) for each in functions]


def _ending(reason: str | None) -> Finish:
    return _ENDINGS.get(reason or "", Finish.UNKNOWN)
