"""`run` with a sampler over several devices: each fills its own batch from one stream, to one sink.

No device waits for another one, and none is idle while systems wait. Hooks of the host and the sink are
called in the thread of the caller, with the systems of one device at a time: which system is on which device
follows from who had room first, and its path does not depend on that.
"""

import contextlib
import functools
import time
from typing import Any

from jaxtyping import PRNGKeyArray

from alchemi_jax.dynamics.devices.check import check_follows, check_hooks, check_memories
from alchemi_jax.dynamics.devices.devices import default_device
from alchemi_jax.dynamics.devices.gather import on_device
from alchemi_jax.dynamics.devices.proxies import Wrap, engine_of_part, under_name_of
from alchemi_jax.dynamics.devices.team import Deposit, PartSaver, Team
from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.refilled import First, RefilledRun, Traffic, take_first
from alchemi_jax.dynamics.saver import Saved, Saver
from alchemi_jax.dynamics.start import empty_buffers
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.stream import Stream
from alchemi_jax.errors import name_of, user_errors
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.set import call_host
from alchemi_jax.io.sinks import Sink
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import unsafe_replace


class SharedSink:
    """The sink of all devices, for one of them."""

    def __init__(self, sink: Sink, team: Team):
        self._sink, self._team = sink, team

    def write(self, *args: Any) -> None:
        """See `Sink.write`; in the thread of the caller."""
        self._team.in_caller(lambda: self._sink.write(*args))


class StreamOverDevices:
    """A refilled run over several devices.

    Args:
        engine: with all its hooks, which are open. stream: of which each device takes a share. sink: for all.
        devices: fewer than there were parts in a checkpoint take several parts each, more get new ones.
    """

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        sink: Sink,
        key: PRNGKeyArray | None,
        saver: Saver | None,
        saved: Saved | None,
        devices: tuple[Any, ...],
    ):
        self.engine, self.stream, self.sink, self.key = engine, stream, sink, key
        self.saved = [] if saved is None else parts_of(saved)
        n, default = max(len(devices), len(self.saved)), default_device()
        chosen = [devices[k % len(devices)] for k in range(n)]
        self.team = Team([None if d == default else d for d in chosen], saver, together=False)
        self.team.write = self._save
        self.first: list[First | None] = [None] * n
        # In the order of the devices, so that who begins where does not depend on time.
        for k in range(len(self.saved), n):
            self.first[k] = take_first(stream)
        if self.first[0] is not None:
            check_memories(engine, Batch.from_host(self.first[0].host))
        self.parts: list[RefilledRun | None] = [None] * n
        self.seconds = [0.0] * n

    def run(self) -> Traffic:
        """All steps. If it is interrupted, systems that are finished go to the sink first."""
        began = time.perf_counter()
        works = [functools.partial(self._work, k) for k in range(len(self.parts))]
        try:
            self.team.run(works)
            if self.team.stopping:
                raise Interrupted(f"{name_of(self.engine)} was told to stop")
        except BaseException as e:
            with contextlib.suppress(AttributeError):
                e.in_flight = self._in_flight()  # pyright: ignore[reportAttributeAccessIssue]
            raise
        return self._traffic(time.perf_counter() - began)

    def _in_flight(self) -> HostBatch | None:
        """The systems in the batches of all devices."""
        drivers = [part.driver for part in self.parts if part is not None and part.driver is not None]
        hosts = [driver.with_names().batch.to_host() for driver in drivers]
        return HostBatch.concatenate(hosts) if hosts else None

    def save_end(self) -> None:
        """Save the run after its last step."""
        deposits = [d for d in self.team.deposits if d is not None]
        if self.team.saver is not None and deposits:
            self._save(deposits, ended=True)

    @property
    def reached(self) -> DynamicsState | None:
        """The state that the part has reached which ended the run; None before its first step."""
        which = self.team.errors[0][0] if self.team.errors else 0
        part = self.parts[which]
        return None if part is None or part.driver is None else part.driver.with_names()

    def _save(self, deposits: list[Deposit], ended: bool = False) -> None:
        if self.team.saver is None:
            return
        states, parts = [], []
        for deposit in deposits:
            states += deposit.states
            rest = {name: value for name, value in deposit.rest.items() if name != "stream"}
            parts.append(rest | {"states": len(deposit.states)})
        # All parts wait, so nobody takes from the stream.
        rest = {"stream": self.stream.saved(), "parts": parts}
        step = max(int(d.states[-1].step_count) for d in deposits)
        self.team.saver.save(states, rest, ended, step)

    def _traffic(self, seconds: float) -> Traffic:
        found = [part for part in self.parts if part is not None]
        places = sum(part.places for part in found)
        return Traffic(
            systems=sum(part.traffic.systems for part in found),
            refills=sum(part.traffic.refills for part in found),
            steps=sum(part.traffic.steps for part in found),
            occupancy=sum(part.steps_taken for part in found) / max(places, 1),
            seconds=seconds,
            host_seconds=sum(part.traffic.host_seconds for part in found) / len(found),
            busy=[mine / max(seconds, 1e-9) for mine in self.seconds],
        )

    # -- in the threads of the parts -----------------------------------------------------------------

    def _work(self, part: int, saver: PartSaver) -> None:
        began, team = time.perf_counter(), self.team

        def call(where: Any, hook: Any, ctx: Any, stage: Any) -> None:
            seen, step = unsafe_replace(ctx, workflow=self.engine), int(ctx.step_count)
            team.in_caller(lambda: call_host(hook, seen, stage, step))

        def write(where: Any, hook: Any, rows: Any) -> None:
            def both() -> None:
                with user_errors(f"{name_of(hook)}.write", "hook"), note_errors(hook, "writing rows"):
                    hook.write(rows["row"])

            team.in_caller(both)

        wrap = Wrap(
            call,
            write,
            lambda hook, ctx: team.in_caller(lambda: hook.call_final(ctx)),
            lambda hook, rows, systems: team.in_caller(lambda: hook.write_final(rows, systems)),
        )
        engine = engine_of_part(self.engine, wrap, team.devices[part])
        saved = self.saved[part] if part < len(self.saved) else None
        if saved is None and self.first[part] is None:
            return
        if saved is not None:
            # All rows were written when it was saved; those of a part also have the step.
            device = engine.on_device()
            states = [unsafe_replace(s, records=empty_buffers(device, s)) for s in saved.states]
            saved = Saved(saved.at, on_device(states, team.devices[part]), saved.rest, saved.ended)
        sink: Any = under_name_of(self.sink, SharedSink)(self.sink, team)
        refilled = RefilledRun(engine, self.stream, sink, self.key, saver, saved, self.first[part])
        self.parts[part] = refilled
        refilled.run()
        refilled.save_end()
        self.seconds[part] = time.perf_counter() - began


def parts_of(saved: Saved) -> list[Saved]:
    """What a checkpoint has of each device; one of a run on one device has one part."""
    if "parts" not in saved.rest:
        return [saved]
    out, first = [], 0
    for part in saved.rest["parts"]:
        count = int(part["states"])
        states, first = saved.states[first : first + count], first + count
        out.append(Saved(saved.at, states, {**part, "stream": saved.rest["stream"]}, saved.ended))
    return out


def check(engine: Engine) -> None:
    """Check that the hooks fit a stream over devices.

    Raises:
        ValueError: naming the hook.
    """
    check_hooks(engine)
    check_follows(engine)


__all__ = ["StreamOverDevices", "check", "parts_of"]
