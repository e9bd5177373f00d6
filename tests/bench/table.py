"""Rows of figures, as a table for people and as JSON for programs."""

import os
import platform
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Row:
    """One figure. modelled: the simulator's own latencies decide it."""

    name: str
    value: float
    unit: str
    note: str = ""
    modelled: bool = False


@dataclass
class Report:
    """Sections in the order measured."""

    sections: dict[str, list[Row]] = field(default_factory=dict)
    tables: dict[str, object] = field(default_factory=dict)

    def add(self, section: str, *rows: Row) -> None:
        """Print the rows at once, and keep them."""
        if section not in self.sections:
            print(f"\n{section}", flush=True)
        self.sections.setdefault(section, []).extend(rows)
        for row in rows:
            told = f"{row.note}{' (modelled)' if row.modelled else ''}".strip()
            print(f"  {row.name:<52}{row.value:>12.3f} {row.unit:<6}{told}", flush=True)

    def keep(self, name: str, table: object) -> None:
        """Keep what is more than rows of one figure, and plain enough for JSON."""
        self.tables[name] = table

    def document(self) -> dict[str, object]:
        """All of it, plain enough for JSON."""
        return {
            "machine": {
                "processors": os.cpu_count(),
                "architecture": platform.machine(),
                "python": platform.python_version(),
                "kernel": platform.release(),
                "load": os.getloadavg()[0],
            },
            "sections": {name: [asdict(r) for r in rows] for name, rows in self.sections.items()},
            "tables": self.tables,
        }


def percentile(values: list[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
