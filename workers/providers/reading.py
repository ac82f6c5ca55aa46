"""Reading a provider's frames: as canonical events, or forwarded as they are.

Both readings hold `Started` back until the first word, so that a fault before it leaves the
client untold and another model can be asked. Both end with one `Completed` or `Failed`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shared.domain.billing import at_least_written
from shared.domain.dialects import ProviderWire
from shared.domain.inference import (
    DONE_FRAME,
    Completed,
    Failed,
    Failure,
    Forwarded,
    Started,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from shared.stream import decode_frames
from workers.providers.faults import provider_error

log = logging.getLogger(__name__)

FRAME_END = b"\n\n"


@dataclass(frozen=True, slots=True)
class Forms:
    """How the frames of a wire can be told apart without parsing them, and after it.

    `is_plain`: the frame holds the model's words or nothing, for certain. `is_word`: it is
    plain and the model has begun to speak. `size`: characters in a plain frame that the model
    wrote, at most. `begins_tail`, `is_last` are of a parsed frame: the finish reason has come
    with it, nothing comes after it. `is_usage`: it holds the usage and nothing else.
    """

    is_plain: Callable[[bytes], bool]
    is_word: Callable[[bytes], bool]
    size: Callable[[bytes], int]
    begins_tail: Callable[[Mapping[str, Any]], bool]
    is_last: Callable[[Mapping[str, Any]], bool]
    is_usage: Callable[[Mapping[str, Any]], bool]
    closing_frame: bytes = b""


class Reading(ABC):
    """What both readings share: the held `Started`, the count of characters, the end."""

    def __init__(self, wire: ProviderWire, provider: str, ignored: tuple[str, ...]) -> None:
        self._wire = wire
        self._state = wire.ParseState()
        self._provider = provider
        self._ignored = ignored
        self._started: Started | None = None
        self._written = 0
        self.speaking = False
        self.over = False
        self.complete = False

    @abstractmethod
    def take(self, frames: Iterable[bytes]) -> Iterable[StreamEvent]:
        """The events of the whole frames that one read gave."""

    def close(self, rest: bytes = b"") -> Iterator[StreamEvent]:
        """The provider closed the stream: the end, if all that matters had come.

        `rest` is a frame without the blank line that ends one. Some servers leave it out at
        the very end; where the connection broke within a frame, it makes no sense and is dropped.
        """
        if rest and is_whole(rest):
            yield from self.take([rest])
        if not self.over:
            yield from self._closed()

    def _closed(self) -> Iterator[StreamEvent]:
        for event in self._wire.end_of_stream(self._state):
            yield from self._last(event)

    def broke(self, failure: Failure) -> Iterator[StreamEvent]:
        """The connection broke; what the provider had counted by then is known at most."""
        yield from self._last(Failed(failure, self._counted()))

    def _told(self, frame: bytes) -> Iterator[tuple[Mapping[str, Any], list[StreamEvent]]]:
        """The frame's object and its events; nothing for a comment, `Failed` for nonsense."""
        try:
            for name, data in decode_frames(frame):
                if not isinstance(data, dict):
                    raise TypeError("a frame without an object")
                yield data, self._wire.parse_event(name, data, self._state)
        except (ValueError, TypeError) as error:
            log.warning(
                "provider_malformed",
                extra={"provider": self._provider, "error": type(error).__name__},
            )
            message = f"{self._provider} sent a malformed stream."
            yield {}, [Failed(provider_error(self._provider, message), self._counted())]

    def _last(self, event: StreamEvent) -> Iterator[StreamEvent]:
        self.over = True
        if isinstance(event, Failed):
            usage = self._at_least_written(event.usage) if self.speaking else None
            yield Failed(_named(event.failure, self._provider), usage)
            return
        self.complete = True
        yield from self._begin()
        yield event

    def _begin(self) -> Iterator[StreamEvent]:
        """`Started`, once, with the first word or with an end that had none."""
        if not self.speaking:
            self.speaking = True
            yield replace(self._started or Started(""), ignored=self._ignored)

    def _counted(self) -> Usage | None:
        return self._started.usage if self._started is not None else None

    def _at_least_written(self, usage: Usage | None) -> Usage | None:
        """Usage of an answer that broke: the output is what was written by our own count."""
        if usage is None or not usage.total_input:
            return None
        return at_least_written(usage, self._written)


