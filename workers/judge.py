"""The process that reads answers: `python -m workers.judge`, a child of the books worker.

Answers are written by strangers. Reading one may take for ever, take all memory, or end the
interpreter; here it ends nothing but this process, which the books worker starts again. It has
neither stores nor settings, prints nothing, and ends with its parent.

A question is a line about it (`Question`), then that many bytes of the answer; the reply is a line.
"""

import os
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

import orjson

from shared.domain.answered import Answered, Finish, from_body, from_frames
from shared.domain.inference import Dialect
from shared.domain.reward import NOTHING_ASKED, Asked, Signals, judge, read_json
from shared.stream import decode_frames

MEMORY_BYTES = 1024 * 1024 * 1024
LONGEST_S = 10
# What an answer of another shape than its dialect's looks like from here.
STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration)


def read_answer(dialect: Dialect, told: bytes) -> Answered:
    """An answer from the records' bytes: one body, or the frames of a stream."""
    if told.lstrip()[:1] == b"{":
        return from_body(dialect, read_json(told.decode()))
    return from_frames(dialect, decode_frames(told))


def look_at(question: Mapping[str, Any], told: bytes) -> Signals:
    """The signals of one answer, whatever it is."""
    asked = question["asked"]
    try:
        wanted = NOTHING_ASKED if asked is None else Asked.from_json(read_json(asked))
        return judge(read_answer(Dialect(question["dialect"]), told), wanted)
    except (RecursionError, MemoryError):
        return Signals(Finish.UNKNOWN, note="too_hard")
    except STRANGE:
        return Signals(Finish.UNKNOWN, note="unreadable")


def pack_signals(signals: Signals) -> bytes:
    return orjson.dumps(
        {
            "finish": signals.finish,
            "code": signals.code,
            "json": signals.json,
            "tools": signals.tools,
            "note": signals.note,
        }
    )


def serve(questions: BinaryIO, replies: BinaryIO) -> None:
    """Answer questions until there are no more: the parent has gone."""
    while line := questions.readline():
        question = orjson.loads(line)
        # also where the parent, which would have ended this, has gone meanwhile
        seconds = int(time.process_time()) + LONGEST_S
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        told = questions.read(question["size"])
        replies.write(pack_signals(look_at(question, told)) + b"\n")
        replies.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold what was read
    os.nice(10)
    # a warning about a piece of code quotes it
    warnings.simplefilter("ignore")
    serve(sys.stdin.buffer, sys.stdout.buffer)
