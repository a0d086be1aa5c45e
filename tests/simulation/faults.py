"""What may go wrong, and how often."""

from collections.abc import Callable, Mapping

from tests.simulation.jetstream.client import Client
from tests.simulation.postgres.connections import Wire
from tests.simulation.rebuilder import Rebuilder
from tests.simulation.scheduler import NOWHERE, Process
from tests.simulation.world import World

Fault = Callable[[World], None]
VICTIMS = ("api-1", "api-2", "orchestrator-1", "orchestrator-2", "projections")


def _later(world: World, seconds: float, act: Callable[[], object]) -> None:
    world.loop.call_later(seconds, act, context=NOWHERE)


def _process(world: World) -> Process:
    """Any process; the active orchestrator more often than others."""
    active = _active_orchestrators(world)
    if active and world.random.random() < 0.3:
        return active[0]
    return world.processes[world.random.choice(VICTIMS)]


def _active_orchestrators(world: World) -> list[Process]:
    holders = [one.process for one in _wires(world) if one.session.advisory and one.process is not None]
    return [process for process in holders if "orchestrator" in process.name]


def _wires(world: World, *, listening: bool | None = None) -> list[Wire]:
    wires = [one for one in world.pg_network.wires if one.process is not None and one.broken is None]
    return [one for one in wires if listening in (None, one.listening)]


# ---- PostgreSQL ---------------------------------------------------------------------------------


def cut_connections(world: World) -> None:
    """`pg_terminate_backend`, or a broken cable: some connections, or all."""
    share = world.random.choice((0.2, 0.5, 1.0))
    for wire in _wires(world):
        if world.random.random() < share:
            wire.cut(request_arrives=world.random.random() < 0.5)


def lose_commit_reply(world: World) -> None:
    """The next COMMITs are carried out, and nobody hears of it."""
    left = [world.random.randint(1, 3)]

    def swallow(process: Process | None) -> bool:
        if world.calm or not left[0] or process is None or world.random.random() < 0.5:
            return False
        left[0] -= 1
        return True

    world.pg_network.swallow_commit = swallow


def restart_postgres(world: World) -> None:
    lost = world.pg_network.stop_server()
    world.loop.note(f"postgres: {lost} unflushed commits are lost")
    seconds = world.random.choice((0.3, 2.0, 8.0)) * (0.5 + world.random.random())
    _later(world, seconds, world.pg_network.start_server)


def slow_postgres(world: World) -> None:
    world.pg_network.slow_until = world.loop.time() + 0.5 + 2.0 * world.random.random()


def silence_listener(world: World) -> None:
    """A half-open connection: whoever only listens is told nothing, not even that nothing comes."""
    wires = [one for one in _wires(world, listening=True) if one.pending is None]
    if wires:
        wire = world.random.choice(wires)
        world.loop.note(
            f"postgres: a listener of {wire.process.name if wire.process else None} hears nothing"
        )
        wire.go_silent()


# ---- NATS ---------------------------------------------------------------------------------------


def cut_clients(world: World) -> None:
    clients: list[Client] = list(world.nats_network.clients)
    for client in clients:
        if world.random.random() < 0.6:
            client.disconnect()


def lose_publish_ack(world: World) -> None:
    """What was published is stored, and whoever published waits in vain."""
    left = [world.random.randint(1, 3)]

    def swallow(_process: Process | None, subject: str) -> bool:
        if world.calm or not left[0] or not subject.startswith(("kinora.v1.", "kinora.report.")):
            return False
        left[0] -= 1
        return True

    world.nats_network.swallow_answer = swallow


def restart_nats(world: World) -> None:
    world.nats_network.stop_server()
    _later(world, 0.2 + world.random.random() * 3.0, world.nats_network.start_server)


def slow_nats(world: World) -> None:
    world.nats_network.slow_until = world.loop.time() + 0.5 + 2.0 * world.random.random()


def wipe_events(world: World) -> None:
    """The stream is gone: deleted, or its disk was."""
    restart_nats(world)
    world.nats.wipe("EVENTS")


