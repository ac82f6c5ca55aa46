"""The rules of the house, read from the code itself: who imports whom, how big, how pure."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from shared.config import PROVIDER_SETTINGS, Settings

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ingress", "workers", "shared", "migrations")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
DOMAIN = [path for path in SOURCES if path.is_relative_to(ROOT / "shared/domain")]

LONGEST_FILE, LONGEST_FUNCTION = 400, 70
# one file on purpose: clients take it away, and it must need nothing else
LONGER = {"shared/receipt_verifier.py": 800}

# what a room may import of our own; a command starts everything, so it stands apart
MAY_IMPORT = {
    "ingress": {"ingress", "shared"},
    "workers": {"workers", "shared"},
    "shared": {"shared"},
    "migrations": {"migrations", "shared"},
}
COMMANDS = {"workers/cli.py": {"migrations"}, "workers/development.py": {"migrations"}}

PURE_PACKAGES = {"pydantic", "shared"}
# of the standard library, what reads a clock, rolls dice, or touches the world
IMPURE_MODULES = frozenset(
    """
    asyncio concurrent contextvars ctypes fcntl getpass glob http io locale logging
    multiprocessing os pathlib platform queue random sched secrets select selectors shutil signal
    socket sqlite3 ssl subprocess sys tempfile threading time urllib uuid zoneinfo
    """.split()  # noqa: SIM905 - a list of words reads as one
)
PURE_FROM = {"urllib": {"urllib.parse"}, "uuid": {"uuid"}}
IMPURE_CALLS = {
    *("open", "print", "input", "breakpoint", "exec", "eval"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today"),
    *("uuid.uuid1", "uuid.uuid4", "uuid1", "uuid4"),
}
VENDOR_SDKS = {
    *("anthropic", "openai", "google", "mistralai", "cohere", "litellm", "langchain"),
    *("ainfera", "stripe", "cdp", "coinbase", "x402", "xendit", "eth_account", "web3"),
}
TEST_ONLY = {"pytest", "hypothesis", "fakeredis", "tests"}
UNSAFE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
VAGUE_NAMES = {
    *("utils", "util", "common", "helpers", "helper", "misc", "lib", "base", "core", "tools"),
    *("manager", "managers", "service", "services", "repository", "repositories"),
}
# Where anything may go wrong and the process must go on: each of these reports it.
PROCESS_EDGES = {
    "workers/fleet.py": 1,  # one job's failure is not the worker's
    "workers/inference.py": 1,  # a bug while a provider is asked is settled like any fault
    "ingress/middleware.py": 1,  # a bug in a call is a 500 in its client's dialect
    "ingress/operations.py": 1,  # whatever a dependency's failure is, we are not ready
}

# Where the ingress, or what it shares with the workers, sees the rows of all tenants. Everywhere
# else it acts for one of them, and the database holds it to that.
FOR_EVERYONE = {
    "ingress/agents.py signup",  # makes a tenant; the grant comes from an account of the system
    "ingress/annex_iv.py _trail",  # as `read_proof`
    "ingress/audit.py public_audit",  # public
    "ingress/audit.py read_checkpoint",  # public: the log is over all chains
    "ingress/audit.py read_consistency",  # public
    "ingress/audit.py read_log_key",  # public
    "ingress/audit.py read_proof",  # hashes of the log, for an event that is the caller's
    "ingress/audit.py read",  # public: the pages of one chain that is verified
    "ingress/audit.py verify_audit",  # public
    "ingress/auth.py _load",  # a key says whose it is
    "ingress/cards.py _public_key",  # cards are verified by anybody
    "ingress/dead_letters.py discard_letter",  # operators
    "ingress/dead_letters.py list_letters",  # operators
    "ingress/dead_letters.py replay_letter",  # operators
    "ingress/dead_letters.py show_letter",  # operators
    "ingress/deps.py everyone",  # the one door of the ingress
    "ingress/discovery.py jwks",  # public keys
    "ingress/keeping.py _known",  # one query for the calls of many tenants, each with its own
    "ingress/killswitches.py closing_statement",  # operators
    "ingress/killswitches.py list_engagements",  # operators
    "ingress/killswitches.py list_thresholds",  # operators
    "ingress/operations.py _note_act",  # operators
    "ingress/quotes.py signed_decision",  # the one key that signs for all
    "ingress/routing_policy.py set_preference",  # operators
    "ingress/reads.py read_decision",  # as `read_proof`; the outcome was found as the caller
    "ingress/last_use.py flush",  # one statement for the keys of many tenants
    "ingress/measures.py _ask_postgres",  # operators
    "shared/closing_statement.py _page",  # operators
    "ingress/wallets.py topup",  # money comes from an account of the system
    "shared/catalog.py open_catalog",  # models belong to nobody
    "shared/quotes.py forget_quotes",  # workers
    "shared/kept.py states",  # one query for the calls of many tenants, each with its own
    "shared/kept.py take",  # workers
    "shared/latencies.py read",  # models belong to nobody
    "shared/learning.py refresh",  # estimates belong to nobody
    "shared/killswitch.py _read",  # switches are looked up for all
    "shared/policy_book.py read",  # versions and gates belong to nobody
}
SEES_EVERYONE = {"everyone", "run", "connect_raw", "bury", "enlarge_hold"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Full names of the modules that are imported, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", node.lineno


def top(module: str) -> str:
    return module.partition(".")[0]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30
    assert len(DOMAIN) > 8
    assert {top(relative(path).replace("/", ".")) for path in SOURCES} == set(ROOMS)


def test_rooms_import_only_what_they_may() -> None:
    wrong = []
    for path in SOURCES:
        name = relative(path)
        allowed = MAY_IMPORT[name.partition("/")[0]] | COMMANDS.get(name, set())
        for module, line in imports(parsed(path)):
            if top(module) in ROOMS and top(module) not in allowed:
                wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_the_domain_is_pure() -> None:
    wrong = []
    for path in DOMAIN:
        tree = parsed(path)
        for module, line in imports(tree):
            package = top(module)
            ours = package == "shared" and not module.startswith("shared.domain")
            foreign = package not in PURE_PACKAGES | sys.stdlib_module_names
            impure = package in IMPURE_MODULES and module not in PURE_FROM.get(package, ())
            if ours or foreign or impure:
                wrong.append(f"{relative(path)}:{line} imports {module}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and dotted(node.func) in IMPURE_CALLS:
                wrong.append(f"{relative(path)}:{node.lineno} calls {dotted(node.func)}")
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global):
                wrong.append(f"{relative(path)}:{node.lineno} waits, or writes a global")
    assert wrong == []


def test_no_vendor_sdk_test_tool_or_pickle_in_production_code() -> None:
    banned = VENDOR_SDKS | TEST_ONLY | UNSAFE
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for path in SOURCES
        for module, line in imports(parsed(path))
        if top(module) in banned
    ]
    assert wrong == []


@pytest.mark.parametrize("process", ["ingress.app", "workers.settings", "workers.cli"])
def test_no_process_loads_a_vendor_sdk(process: str) -> None:
    """Not through somebody else's import either: what is loaded is asked of the interpreter."""
    program = f"import sys, {process}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & (VENDOR_SDKS | TEST_ONLY) - {"google"} == set()


