"""What a config means on the GPUs of this node."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from migd.config.compute import grouped, offered
from migd.config.configs import Config
from migd.config.devices import find_gpu, listed
from migd.config.entries import Entry
from migd.config.exact import placed
from migd.config.faults import shortened
from migd.core.model import Gpu, Mode, Profile, Target, Wanted
from migd.core.plan import offers
from migd.core.profiles import ProfileName
from migd.errors import ConfigRefused, NoSuchGpu, NoSuchProfile, NotSupported


def targets(
    config: Config,
    gpus: Sequence[Gpu],
    *,
    only: Collection[str] = (),
    mode_only: bool = False,
) -> dict[str, Target]:
    """What `config` wants of each GPU that it reaches, by UUID.

    only: indices, UUIDs or PCI addresses of the GPUs that are meant; empty for all. Then what
    the config says of others, even of GPUs that are not there, does not matter.
    mode_only: leave the instances as they are

    `devices: all` are the GPUs that have MIG; a filter narrows what `devices` lists. Of two
    entries for one GPU the later counts, alone. A GPU without MIG is passed over where the config
    has MIG off.
    Raises NoSuchGpu, NoSuchProfile, NotSupported, NoSpace, and ConfigRefused when it reaches no
    GPU.
    """
    meant = {find_gpu(gpus, name).uuid for name in only}
    entry_of: dict[str, Entry] = {}
    for entry in config.entries:
        for gpu in _reached(config, entry, gpus, strict=not only):
            if not only or gpu.uuid in meant:
                entry_of[gpu.uuid] = entry
    found = {}
    for gpu in sorted(gpus, key=lambda g: g.index):
        if gpu.uuid in entry_of:
            entry = entry_of[gpu.uuid]
            if gpu.mode is not Mode.UNSUPPORTED:
                found[gpu.uuid] = _target(config, entry, gpu, mode_only=mode_only)
            elif entry.enabled:
                raise NotSupported(
                    f"{_where(config, entry)} has mig-enabled: true for {gpu}, which has no MIG; "
                    "take it out of devices, or write devices: all, which passes it over"
                )
    if not found:
        raise _reaches_none(config, [g for g in gpus if not only or g.uuid in meant], entry_of)
    return found


def _reached(config: Config, entry: Entry, gpus: Sequence[Gpu], *, strict: bool) -> Iterator[Gpu]:
    if entry.devices == "all":
        candidates = [g for g in gpus if g.mode is not Mode.UNSUPPORTED]
    else:
        candidates = []
        for device in entry.devices:
            try:
                candidates.append(find_gpu(gpus, device))
            except NoSuchGpu:
                if strict:
                    raise NoSuchGpu(
                        f"{_where(config, entry)} lists GPU {device} in devices, but this node has "
                        f"{listed(gpus)}; take it out, or mend what keeps the GPU away"
                    ) from None
    for gpu in candidates:
        if not entry.filter or any(f.matches(gpu) for f in entry.filter):
            yield gpu


def _target(config: Config, entry: Entry, gpu: Gpu, *, mode_only: bool) -> Target:
    mode = Mode.ENABLED if entry.enabled else Mode.DISABLED
    if mode_only:
        return Target(mode, None)
    if entry.placed:
        where = _where(config, entry)
        return Target(mode, placed(gpu, entry.placed, profiles_by_name(gpu), where))
    compute: defaultdict[int, Counter[int]] = defaultdict(Counter)
    names = {ProfileName.parse(name): count for name, count in entry.instances.items()}
    for name, count in sorted(names.items(), key=lambda item: _order(item[0]), reverse=True):
        profile = _profile(config, entry, gpu, name)
        compute[profile.id][name.compute] += count
    wanted: list[Wanted] = []
    for profile_id, counts in compute.items():
        offer = gpu.profile(profile_id)
        assert offer is not None
        wanted += grouped(gpu, offer, counts)
    return Target(mode, tuple(wanted))


def _order(name: ProfileName) -> tuple[int, int, tuple[str, ...], int]:
    return name.slices, name.compute, name.attributes, name.gb


def _profile(config: Config, entry: Entry, gpu: Gpu, name: ProfileName) -> Profile:
    profile = profiles_by_name(gpu).get(name.gpu_instance)
    if profile is None:
        raise NoSuchProfile(
            f"{_where(config, entry)}: {name} is not offered by {gpu}; it has {offers(gpu)}"
        )
    if name.compute not in offered(profile):
        slices = ", ".join(str(s) for s in offered(profile))
        raise NoSuchProfile(
            f"{_where(config, entry)}: {name} is not offered by {gpu}; a compute instance in "
            f"{profile.name} has {slices} slices"
        )
    return profile


def profiles_by_name(gpu: Gpu) -> Mapping[ProfileName, Profile]:
    """What `gpu` offers; of two with one name the first, and without names that are none."""
    found: dict[ProfileName, Profile] = {}
    for profile in gpu.profiles:
        try:
            found.setdefault(ProfileName.parse(profile.name), profile)
        except ValueError:
            continue
    return found


def _where(config: Config, entry: Entry) -> str:
    return f"{entry.where}: config {shortened(config.name)}"


def _reaches_none(
    config: Config, gpus: Sequence[Gpu], reached: Collection[str]
) -> ConfigRefused | NotSupported:
    name = shortened(config.name)
    capable = [g for g in gpus if g.mode is not Mode.UNSUPPORTED]
    if not capable:
        here = f"there is no MIG on {listed(gpus)}" if gpus else "this node has no GPU"
        return NotSupported(f"config {name} changes nothing: {here}")
    if reached:
        return NotSupported(
            f"config {name} reaches only GPUs without MIG; choose one that is for {listed(capable)}"
        )
    return ConfigRefused(
        f"config {name} reaches no GPU: neither its device-filter nor its devices name "
        f"{listed(capable)}"
    )
