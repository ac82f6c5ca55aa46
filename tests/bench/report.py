"""The measurements as one aligned table."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.bench.scenarios import Sample, Scenario

Results = Mapping[str, Mapping[str, Sample]]  # scenario key -> target's name -> sample
Memory = Mapping[str, Mapping[str, float]]  # "before" or "after" -> process -> MB

_ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what, one cell per target, and what was promised."""

    title: str
    cells: Mapping[str, str]
    promised: str = ""


Cell = Callable[[Sample], str]


def _quantile(which: str, name: str) -> Cell:
    def cell(sample: Sample) -> str:
        values = sample.measured.first_ms if which == "first" else sample.measured.total_ms
        return f"{values[name]:.2f}" if name in values else _ABSENT

    return cell


def _added(which: str, name: str, direct: Sample | None) -> Cell:
    def cell(sample: Sample) -> str:
        if direct is None or sample is direct:
            return _ABSENT
        values, base = (
            (s.measured.first_ms if which == "first" else s.measured.total_ms)
            for s in (sample, direct)
        )
        return f"{values[name] - base[name]:.2f}" if name in values and name in base else _ABSENT

    return cell


def _rate(sample: Sample) -> str:
    return f"{sample.per_second:,.0f}"


def _held(sample: Sample) -> str:
    answered = sample.measured.in_time / sample.measured.window_s
    return f"{answered:,.0f}" if sample.held else f"{answered:,.0f} (not held)"


def _cpu(sample: Sample) -> str:
    return f"{sample.cpu_ms_in_all:.2f}" if sample.cpu_ms else _ABSENT


def _cpu_of(process: str) -> Cell:
    def cell(sample: Sample) -> str:
        return f"{sample.cpu_ms[process]:.2f}" if process in sample.cpu_ms else _ABSENT

    return cell


def _lines_of(key: str, direct: Sample | None) -> list[tuple[str, Cell, str]]:
    p50, p99 = _quantile("total", "p50"), _quantile("total", "p99")
    first, added_first = _quantile("first", "p50"), _added("first", "p50", direct)
    added50, added99 = _added("total", "p50", direct), _added("total", "p99", direct)
    match key:
        case "alone":
            return [
                ("p50 ms", p50, ""),
                ("added p50 ms", added50, "<= 4"),
                ("p99 ms", p99, ""),
                ("added p99 ms", added99, ""),
            ]
        case "peak":
            return [("calls/s", _rate, ""), ("p50 ms", p50, ""), ("CPU ms a call", _cpu, "<= 2")]
        case "steady":
            return [
                ("calls/s held", _held, ""),
                ("p50 ms", p50, ""),
                ("p99 ms", p99, ""),
                ("CPU ms a call", _cpu, ""),
            ]
        case "sustained":
            return [("calls/s", _held, ">= 800"), ("p50 ms", p50, ""), ("p99 ms", p99, "")]
        case "lone_stream":
            return [
                ("first token p50 ms", first, ""),
                ("added p50 ms", added_first, "<= 5"),
                ("added p99 ms", _added("first", "p99", direct), ""),
            ]
        case "streams":
            return [
                ("added first token p50 ms", added_first, ""),
                ("whole stream added p50 ms", added50, ""),
                ("CPU ms a stream", _cpu, "<= 8"),
            ]
        case _:
            return [("streams/s", _rate, ">= 500"), ("CPU ms a stream", _cpu, "")]


def _rows(scenario: Scenario, samples: Mapping[str, Sample]) -> Iterator[Row]:
    yield Row(scenario.title, {})
    direct = samples.get("provider")
    for title, cell, promised in _lines_of(scenario.key, direct):
        yield Row(f"  {title}", {name: cell(s) for name, s in samples.items()}, promised)
        if title.startswith("CPU"):
            processes = [p for s in samples.values() if len(s.cpu_ms) > 1 for p in s.cpu_ms]
            for process in processes:
                cells = {name: _cpu_of(process)(s) for name, s in samples.items()}
                yield Row(f"    {process}", {n: c for n, c in cells.items() if c != _ABSENT})
    errors = {name: str(s.measured.errors) for name, s in samples.items() if s.measured.errors}
    if errors:
        yield Row("  errors", errors, "0")


def _memory_rows(memory: Memory, owners: Mapping[str, str]) -> Iterator[Row]:
    """`owners` says to which target a process belongs."""
    yield Row("memory, MB before and after", {})
    names = sorted(set(owners.values()))
    in_all = {
        target: " to ".join(
            f"{sum(mb for process, mb in memory[when].items() if owners[process] == target):.0f}"
            for when in ("before", "after")
        )
        for target in names
    }
    yield Row("  in all", in_all, "flat")
    for process, before in memory["before"].items():
        if len([1 for owner in owners.values() if owner == owners[process]]) > 1:
            cells = {owners[process]: f"{before:.0f} to {memory['after'][process]:.0f}"}
            yield Row(f"    {process}", cells)


def table(
    scenarios: list[Scenario],
    results: Results,
    memory: Memory,
    owners: Mapping[str, str],
    targets: list[str],
) -> str:
    """All scenarios and the memory, one line each, columns aligned."""
    rows = [row for s in scenarios if s.key in results for row in _rows(s, results[s.key])]
    rows += _memory_rows(memory, owners)
    grid = [["", *targets, "promised"]]
    grid += [[r.title, *(r.cells.get(t, "") for t in targets), r.promised] for r in rows]
    return aligned(grid)


def aligned(grid: list[list[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]
    lines = []
    for row in grid:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