def test_files_and_functions_are_small() -> None:
    wrong = []
    for path in SOURCES:
        lines = path.read_text().count("\n")
        if lines > LONGER.get(relative(path), LONGEST_FILE):
            wrong.append(f"{relative(path)} has {lines} lines")
    for path in SOURCES + TESTS:
        for function in functions(parsed(path)):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > LONGEST_FUNCTION:
                wrong.append(f"{relative(path)}:{function.lineno} {function.name}: {length} lines")
    assert wrong == []


def test_modules_are_named_after_what_they_are() -> None:
    assert [relative(p) for p in SOURCES + TESTS if p.stem in VAGUE_NAMES] == []


def test_imports_stand_at_the_top() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES + TESTS
        for function in functions(parsed(path))
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert wrong == []


def test_nothing_writes_a_global() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES + TESTS
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Global)
    ]
    assert wrong == []


def test_valkey_is_opened_in_one_place() -> None:
    """Elsewhere an address of Sentinels would not be understood, nor a lost machine noticed."""
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        if path.name != "valkey.py"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and dotted(node.func) in ("Redis.from_url", "Redis")
    ]
    assert wrong == []


def looks_at_everyone(node: ast.AST) -> bool:
    """A call of `everyone`, or of a method of a `Database` that is not bound to a tenant."""
    if not isinstance(node, ast.Call):
        return False
    owner, _, name = dotted(node.func).rpartition(".")
    if name == "everyone":
        return True
    return name in SEES_EVERYONE and owner.rpartition(".")[2] in ("db", "_db", "database")


