"""Who is stopped, who is ended, and who is in the way: the decision for a plan."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from migd.core.clients import Blocked, Clearing, End, Rules, Stop, Unit, decide, standing
from migd.core.holders import Client, Holder, How, Use
from migd.core.listed import From, Listed, ListedProcess, ListedUnit, Unlisted
from migd.core.model import Gpu, Mode, Target, Wanted
from migd.core.plan import Plan, plan
from tests.support import boards

H100, A100 = "h100-80gb-sxm5", "a100-40gb"
STOP_S, START_S, GRACE_S = 100, 120, 20
TWO = boards.gpu(H100, [boards.instance(H100, 1, 9, 0), boards.instance(H100, 2, 9, 4)])
DARK = boards.gpu(H100, mode=Mode.DISABLED)
AMPERE = boards.gpu(A100, mode=Mode.DISABLED)
OTHER = boards.gpu(H100, index=1, mode=Mode.DISABLED)

# What is done: one instance goes; a mode switches; a reset; the first instances; nothing.
HALF = plan([TWO], {TWO.uuid: Target(Mode.ENABLED, (Wanted(9),))}, {})
MODE = plan([DARK, OTHER], {DARK.uuid: Target(Mode.ENABLED, (Wanted(9),))}, {})
RESET = plan([AMPERE], {AMPERE.uuid: Target(Mode.ENABLED, ())}, {})
NOTHING = plan([TWO], {TWO.uuid: Target(Mode.ENABLED, (Wanted(9), Wanted(9)))}, {})
(GONE,) = HALF.gpus[0].gone
(KEPT,) = HALF.gpus[0].kept

DCGM = Unit("nvidia-dcgm.service", active=True, returnable=True)


def rules(
    *units: ListedUnit,
    processes: Sequence[ListedProcess] = (),
    unlisted: Unlisted = Unlisted.REFUSE,
    terminate: bool = False,
) -> Rules:
    def forbidden(unit: str) -> str:
        return "the system bus" if unit == "dbus.service" else ""

    listed = Listed(units, tuple(processes), unlisted)
    return Rules(listed, terminate, forbidden, STOP_S, START_S, GRACE_S)


def client(*uses: Use, pid: int = 100, unit: str = "", container: str = "") -> Client:
    holder = Holder(
        pid, 7, "python train.py", "/usr/bin/python3", 1001, "alice", unit, container=container
    )
    return Client(holder, uses)


def use(gpu: Gpu, gi: int | None = None, how: How = How.LISTED) -> Use:
    return Use(gpu.uuid, gi, None if gi is None else 0, how)


def decided(made: Plan, clients: Sequence[Client], by: Rules, *units: Unit) -> Clearing:
    return decide(made, clients, {u.name: u for u in units}, by)


def stop(name: str, *along: str) -> Stop:
    return Stop(name, along, STOP_S, START_S)


# -- units that are listed -------------------------------------------------------------------


def test_a_listed_unit_is_stopped_whether_or_not_it_was_seen() -> None:
    by = rules(ListedUnit("nvidia-dcgm.service"))
    assert decided(HALF, [], by, DCGM) == Clearing((stop("nvidia-dcgm.service"),))
    holding = client(use(TWO, GONE), unit="nvidia-dcgm.service")
    assert decided(HALF, [holding], by, DCGM) == Clearing((stop("nvidia-dcgm.service"),))


def test_an_empty_plan_touches_nobody() -> None:
    by = rules(ListedUnit("nvidia-dcgm.service"), terminate=True)
    holding = client(use(TWO, KEPT))
    assert decided(NOTHING, [holding], by, DCGM) == Clearing()


def test_what_is_not_active_or_not_there_stays_so() -> None:
    by = rules(ListedUnit("nvidia-dcgm.service"), ListedUnit("nvsm.service"))
    assert decided(HALF, [], by, replace(DCGM, active=False)) == Clearing()


@pytest.mark.parametrize(
    ("since", "stopped"),
    [(From.ANY, (HALF, MODE, RESET)), (From.MODE, (MODE, RESET)), (From.RESET, (RESET,))],
)
def test_from_which_impact_on(since: From, stopped: tuple[Plan, ...]) -> None:
    by = rules(ListedUnit("nvidia-dcgm.service", since))
    for made in (HALF, MODE, RESET):
        assert bool(decided(made, [], by, DCGM).stops) == (made in stopped)


def test_units_stop_in_the_order_of_the_list_each_once() -> None:
    exporter = Unit("dcgm-exporter.service", active=True, returnable=True)
    needed = replace(DCGM, along=(exporter,))
    listed = [ListedUnit(n) for n in ("nvsm.service", "nvidia-dcgm.service", "dcgm.service")]
    by = rules(*listed, ListedUnit("dcgm-exporter.service", stop_s=5, start_s=6, kill=True))
    nvsm = Unit("nvsm.service", active=True, returnable=True)
    # dcgm.service is another name of nvidia-dcgm.service.
    units = {
        "nvsm.service": nvsm,
        "nvidia-dcgm.service": needed,
        "dcgm.service": needed,
        "dcgm-exporter.service": exporter,
    }
    found = decide(HALF, [], units, by)
    assert found.stops == (
        stop("nvsm.service"),
        stop("nvidia-dcgm.service", "dcgm-exporter.service"),
    )
    assert found.units == ("nvsm.service", "dcgm-exporter.service", "nvidia-dcgm.service")
    del units["nvsm.service"], units["nvidia-dcgm.service"], units["dcgm.service"]
    assert decide(HALF, [], units, by).stops == (Stop("dcgm-exporter.service", (), 5, 6, True),)


def test_what_stops_along_must_be_able_to_come_back() -> None:
    lost = Unit("run-r1.service", active=True, returnable=False)
    dcgm = replace(DCGM, along=(lost,))
    listed = ListedUnit("nvidia-dcgm.service")
    (why,) = decided(HALF, [], rules(listed), dcgm).blocked
    assert "run-r1.service would stop along with nvidia-dcgm.service" in why.message
    for by in (rules(listed, terminate=True), rules(listed, ListedUnit("run-r1.service"))):
        found = decided(HALF, [], by, dcgm, lost)
        assert (found.blocked, found.lost) == ((), ("run-r1.service",))
        assert found.units == ("nvidia-dcgm.service",)


def test_a_unit_that_must_never_stop_does_not_stop_along_either() -> None:
    bus = Unit("dbus.service", active=True, returnable=True)
    by = rules(ListedUnit("nvidia-dcgm.service"), terminate=True)
    (why,) = decided(HALF, [], by, replace(DCGM, along=(bus,))).blocked
    assert "dbus.service" in why.message
    assert "the system bus" in why.message


# -- processes -------------------------------------------------------------------------------


def test_a_loose_process_in_the_way_is_refused_and_named() -> None:
    (why,) = decided(HALF, [client(use(TWO, GONE))], rules()).blocked
    assert why.message == (
        f"{TWO}, GPU instance {GONE} (3g.40gb), is used by pid 100 (python train.py) of user alice:"
        " end it, list it under processes in clients.yaml, or apply with terminate"
    )


@pytest.mark.parametrize("how", [How.LISTED, How.CAPABILITY])
def test_a_kept_instance_keeps_its_processes(how: How) -> None:
    by = rules(processes=[ListedProcess(executable="python3")], terminate=True)
    assert decided(HALF, [client(use(TWO, KEPT, how))], by) == Clearing()


@pytest.mark.parametrize("made", [HALF, MODE, RESET])
def test_who_uses_only_other_gpus_is_left_alone(made: Plan) -> None:
    by = rules(processes=[ListedProcess(executable="python3")], terminate=True)
    assert decided(made, [client(use(OTHER))], by) == Clearing()
    # CUDA opens the nodes of all GPUs: that is not using them, and hinders a reset only.
    opened = use(made.gpus[0].gpu, None, How.OPEN)
    found = decided(made, [client(opened, use(OTHER, None, How.MAPPED))], by)
    assert bool(found.ends) == (made is RESET)


def test_who_only_looks_hinders_a_reset_only() -> None:
    for made in (HALF, MODE, RESET):
        watching = client(use(made.gpus[0].gpu, None, How.OPEN))
        assert bool(decided(made, [watching], rules()).blocked) == (made is RESET)
        # Who lists such a program wants it gone from the impact that the entry says.
        for since in From:
            entry = ListedProcess(executable="/usr/bin/*", since=since, grace_s=3, tree=True)
            ends = decided(made, [watching], rules(processes=[entry])).ends
            reached = {HALF: From.ANY, MODE: From.MODE, RESET: From.RESET}[made]
            assert bool(ends) == (since.rank <= reached.rank)
            if ends:
                assert ends == (End(watching, watching.uses, 3, tree=True),)


@pytest.mark.parametrize("how", [How.LISTED, How.MAPPED])
def test_a_gpu_that_must_be_idle_as_a_whole(how: How) -> None:
    first = boards.gpu(H100)
    creating = plan([first], {first.uuid: Target(Mode.ENABLED, (Wanted(9),))}, {})
    for made in (MODE, creating):
        assert decided(made, [client(use(made.gpus[0].gpu, None, how))], rules()).blocked


@pytest.mark.parametrize("by", [rules(terminate=True), rules(unlisted=Unlisted.TERMINATE)])
def test_unlisted_holders_end_if_that_is_allowed(by: Rules) -> None:
    holding = client(use(TWO, GONE))
    assert decided(HALF, [holding], by) == Clearing(ends=(End(holding, holding.uses, GRACE_S),))


def test_containers_are_named_and_never_ended() -> None:
    inside = client(use(TWO, GONE), unit="docker-1.scope", container="docker 0123456789ab")
    entry = ListedProcess(executable="python3")
    by = rules(ListedUnit("docker-1.scope"), processes=[entry], terminate=True)
    (why,) = decided(HALF, [inside], by).blocked
    assert "in container docker 0123456789ab" in why.message


def test_a_unit_in_the_way_that_nobody_listed() -> None:
    mine = Unit("inference.service", active=True, returnable=True)
    holding = client(use(TWO, GONE), unit="inference.service")
    (why,) = decided(HALF, [holding], rules(), mine).blocked
    assert "in inference.service: stop inference.service, list it" in why.message
    # It comes back, which is better than to end its process.
    found = decided(HALF, [holding, client(use(TWO, GONE), pid=101, unit="inference.service")],
                    rules(terminate=True), mine)  # fmt: skip
    assert found == Clearing((stop("inference.service"),))
    # Stopping it would leave the process (KillMode=process).
    leaves = replace(mine, whole=False)
    assert decided(HALF, [holding], rules(terminate=True), leaves).ends


def test_of_a_unit_that_leaves_processes_the_main_one_goes() -> None:
    leaves = replace(DCGM, whole=False, main=100)
    by = rules(ListedUnit(DCGM.name))
    main, other = (client(use(TWO, GONE), pid=pid, unit=DCGM.name) for pid in (100, 101))
    assert decided(HALF, [main], by, leaves) == Clearing((stop(DCGM.name),))
    (why,) = decided(HALF, [main, other], by, leaves).blocked
    assert "pid 101" in why.message


def test_a_unit_that_refuses_to_be_stopped() -> None:
    refuses = replace(DCGM, stoppable=False)
    (why,) = decided(HALF, [], rules(ListedUnit(DCGM.name)), refuses).blocked
    assert "RefuseManualStop=" in why.message
    holding = client(use(TWO, GONE), unit=DCGM.name)
    found = decided(HALF, [holding], rules(terminate=True), refuses)
    assert (found.stops, bool(found.ends)) == ((), True)


def test_a_listed_unit_that_systemd_does_not_know_is_no_process_to_be_ended() -> None:
    holding = client(use(TWO, GONE), unit=DCGM.name)
    assert decided(HALF, [holding], rules(ListedUnit(DCGM.name))).blocked


def test_who_runs_in_a_unit_that_is_lost_ends_with_it() -> None:
    lost = Unit("run-r1.service", active=True, returnable=False)
    holding = client(use(TWO, GONE), unit=lost.name)
    by = rules(ListedUnit(DCGM.name), terminate=True)
    found = decided(HALF, [holding], by, replace(DCGM, along=(lost,)), lost)
    assert (found.lost, found.ends) == ((lost.name,), ())


def test_a_unit_that_cannot_come_back_is_ended_like_a_process() -> None:
    scope = Unit("run-r1.scope", active=True, returnable=False)
    holding = client(use(TWO, GONE), unit="run-r1.scope")
    assert decided(HALF, [holding], rules(), scope).blocked
    by = rules(ListedUnit("run-r1.scope", stop_s=4))
    assert decided(HALF, [holding], by, scope) == Clearing(ends=(End(holding, holding.uses, 4),))


def test_processes_of_units_that_must_never_stop() -> None:
    bus = Unit("dbus.service", active=True, returnable=True)
    holding = client(use(TWO, GONE), unit="dbus.service")
    entry = ListedProcess(executable="python3")
    (why,) = decided(HALF, [holding], rules(processes=[entry], terminate=True), bus).blocked
    assert "dbus.service is the system bus" in why.message


def test_an_alias_of_a_unit_that_must_never_stop() -> None:
    units = {"mine.service": Unit("dbus.service", active=True, returnable=True)}
    found = decide(HALF, [], units, rules(ListedUnit("mine.service")))
    assert "mine.service must not be stopped" in found.blocked[0].message
    assert found.stops == ()


def test_a_process_that_cannot_be_reached_is_named() -> None:
    gone = Client(Holder(9, command="gone, or outside this host's view"), (use(TWO, GONE),))
    assert decided(HALF, [gone], rules(terminate=True)).blocked


def test_fabric_manager_steps_aside_by_itself() -> None:
    fabric = client(use(AMPERE, None, How.OPEN), unit="nvidia-fabricmanager.service")
    assert decided(RESET, [fabric], rules()) == Clearing()


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        (ListedProcess(executable="python3"), True),
        (ListedProcess(executable="python"), False),
        (ListedProcess(executable="/usr/bin/python*"), True),
        (ListedProcess(executable="/opt/*"), False),
        (ListedProcess(command_line="*train.py*"), True),
        (ListedProcess(command_line="train.py"), False),
        (ListedProcess(user="alice"), True),
        (ListedProcess(user="1001"), True),
        (ListedProcess(user="bob"), False),
        (ListedProcess(unit="session-*.scope"), True),
        (ListedProcess(unit="*.service"), False),
        (ListedProcess(executable="python3", user="bob"), False),
        (ListedProcess(executable="python3", user="alice", unit="session-4.scope"), True),
    ],
)
def test_which_processes_an_entry_means(entry: ListedProcess, *, meant: bool) -> None:
    assert entry.matches(client(unit="session-4.scope").holder) is meant


def test_the_unit_of_a_users_manager_is_matched_too() -> None:
    holder = Holder(5, 1, user_unit="jupyter-lab.service")
    assert ListedProcess(unit="jupyter-*.service").matches(holder)


# -- as they stand ---------------------------------------------------------------------------


def test_standing_tells_of_each_client_and_of_listed_units_not_seen() -> None:
    by = rules(ListedUnit("nvidia-dcgm.service", From.MODE), ListedUnit("nvsm.service"))
    units = {
        "nvidia-dcgm.service": DCGM,
        "nvsm.service": Unit("nvsm.service", active=True, returnable=True),
    }
    seen = client(use(TWO, None, How.OPEN), unit="nvidia-dcgm.service")
    loose = client(use(TWO, 1), pid=5)
    control_only = client(pid=6)
    told = standing([seen, loose, control_only], units, by, [TWO])
    assert [(type(s.decision), s.since, s.client) for s in told] == [
        (Stop, From.MODE, seen),
        (Blocked, From.ANY, loose),
        (Stop, From.ANY, None),
    ]