class Translating(Reading):
    """Each frame parsed once, into canonical events; the text of one read travels together."""

    def take(self, frames: Iterable[bytes]) -> Iterator[StreamEvent]:
        texts: list[str] = []
        for event in self._events(frames):
            if isinstance(event, TextDelta):
                texts.append(event.text)
                continue
            if texts:
                yield from self._word(TextDelta("".join(texts)))
                texts.clear()
            if isinstance(event, Started):
                self._started = event
            elif isinstance(event, Completed | Failed):
                yield from self._last(event)
                return
            else:
                yield from self._word(event)
        if texts:
            yield from self._word(TextDelta("".join(texts)))

    def _events(self, frames: Iterable[bytes]) -> Iterator[StreamEvent]:
        for frame in frames:
            for _, events in self._told(frame):
                yield from events

    def _word(self, event: StreamEvent) -> Iterator[StreamEvent]:
        self._written += written_in(event)
        yield from self._begin()
        yield event


class Forwarding(Reading):
    """Frames as they are, all those of one read together; the last ones are held back."""

    def __init__(
        self,
        wire: ProviderWire,
        provider: str,
        ignored: tuple[str, ...],
        forms: Forms,
        include_usage: bool,
    ) -> None:
        super().__init__(wire, provider, ignored)
        self._forms = forms
        self._include_usage = include_usage
        self._out: list[bytes] = []
        self._size = 0
        self._heard = False
        self._tail: list[bytes] | None = None
        self._completed: Completed | None = None

    def take(self, frames: Iterable[bytes]) -> list[StreamEvent]:
        is_plain, is_word, size = self._forms.is_plain, self._forms.is_word, self._forms.size
        out, ending = self._out, None
        forwardable = self._tail is None and self._started is not None
        for frame in frames:
            if forwardable and is_plain(frame):
                out.append(frame)
                self._size += size(frame)
                self._heard = self._heard or is_word(frame)
                continue
            ending = self._meaning(frame)
            if ending is not None:
                break
            forwardable = self._tail is None and self._started is not None
        events: list[StreamEvent] = []
        if self._heard and out and (self.speaking or not isinstance(ending, Failed)):
            self._flush(events)
        if ending is not None:
            events.extend(self._last(ending))
        return events

    def _closed(self) -> Iterator[StreamEvent]:
        if self._completed is None:
            yield from super()._closed()
        else:
            yield from self._last(self._completed)

    def broke(self, failure: Failure) -> Iterator[StreamEvent]:
        """A break after the finish reason and the usage is none: nothing of worth was lost."""
        if self._completed is not None:
            yield from self._last(self._completed)
            return
        yield from super().broke(failure)

    def _meaning(self, frame: bytes) -> StreamEvent | None:
        """Take in a frame that is not plain; the last event if it brings the end."""
        is_last = False
        for data, events in self._told(frame):
            for event in events:
                match event:
                    case Started():
                        self._started = event
                    case Completed():
                        self._completed = event
                    case Failed():
                        return event
                    case _:
                        self._heard = True
                        self._size += written_in(event)
            self._place(frame, data)
            is_last = self._forms.is_last(data)
        return self._completed if is_last else None

    def _place(self, frame: bytes, data: Mapping[str, Any]) -> None:
        """Where a parsed frame goes: on with the others, to the tail, or nowhere."""
        if self._forms.is_usage(data) and not self._include_usage:
            return
        if self._tail is None and self._forms.begins_tail(data):
            self._tail = []
        (self._out if self._tail is None else self._tail).append(frame)

    def _flush(self, events: list[StreamEvent]) -> None:
        """What is to be forwarded, as one event."""
        if not self.speaking:
            events.extend(self._begin())
        self._out.append(b"")
        joined = FRAME_END.join(self._out)
        self._written += self._size
        events.append(Forwarded(joined, self._size))
        self._out.clear()
        self._size = 0

    def _last(self, event: StreamEvent) -> Iterator[StreamEvent]:
        if isinstance(event, Completed):
            frames = [*self._out, *(self._tail or ())]
            closing = self._forms.closing_frame
            if closing and (not frames or frames[-1] != closing):
                frames.append(closing)
            event = replace(event, tail=FRAME_END.join(frames) + FRAME_END)
        yield from super()._last(event)


def is_whole(frame: bytes) -> bool:
    """Whether the frame's data is all there."""
    try:
        return any(True for _ in decode_frames(frame))
    except ValueError:
        return False


def written_in(event: StreamEvent) -> int:
    match event:
        case TextDelta(text=text) | ThinkingDelta(text=text):
            return len(text)
        case ToolCallDelta(arguments=arguments):
            return len(arguments)
    return 0


def is_done(data: Mapping[str, Any]) -> bool:
    return data == DONE_FRAME[1]


def _named(failure: Failure, provider: str) -> Failure:
    """The failure with what every one of a provider's has in its detail."""
    known = provider_error(provider, "").detail
    return replace(failure, detail={**known, **failure.detail})
