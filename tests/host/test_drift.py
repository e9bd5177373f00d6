"""The driver is loaded anew under an idle migd: noticed, and put right once migd.yaml says so."""

from tests.host.clients import install, lists, unit
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.support.node import Node, done

SOON_S = 60.0


def prepare(host: Host) -> None:
    install(host, {"training.service": unit()})
    lists(host, "systemd-services: [training.service]\n")


def test_driver_is_loaded_anew(boot: Boot, node: Node) -> None:
    host = boot("bookworm", node, prepare=prepare)
    uuid = node.gpus()[0]["uuid"]
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    settled, calls = node.layout(0), node.mutating_calls()
    host.systemctl("start", "training.service")
    pid = host.properties("training.service", "MainPID")

    host.wait_for(lambda: done(node.unload), what="the driver is in use for ever")
    host.wait_for(lambda: host.property("Driver") == "", timeout=SOON_S, what="still a driver")
    (told,) = host.property("Drift")
    assert f"nothing is to be seen of GPU 0 (NVIDIA H100 80GB HBM3, {uuid})" in told
    node.load("590.10.01")
    host.wait_for(lambda: host.property("Driver") == "590.10.01", timeout=SOON_S)
    (told,) = host.property("Drift")
    assert "MIG mode is disabled, and was enabled" in told
    assert f"drift: {told}" in host.run("migctl", "status", user="bob").stdout
    assert host.journal("migd.service").count("MIG mode is disabled") == 1
    assert node.mutating_calls() == calls
    assert host.properties("training.service", "MainPID") == pid

    host.write("/etc/migd/migd.yaml", "drift: reapply\n")
    host.wait_for(lambda: node.layout(0) == settled, timeout=SOON_S, what="it is not put right")
    host.wait_for(lambda: host.property("Drift") == [], timeout=SOON_S, what="still drift")
    assert host.active("training.service")
    assert node.gpus()[0]["uuid"] == uuid
