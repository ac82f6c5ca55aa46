"""Logs: one JSON object a line, scrubbed, with the trace and the inference it belongs to.

`configure_logging` is the first thing a process does, so that nothing logs around it: the
lines of uvicorn, arq and SQLAlchemy, warnings and uncaught exceptions come out the same way.
Modules log events by name: `log.info("router_alias_hit", extra={"legacy": …})`.
"""

import logging
import sys
import threading
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

import orjson

from shared.scrub import scrub, scrub_text

_trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
_inference_id: ContextVar[str | None] = ContextVar("inference_id", default=None)

_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    "color_message",  # uvicorn repeats its message for terminals
}
# these bring handlers of their own, or say at INFO what we say ourselves
_ADOPTED = ("uvicorn", "uvicorn.error", "uvicorn.access", "arq", "sqlalchemy", "alembic")
_QUIET = ("httpx", "httpcore", "alembic.runtime.plugins")


def bind_trace(trace_id: str | None) -> None:
    """Name the trace that every later line of this task belongs to."""
    _trace_id.set(trace_id or None)


def current_trace() -> str:
    """The trace that this task belongs to, 32 hex digits; empty outside of one."""
    return _trace_id.get() or ""


def bind_inference(inference_id: str | None) -> None:
    """Name the inference that every later line of this task belongs to."""
    _inference_id.set(inference_id or None)


def configure_logging(process: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Make ours the only handler of this process; `process` names it in every line."""
    handler = JsonHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    for name in _ADOPTED:
        adopted = logging.getLogger(name)
        adopted.handlers.clear()
        adopted.propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class JsonHandler(logging.StreamHandler[TextIO]):
    """Writes lines; one that cannot be written is counted by a line that repeats none of it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        lost = {"level": "error", "event": "log_line_lost", "logger": record.name}
        self.stream.write(orjson.dumps(lost).decode() + self.terminator)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: when, how bad, who, what, where it belongs, then the rest."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": _message(record),
        }
        if trace_id := _trace_id.get():
            line["trace_id"] = trace_id
        if inference_id := _inference_id.get():
            line["inference_id"] = inference_id
        extra = {k: v for k, v in vars(record).items() if k not in _RECORD_FIELDS}
        line.update(scrub(extra))
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _error(record.exc_info[1])
        if record.stack_info:
            line["stack"] = scrub_text(record.stack_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _message(record: logging.LogRecord) -> str:
    """The event; arguments are scrubbed as structures first, then the finished text by shape."""
    if not record.args:
        return scrub_text(str(record.msg))
    if isinstance(record.args, dict):
        return scrub_text(str(record.msg) % scrub(record.args))
    return scrub_text(str(record.msg) % tuple(_argument(arg) for arg in record.args))


def _argument(argument: object) -> object:
    """Structures are scrubbed by key; the rest keeps its type, for `%d` and `%r`."""
    return scrub(argument) if isinstance(argument, dict | list | tuple | set) else argument


def _error(error: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "traceback": scrub_text(text)}


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        logging.getLogger("uncaught").critical("uncaught", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
