"""What one GPU should have, as a config for it alone: what a choice is kept as that migd made."""

from migd.config.configs import Config, Configs
from migd.config.entries import Entry
from migd.config.exact import SLICES_OF_PROFILE, called
from migd.config.export import rendered
from migd.config.faults import Position
from migd.config.instances import Instance
from migd.core.model import Gpu, Mode, Target, Wanted
from migd.core.profiles import ProfileName

_SOURCE = "written by migd"
_NAME = "current"


def text_of(gpu: Gpu, target: Target) -> str:
    """YAML that wants `target` of `gpu`, whose instances all have their placements."""
    by_place = {w.placement: w for w in target.instances or () if w.placement}
    placed = tuple(
        Instance(
            str(ProfileName.parse(gpu.profile_name(w.profile_id))), spot.start, _inside(gpu, w)
        )
        for spot, w in sorted(by_place.items(), key=lambda item: item[0])
    )
    enabled = target.mode is Mode.ENABLED
    entry = Entry((), (gpu.uuid,), enabled, {}, Position(_SOURCE), placed)
    return rendered(Configs(_SOURCE, {_NAME: Config(_NAME, (entry,))}))


def _inside(gpu: Gpu, wanted: Wanted) -> tuple[str | int, ...] | None:
    """Its compute instances by name, by id where no name tells which; None for one that fills."""
    fills = [
        (i.default_compute,)
        for i in gpu.instances
        if (i.profile_id, i.placement) == (wanted.profile_id, wanted.placement)
    ]
    if wanted.compute is None or wanted.compute in fills:
        return None
    name = ProfileName.parse(gpu.profile_name(wanted.profile_id))
    return tuple(
        called(name, SLICES_OF_PROFILE.get(ident, name.slices), ident) for ident in wanted.compute
    )
