"""What drivers have been seen to do: a job then ends as it says, or all is as it was before."""

from pathlib import Path

import pytest

from tests.bus.manager import H100, layout, mig_uuids, predicted, world

A100 = "a100-40gb"
SURPRISES = (
    "gi-ids-by-placement",
    "gi-ids-by-placement-flipped",
    "placement-114-sm",
    "placement-lowest-first",
    "destroyed-stay-visible",
    "minor-changes-after-reset",
    "pending-sticks",
    "passthrough",
    "passthrough-asks-reset",
    "stale-mig-handles",
    "sys-admin-needed",
)


@pytest.mark.parametrize("surprise", SURPRISES)
def test_each_outcome_is_true(surprise: str, tmp_path: Path) -> None:
    with world(tmp_path, (H100, 1), (A100, 1)) as made:
        made.node.surprise(surprise)
        for config in ("all-balanced", "all-enabled", "all-balanced", "all-disabled"):
            before = made.node.gpus()
            _, steps = made.daemon.plan(config, max_impact="reset")
            said, _ = predicted(before, steps)
            result, details = made.daemon.applied(config, max_impact="reset")
            after = {g["uuid"]: g for g in made.node.gpus()}
            endings = set()
            for was in before:
                (outcome,) = (o for o in details["gpus"] if o["gpu"] == was["uuid"])
                endings.add(outcome["result"])
                now = after[was["uuid"]]
                if outcome["result"] in ("done", "unchanged"):
                    assert layout(now) == said[was["uuid"]]
                elif outcome["result"] == "rolled-back":
                    # With destroyed-stay-visible a compute instance is gone that every reader of
                    # NVML still sees: by what is to be seen, all is as before.
                    assert layout(now) == layout(was)
                    assert now["mode"] == was["mode"]
                    assert sorted(mig_uuids(now).values()) == sorted(mig_uuids(was).values())
                else:
                    assert outcome["left"]
            assert (result == "done") == (endings <= {"done", "unchanged"}), details
