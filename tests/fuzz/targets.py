"""All targets, by name, and how many of one fuzzer there are."""

from tests.fuzz import bus_bytes, json_files, proc_files, yaml_files

_FUZZERS = (yaml_files, bus_bytes, json_files, proc_files)
TARGETS = {target.name: target for fuzzer in _FUZZERS for target in fuzzer.TARGETS}
# How many targets share the time of the fuzzer that one is of.
SHARING = {target.name: len(fuzzer.TARGETS) for fuzzer in _FUZZERS for target in fuzzer.TARGETS}
