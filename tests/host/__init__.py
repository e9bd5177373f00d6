"""The project installed on a freshly booted Debian, with real systemd, D-Bus, polkit and logind.

    python -m tests.host bookworm                        a shell in a host with two simulated H100
    python -m tests.host trixie --gpu a100-40gb=4 --gpu h100-80gb-sxm5=2
    python -m tests.host trixie -- migctl status         one command instead of a shell

A test asks for the fixture `release`, or names one, and boots hosts with the fixture `boot`:

    def test_it(boot: Boot, node: Node) -> None:
        host = boot("trixie", node)
        host.run("migctl", "apply", "all-balanced")
        host.reboot()

It needs root, and Debian packages that `packaging/prepare test` brings. Base images are made once
and kept below /var/cache, or $MIGD_TEST_HOSTS_CACHE; $MIGD_TEST_HOSTS_MIRROR names a mirror of
Debian where the one of this machine's apt is not to be used. tests/host/host.py has all verbs.
"""
