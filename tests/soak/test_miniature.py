"""What `make soak` does for an hour, in a few rounds: what it asks, breaks and judges."""

from pathlib import Path

from tests.host.conftest import Boot
from tests.host.image import RELEASES
from tests.soak import stage
from tests.soak.run import Soak
from tests.support.node import Node

# With jobs, holders, faults of the driver, and a death of migd among them.
SEED, ROUNDS = 11, 4


def test_a_soak_of_a_few_rounds(boot: Boot, tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", *stage.GPUS, seed=SEED)
    host = boot(RELEASES[0], node, prepare=stage.prepare)
    stage.people(host)
    with Soak(host, SEED, span=1.0, crowd=(6, 9)) as it:
        for _ in range(ROUNDS):
            assert it.round(deaths=True), it.broken[-1]
        it.weather.clear()
        it.oracle.settle()
        it.sampler.read_log(it.rounds)
        print(it.told())
    assert not it.sampler.bugs
    assert it.oracle.results
    assert it.trouble.count
