"""mig-parted's default file, its names and counts, written anew."""

from migd.config.configs import Config, Configs
from migd.config.devices import Filter
from migd.config.entries import Entry
from migd.config.faults import Position

SOURCE = "config-default.yaml"

# Count -> the profiles that have a config of their own with that many of them.
ONE_PROFILE = {
    1: """1g.5gb+me 4g.20gb 7g.40gb 1g.24gb+me.all 2g.48gb+me.all 4g.96gb 4g.96gb+gfx 1g.10gb+me
        4g.40gb 7g.80gb 1g.6gb+me 2g.12gb+me 4g.24gb 1g.12gb+me 1g.24gb+me 4g.93gb 7g.186gb 4g.47gb
        7g.94gb 4g.48gb 7g.96gb 1g.18gb+me 1g.23gb+me 4g.71gb 7g.141gb 1g.34gb+me 1g.35gb+me 4g.72gb
        4g.90gb 4g.95gb 4g.135gb 4g.139gb 7g.144gb 7g.180gb 7g.189gb 7g.269gb 7g.278gb""",
    2: """3g.20gb 2g.48gb 2g.48gb+gfx 2g.48gb-me 3g.40gb 2g.12gb 3g.93gb 3g.47gb 3g.48gb 3g.71gb
        3g.72gb 3g.90gb 3g.95gb 3g.135gb 3g.139gb""",
    3: "2g.10gb 2g.20gb 2g.24gb 2g.47gb 2g.35gb 2g.36gb 2g.45gb 2g.67gb 2g.70gb",
    4: """1g.24gb+gfx 1g.24gb-me 1g.20gb 1g.6gb 1g.24gb 1g.47gb 1g.36gb 1g.45gb 1g.67gb 1g.70gb""",
    7: "1g.5gb 1g.12gb 1g.18gb 1g.23gb 1g.34gb",
}
BOARDS_80 = "2330 2331 2322 20B2 20B5 20F3 20F5 2324"
BOARDS_40 = "20B0 20B1 20F1 20F6"
BY_BOARD: dict[str, list[tuple[str, dict[str, int]]]] = {
    "all-1g.10gb": [(BOARDS_80, {"1g.10gb": 7}), (BOARDS_40, {"1g.10gb": 4})],
    "all-1g.35gb": [("2335", {"1g.35gb": 4}), ("31C2", {"1g.35gb": 7})],
    "all-balanced": [
        ("2941", {"1g.23gb": 2, "2g.47gb": 1, "3g.93gb": 1}),
        ("31C2", {"1g.35gb": 2, "2g.70gb": 1, "3g.139gb": 1}),
        ("2BB5", {"1g.24gb": 2, "2g.48gb": 1}),
        ("2901", {"1g.23gb": 2, "2g.45gb": 1, "3g.90gb": 1}),
        ("3182", {"1g.34gb": 2, "2g.67gb": 1, "3g.135gb": 1}),
        ("2348", {"1g.18gb": 2, "2g.36gb": 1, "3g.72gb": 1}),
        ("2335 233B", {"1g.18gb": 2, "2g.35gb": 1, "3g.71gb": 1}),
        ("2321 233A", {"1g.12gb": 2, "2g.24gb": 1, "3g.47gb": 1}),
        (BOARDS_80, {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}),
        (BOARDS_40, {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1}),
        ("20B7", {"1g.6gb": 2, "2g.12gb": 1}),
        ("2342 233D 20B6 2329", {"1g.12gb": 2, "2g.24gb": 1, "3g.48gb": 1}),
    ],
}


def entry(boards: str, *, enabled: bool, instances: dict[str, int]) -> Entry:
    filters = tuple(Filter(int(board, 16) << 16 | 0x10DE) for board in boards.split())
    return Entry(filters, "all", enabled, instances, Position(SOURCE))


def default_configs() -> Configs:
    entries = {
        "all-disabled": [entry("", enabled=False, instances={})],
        "all-enabled": [entry("", enabled=True, instances={})],
    }
    for count, profiles in ONE_PROFILE.items():
        for profile in profiles.split():
            name = f"all-{profile.replace('+', '.')}"
            entries[name] = [entry("", enabled=True, instances={profile: count})]
    for name, by_board in BY_BOARD.items():
        entries[name] = [entry(b, enabled=True, instances=counts) for b, counts in by_board]
    return Configs(SOURCE, {name: Config(name, tuple(e)) for name, e in entries.items()})


def yaml_text() -> str:
    """The file, with filters and counts as people write them."""
    lines = ["version: v1", "mig-configs:"]
    for config in default_configs().configs.values():
        lines.append(f"  {config.name}:")
        for part in config.entries:
            if len(part.filter) == 1:
                lines.append(f'    - device-filter: "{part.filter[0]}"')
                lines.append("      devices: all")
            elif part.filter:
                boards = ", ".join(f'"{board}"' for board in part.filter)
                lines.append(f"    - device-filter: [{boards}]")
                lines.append("      devices: all")
            else:
                lines.append("    - devices: all")
            lines.append(f"      mig-enabled: {str(part.enabled).lower()}")
            if part.instances:
                lines.append("      mig-devices:")
                lines += [f'        "{name}": {count}' for name, count in part.instances.items()]
            elif part.enabled:
                lines.append("      mig-devices: {}")
        lines.append("")
    return "\n".join(lines)