def empty_events(world: World) -> None:
    world.nats.empty("EVENTS")


def truncate_events(world: World) -> None:
    """The server comes back from an older copy of its disk."""
    restart_nats(world)
    stream = world.nats.streams.get("EVENTS")
    if stream is not None and stream.messages:
        world.nats.truncate("EVENTS", stream.last_sequence - world.random.randint(1, len(stream.messages)))


# ---- processes ----------------------------------------------------------------------------------


def kill_process(world: World) -> None:
    process = _process(world)
    world.loop.note(f"SIGKILL {process.name}")
    world.loop.kill(process)


def freeze_process(world: World) -> None:
    process = _process(world)
    seconds = world.random.choice((0.5, 2.0, 8.0))
    world.loop.note(f"SIGSTOP {process.name} for {seconds} s")
    world.loop.freeze(process)
    _later(world, seconds, lambda: world.loop.thaw(process))


def zombie_orchestrator(world: World) -> None:
    """The active orchestrator stands still while its lock is taken away, and then goes on.

    Sometimes everything stands still meanwhile, for longer than JetStream remembers message ids.
    """
    for process in _active_orchestrators(world):
        world.loop.freeze(process)
        for wire in _wires(world):
            if wire.process is process and wire.session.advisory:
                wire.cut(request_arrives=False)
        seconds = 3.0 + world.random.random() * 3.0
        if world.random.random() < 0.3:
            _later(world, seconds - 0.5, lambda: world.loop.leap(130.0))
        _later(world, seconds, lambda process=process: world.loop.thaw(process))


def crash_under_load(world: World) -> None:
    """The active orchestrator dies while the database takes its time, so in the middle of something."""
    world.pg_network.slow_until = world.loop.time() + 1.5
    for process in _active_orchestrators(world):
        _later(world, 0.1 + 1.2 * world.random.random(), lambda process=process: world.loop.kill(process))


def stall_publishes(world: World) -> None:
    """What the active orchestrator publishes hangs in the network, and arrives when another one is active.

    Sometimes after longer than JetStream remembers message ids.
    """
    for process in _active_orchestrators(world):
        for client in world.nats_network.clients:
            if client.process is process:
                client.stall(4.0)
        _later(world, 1.0, lambda process=process: world.loop.kill(process))
        if world.random.random() < 0.4:
            _later(world, 3.5, lambda: world.loop.leap(130.0))


def sleep_machine(world: World) -> None:
    """Everything stands still for longer than the duplicate window."""
    world.loop.leap(130.0)


def poison_stream(world: World) -> None:
    """The view cannot fold some job's events for a while."""
    if world.jobs:
        world.poison.streams.add(world.random.choice(world.jobs).job_id)


def release_new_view(world: World) -> None:
    """The projections process comes back with newer code, whose tables are built elsewhere meanwhile."""
    world.view_version += 1
    world.loop.kill(world.processes["projections"])
    Rebuilder(world).begin(world.view_version, 0.5 + world.random.random() * 4.0)


FAULTS: Mapping[str, tuple[int, Fault]] = {
    "cut connections": (4, cut_connections),
    "lose commit reply": (5, lose_commit_reply),
    "restart postgres": (2, restart_postgres),
    "slow postgres": (2, slow_postgres),
    "silence listener": (3, silence_listener),
    "cut clients": (3, cut_clients),
    "lose publish ack": (4, lose_publish_ack),
    "restart nats": (2, restart_nats),
    "slow nats": (2, slow_nats),
    "wipe events": (2, wipe_events),
    "empty events": (1, empty_events),
    "truncate events": (2, truncate_events),
    "kill process": (5, kill_process),
    "freeze process": (3, freeze_process),
    "zombie orchestrator": (3, zombie_orchestrator),
    "crash under load": (3, crash_under_load),
    "stall publishes": (3, stall_publishes),
    "sleep machine": (1, sleep_machine),
    "poison stream": (3, poison_stream),
    "release new view": (2, release_new_view),
}
