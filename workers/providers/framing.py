"""Server-sent events cut into frames, on bytes.

Lines end with `\\n`, `\\r\\n` or `\\r` and with nothing else: U+2028 and its kind, at which text
readers break lines, are part of the data. Source: https://html.spec.whatwg.org/#event-stream
"""

# No vendor's frame comes near; without a bound a server that ends no frame fills the memory.
MAX_FRAME_BYTES = 64 * 1024 * 1024


class FrameTooLong(ValueError):
    """A frame passed `MAX_FRAME_BYTES` without an end."""


class Framer:
    """Takes a stream's bytes as they come and gives back whole frames, line ends made `\\n`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, each without the blank line that ends it."""
        if self._after_cr or b"\r" in data:
            data = self._with_plain_ends(data)
        if self._parts:
            if b"\n" not in data:
                self._keep(data)
                return []
            data = b"".join([*self._parts, data])
            self._parts.clear()
            self._size = 0
        frames = data.split(b"\n\n")
        rest = frames.pop()
        if rest:
            self._keep(rest)
        return [frame for frame in frames if frame]

    def rest(self) -> bytes:
        """What came after the last whole frame."""
        return b"".join(self._parts)

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_FRAME_BYTES:
            raise FrameTooLong(f"a frame of more than {MAX_FRAME_BYTES} bytes")

    def _with_plain_ends(self, data: bytes) -> bytes:
        """A `\\r` that ends one read and the `\\n` that begins the next are one line end."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
