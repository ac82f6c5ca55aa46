"""Checkpoints of the audit log: what is signed, in which words, and under which key.

The form is C2SP's: a checkpoint (https://c2sp.org/tlog-checkpoint) is the text of a signed note
(https://c2sp.org/signed-note), here of three lines and no extension lines:

    <origin>
    <tree size in decimal>
    <root hash in base64>

    — <key name> <base64 of key id and signature>

The key's name is the origin. Its id is `SHA-256(name || 0x0A || 0x01 || public key)[:4]`, where
0x01 says Ed25519 (RFC 8032). The verifier key, by which others know it, is
`<name>+<key id in hex>+<base64 of 0x01 and the public key>`, as in Go's `x/mod/sumdb/note`.

The log's leaves are the events of all agents' chains: `entry` says which bytes stand for one.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from shared.domain.merkle import HASH_BYTES

ED25519 = b"\x01"
KEY_BYTES, SIGNATURE_BYTES, KEY_ID_BYTES = 32, 64, 4
LONGEST_NOTE = 64 * 1024
MOST_SIZE = 2**63 - 1

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_DASH = "\u2014 "
_ENTRY = "ainfera audit event v1\n"

# (public key, signature, message) -> whether the signature is the key's
CheckSignature = Callable[[bytes, bytes, bytes], bool]


class NoteInvalid(ValueError):
    """Not a checkpoint, or not one of this log; the message says why."""


def entry(agent_id: str, seq: int, event_hash: str) -> bytes:
    """The bytes of a leaf: a heading, the agent's id, the event's number and its hash, a line each.

    The hash covers the event's payload and, through the hash before it, the whole chain up to it.
    """
    return f"{_ENTRY}{agent_id}\n{seq}\n{event_hash}\n".encode()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of the log's tree: `root` is the hash over its first `size` leaves."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed; ends with a newline."""
        return f"{self.origin}\n{self.size}\n{encode(self.root)}\n"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public half of the key that a log signs with."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        told = self.name.encode() + b"\n" + ED25519 + self.public
        return hashlib.sha256(told).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{encode(ED25519 + self.public)}"


def encode(raw: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(raw).decode("ascii")


def decode(text: str) -> bytes:
    """Raises `NoteInvalid` for what `encode` would not have written."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteInvalid("not base64") from None
    if encode(raw) != text:
        raise NoteInvalid("not base64 in its one form")
    return raw


def is_key_name(name: str) -> bool:
    """Neither empty, nor with spaces, control characters or a plus."""
    return bool(name) and not any(c.isspace() or c == "+" or ord(c) < 0x20 for c in name)


def parse_verifier_key(text: str) -> VerifierKey:
    """The key that `str(key)` wrote. Raises `NoteInvalid`."""
    name, _, rest = text.strip().partition("+")
    key_id, _, material = rest.partition("+")
    raw = decode(material)
    if not is_key_name(name) or len(raw) != 1 + KEY_BYTES or raw[:1] != ED25519:
        raise NoteInvalid("not a verifier key of an Ed25519 key")
    key = VerifierKey(name, raw[1:])
    if key.key_id.hex() != key_id:
        raise NoteInvalid("the verifier key's id is not that of its key")
    return key


def note(checkpoint: Checkpoint, key: VerifierKey, signature: bytes) -> str:
    """The signed note, given the signature over `checkpoint.text()`."""
    signed = encode(key.key_id + signature)
    return f"{checkpoint.text()}\n{_DASH}{key.name} {signed}\n"


def read_note(text: str) -> Checkpoint:
    """What a note says, whoever signed it. Raises `NoteInvalid`."""
    return _read_text(_split_note(text)[0])


def open_note(text: str, key: VerifierKey, check: CheckSignature) -> Checkpoint:
    """What a note says, once it is known that the key signed it and that it is of its log.

    Signatures by other keys (witnesses) are passed over. Raises `NoteInvalid`.
    """
    told, signatures = _split_note(text)
    mine = [raw for name, raw in signatures if name == key.name and raw[:4] == key.key_id]
    if not mine:
        raise NoteInvalid("not signed by the log's key")
    for raw in mine:
        signature = raw[KEY_ID_BYTES:]
        if len(signature) != SIGNATURE_BYTES or not check(key.public, signature, told.encode()):
            raise NoteInvalid("the signature is not that of the log's key")
    checkpoint = _read_text(told)
    if checkpoint.origin != key.name:
        raise NoteInvalid(f"the checkpoint is of another log, {checkpoint.origin}")
    return checkpoint


def _split_note(text: str) -> tuple[str, list[tuple[str, bytes]]]:
    if len(text) > LONGEST_NOTE or any(ord(c) < 0x20 and c != "\n" for c in text):
        raise NoteInvalid("not a note")
    told, empty, signed = text.rpartition("\n\n")
    if not empty or not signed.endswith("\n"):
        raise NoteInvalid("not a signed note")
    return told + "\n", [_signature(line) for line in signed[:-1].split("\n")]


def _signature(line: str) -> tuple[str, bytes]:
    name, _, signed = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not is_key_name(name):
        raise NoteInvalid("not a signature line")
    raw = decode(signed)
    if len(raw) <= KEY_ID_BYTES:
        raise NoteInvalid("a signature without a signature")
    return name, raw


def _read_text(told: str) -> Checkpoint:
    lines = told[:-1].split("\n")
    if len(lines) < 3 or not all(lines):
        raise NoteInvalid("a checkpoint has an origin, a size and a root hash")
    origin, size, root = lines[0], lines[1], decode(lines[2])
    if not _SIZE.fullmatch(size) or int(size) > MOST_SIZE or len(root) != HASH_BYTES:
        raise NoteInvalid("the size or the root hash of the checkpoint is none")
    return Checkpoint(origin, int(size), root)
