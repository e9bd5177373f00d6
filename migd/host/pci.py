"""The PCI devices of this host, as the kernel shows them without any driver."""

from migd.host.nodes import HOST, Places

_NVIDIA = "0x10de"
# VGA-compatible and 3D controllers; NVIDIA's bridges and audio functions are no GPUs.
_GPU_CLASSES = ("0x0300", "0x0302")


def has_nvidia_gpu(places: Places = HOST) -> bool:
    """Whether there is a GPU of NVIDIA, virtual functions of one included."""
    try:
        devices = list((places.sys / "bus/pci/devices").iterdir())
    except OSError:
        return False
    for device in devices:
        try:
            vendor = (device / "vendor").read_text(errors="replace").strip()
            kind = (device / "class").read_text(errors="replace").strip()
        except OSError:
            continue  # it has gone meanwhile
        if vendor == _NVIDIA and kind.startswith(_GPU_CLASSES):
            return True
    return False
