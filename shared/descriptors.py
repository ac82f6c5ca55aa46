"""How many connections this process may hold open: as many as the system lets it ask for."""

import resource


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns what holds now.

    A stream holds a descriptor in the ingress and one in its worker, and container engines start
    processes with a soft limit of 1,024, for programs that cannot cope with more. We can.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS says "unlimited" and means less
        return soft
    return hard
