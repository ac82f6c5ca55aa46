"""The verifier as a client has it: its one file, in an interpreter that knows nothing else."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.receipts.cases import JWKS, Json, written

VERIFIER = Path(__file__).resolve().parents[2] / "shared/receipt_verifier.py"


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def told(self) -> list[Json]:
        """What `--json` says of each receipt."""
        return [json.loads(line) for line in self.out.splitlines()]


def run_alone(folder: Path, text: str, *options: str, jwks: Any = JWKS) -> Answer:
    """Isolated (-I) and without site packages (-S): of this project nothing can be imported."""
    program, receipts, keys = (
        folder / name for name in ("verifier.py", "receipts.jsonl", "jwks.json")
    )
    program.write_bytes(VERIFIER.read_bytes())
    receipts.write_bytes(text.encode("utf-8", "surrogateescape"))
    keys.write_text(json.dumps(jwks))
    given = ["--jwks", str(keys)] if jwks is not None else []
    command = [sys.executable, "-I", "-S", str(program), str(receipts), *given, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    return Answer(done.returncode, done.stdout, done.stderr)


def verify_alone(folder: Path, made: list[Json], *options: str, jwks: Any = JWKS) -> Answer:
    return run_alone(folder, written(made), *options, jwks=jwks)
