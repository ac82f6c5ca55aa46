"""Notes byte for byte as C2SP has them, and nothing else taken for one."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.config import Settings
from shared.domain.checkpoint import (
    Checkpoint,
    NoteInvalid,
    VerifierKey,
    encode,
    entry,
    open_note,
    parse_verifier_key,
    read_note,
)
from shared.domain.merkle import EMPTY_ROOT
from shared.log_key import LogKey, check_signature, origin

# The example of Go's golang.org/x/mod/sumdb/note, whose form C2SP took over.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETERS_NOTE = """\
If you think cryptography is the answer to your problem,
then you don't know what your problem is.

\u2014 PeterNeumann \
x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
"""
KEY = LogKey("log.example/v1/audit", bytes(range(32)))
ROOT = bytes(range(32))
NOTE = KEY.sign(7, ROOT)


def test_the_verifier_key_of_the_reference_implementation() -> None:
    key = parse_verifier_key(PETER)
    assert str(key) == PETER
    told, _, signed = PETERS_NOTE.partition("\n\n")
    raw = read_signature(signed)
    assert raw[:4] == key.key_id
    assert check_signature(key.public, raw[4:], f"{told}\n".encode())


def read_signature(line: str) -> bytes:
    return base64.b64decode(line.strip().rpartition(" ")[2])


def test_a_note_is_three_lines_an_empty_one_and_the_signature() -> None:
    lines = NOTE.split("\n")
    assert lines[:4] == ["log.example/v1/audit", "7", encode(ROOT), ""]
    assert lines[4].startswith("\u2014 log.example/v1/audit ")
    assert lines[5:] == [""]
    assert open_note(NOTE, KEY.verifier, check_signature) == Checkpoint(
        "log.example/v1/audit", 7, ROOT
    )
    assert parse_verifier_key(str(KEY.verifier)) == KEY.verifier


def test_signatures_of_others_are_passed_over() -> None:
    witness = LogKey("witness.example/w", bytes(32)).sign(7, ROOT).split("\n")[4]
    both = f"{NOTE}{witness}\n"
    assert open_note(both, KEY.verifier, check_signature).size == 7
    assert read_note(both).size == 7


def signed(text: str, key: LogKey = KEY) -> str:
    """Whatever text, with a good signature."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    raw = key.verifier.key_id + private.sign(text.encode())
    return f"{text}\n\u2014 {key.verifier.name} {encode(raw)}\n"


def test_the_signature_helper_signs() -> None:
    assert signed(f"log.example/v1/audit\n7\n{encode(ROOT)}\n") == NOTE


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        NOTE[:-1],
        NOTE.replace("\n7\n", "\n8\n"),
        NOTE.replace("\n7\n", "\n07\n"),
        NOTE.replace("\u2014", "-"),
        NOTE.replace("log.example/v1/audit\n7", "log.example/other\n7"),
        NOTE + "x\n",
        NOTE.replace("\n", "\r\n"),
        LogKey("log.example/v1/audit", bytes(32)).sign(7, ROOT),
        signed(f"another.example/log\n7\n{encode(ROOT)}\n"),
        signed("log.example/v1/audit\n7\n"),
        signed(f"log.example/v1/audit\n07\n{encode(ROOT)}\n"),
        signed(f"log.example/v1/audit\n-7\n{encode(ROOT)}\n"),
        signed(f"log.example/v1/audit\n{2**63}\n{encode(ROOT)}\n"),
        signed(f"log.example/v1/audit\n7\n{encode(ROOT[:-1])}\n"),
        signed(f"log.example/v1/audit\n7\n{encode(ROOT).rstrip('=')}\n"),
        signed(f"log.example/v1/audit\n7\n\n{encode(ROOT)}\n"),
    ],
)
def test_what_is_not_a_checkpoint_of_the_log_is_refused(note: str) -> None:
    with pytest.raises(NoteInvalid):
        open_note(note, KEY.verifier, check_signature)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        PETER[:-1],
        PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("PeterNeumann", "Peter Neumann"),
        "name+00000000+" + encode(b"\x02" + bytes(32)),
    ],
)
def test_what_is_not_a_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(NoteInvalid):
        parse_verifier_key(text)


def test_the_entry_of_an_event_is_four_lines() -> None:
    assert entry("a-b", 3, "ff") == b"ainfera audit event v1\na-b\n3\nff\n"


def test_the_origin_is_the_address_without_its_scheme() -> None:
    for address, named in (
        ("https://api.example.com/", "api.example.com"),
        ("http://[::1]:80/a b+c", "[::1]:80/a%20b%2Bc"),
    ):
        assert origin(Settings(public_base_url=address)) == f"{named}/v1/audit"


def test_the_empty_tree_has_a_root() -> None:
    assert KEY.sign(0, EMPTY_ROOT).split("\n")[2] == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    assert VerifierKey("a", bytes(32)).key_id != VerifierKey("b", bytes(32)).key_id
