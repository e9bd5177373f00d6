"""All targets, by name."""

from tests.fuzz import bus_bytes, json_files, proc_files, yaml_files

TARGETS = {
    target.name: target
    for module in (yaml_files, bus_bytes, json_files, proc_files)
    for target in module.TARGETS
}