def test_all_tenants_rows_are_seen_in_named_places_only() -> None:
    found = {
        f"{relative(path)} {function.name}"
        for path in SOURCES
        if path.parts[len(ROOT.parts)] in ("ingress", "shared") and path != ROOT / "shared/db.py"
        for function in functions(parsed(path))
        for node in ast.walk(function)
        if looks_at_everyone(node)
    }
    assert found == FOR_EVERYONE


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("everyone(deps.db)", True),
        ("self._db.everyone()", True),
        ("deps.db.run(query)", True),
        ("session(deps.db, caller.tenant)", False),
        ("db.run_for(tenant, query)", False),
        ("asyncio.run(main())", False),
    ],
)
def test_the_rule_about_tenants_tells_them_apart(source: str, seen: bool) -> None:
    assert any(looks_at_everyone(node) for node in ast.walk(ast.parse(source))) is seen


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """`except:`, `except Exception` and `except BaseException`, unless it raises again."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds)
    last = handler.body[-1]
    return broad and not (isinstance(last, ast.Raise) and last.exc is None)


def suppresses_everything(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and dotted(node.func).endswith("suppress")):
        return False
    return any(dotted(argument) in ("Exception", "BaseException") for argument in node.args)


def test_everything_is_caught_only_at_process_edges() -> None:
    found: dict[str, int] = {}
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            caught = isinstance(node, ast.ExceptHandler) and catches_everything(node)
            if caught or suppresses_everything(node):
                found[relative(path)] = found.get(relative(path), 0) + 1
    assert found == PROCESS_EDGES


def comments(path: Path) -> Iterator[tuple[str, int]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def test_nothing_is_left_for_later() -> None:
    markers = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")
    wrong = [
        f"{relative(path)}:{line}"
        for path in SOURCES + TESTS
        for comment, line in comments(path)
        if any(marker in comment for marker in markers)
    ]
    wrong += [
        f"{relative(path)}:{node.lineno} raises NotImplementedError"
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Raise) and node.exc and "NotImplementedError" in ast.dump(node.exc)
    ]
    assert wrong == []


def test_public_things_say_what_they_are() -> None:
    """Modules, and public functions and classes of more than a few lines, have a docstring.

    A `main` does what its module says.
    """
    wrong = []
    for path in SOURCES:
        tree = parsed(path)
        if tree.body and not ast.get_docstring(tree):
            wrong.append(f"{relative(path)} has no docstring")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            long = (node.end_lineno or 0) - node.lineno >= 25
            public = not node.name.startswith("_") and node.name != "main"
            if long and public and not ast.get_docstring(node):
                wrong.append(f"{relative(path)}:{node.lineno} {node.name} has no docstring")
    assert wrong == []


def test_money_is_never_a_float() -> None:
    """No `float(…)` in the rules that price, hold and settle."""
    money = {"pricing.py", "ledger.py", "settle.py", "audit.py"}
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        if path.name in money
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and dotted(node.func) == "float"
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("try: pass\nexcept Exception: pass", True),
        ("try: pass\nexcept: pass", True),
        ("try: pass\nexcept (ValueError, Exception) as e: print(e)", True),
        ("try: pass\nexcept BaseException:\n    undo()\n    raise", False),
        ("try: pass\nexcept ValueError: pass", False),
    ],
)
def test_the_rule_about_catching_tells_them_apart(source: str, caught: bool) -> None:
    handler = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ExceptHandler))
    assert catches_everything(handler) is caught


def test_the_readme_names_every_setting() -> None:
    readme = (ROOT / "README.md").read_text()
    names = {str(field.validation_alias) for field in Settings.model_fields.values()}
    names |= {name for row in PROVIDER_SETTINGS.values() for name in row[:2]}
    assert {name for name in names if f"`{name}`" not in readme} == set()
