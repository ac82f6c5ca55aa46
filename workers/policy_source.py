"""Which version an operator means: a document, or the name of one that is known."""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from shared.domain.policy_file import PolicyError, parse_policy
from shared.domain.policy_version import PolicyVersion
from shared.policies import known_versions
from workers.commands.terminal import fail, stores


def read_file(path: Path) -> str:
    """The text of a file; one that cannot be read ends the command."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path} cannot be read: {error}")


async def wanted_version(source: str) -> PolicyVersion:
    async with stores() as opened, opened.db.everyone() as session:
        return await find_version(session, source)


async def find_version(session: AsyncSession, source: str) -> PolicyVersion:
    """As `choose_version`, of the versions that are known."""
    return choose_version(await known_versions(session), source)


def choose_version(known: Mapping[str, PolicyVersion], source: str) -> PolicyVersion:
    """The known version of that name, else what the file says; ends the command where neither is.

    A file whose version is known by other content is refused here already.
    """
    if source in known:
        return known[source]
    path = Path(source)
    if not path.is_file():
        fail(f"{source} is no file and no version; known are {', '.join(known)}.")
    try:
        found = parse_policy(read_file(path))
    except PolicyError as error:
        fail("\n".join(f"{path}: {problem}" for problem in error.problems))
    stored = known.get(found.version)
    if stored is not None and stored.hash != found.hash:
        fail(
            f"{path}: there is a version {found.version} with other content, and versions do not"
            " change: give this one another name."
        )
    return found
