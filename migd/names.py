"""Every well-known string of migd: bus names, paths, interfaces, directories."""

BUS_NAME = "org.migd1"
ROOT = "/org/migd1"
MANAGER = "org.migd1.Manager"
GPU = "org.migd1.Gpu"
GPU_INSTANCE = "org.migd1.GpuInstance"
COMPUTE_INSTANCE = "org.migd1.ComputeInstance"
JOB = "org.migd1.Job"
ERROR = "org.migd1.Error"
DBUS_ERROR = "org.freedesktop.DBus.Error"

CONFIG_DIR = "/etc/migd"
DEFAULTS_DIR = "/usr/lib/migd"
STATE_DIR = "/var/lib/migd"
RUNTIME_DIR = "/run/migd"
CONFIG_FILE = "config.yaml"
SETTINGS_FILE = "migd.yaml"
CLIENTS_FILE = "clients.yaml"
CLIENTS_DIR = "clients.d"
HOOKS_FILE = "hooks.yaml"
STATE_FILE = "state.json"
JOURNAL_FILE = "journal"
# In the runtime folder, so for this boot only: how the put-back of this boot ended.
PUT_BACK_FILE = "put-back"
# There, too, and only while a job is: its configuration for its hooks, where that is in no file.
JOB_CONFIG_FILE = "job-config.yaml"
BOOT_UNIT = "migd-boot.service"

# A process that is asked for its boot compares this file, which no program can write.
BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"


def gpu_path(uuid: str) -> str:
    """Object path of the GPU with NVML's UUID `GPU-...`; readers must treat it as opaque."""
    return f"{ROOT}/gpu/{uuid.replace('-', '_')}"


def gpu_instance_path(uuid: str, gi: int) -> str:
    return f"{gpu_path(uuid)}/gi/{gi}"


def compute_instance_path(uuid: str, gi: int, ci: int) -> str:
    return f"{gpu_instance_path(uuid, gi)}/ci/{ci}"


def job_path(job: int) -> str:
    return f"{ROOT}/job/{job}"
