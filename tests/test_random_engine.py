"""Whatever is done to an engine, in whatever order, the figures are those of a model of SQLAlchemy's pool."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from garbage import set_aside
from random_driver import Caller, attempt, handle, invalidate_softly, result, use, use_again
from random_engine import EXPECTED, RECYCLE, EngineMachine
from random_model import AT_CHECKOUT, STRANDS, RefusedError

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
WHICH = st.integers(0, 5)
TROUBLES = st.lists(st.sampled_from(("refused", "set-up fails", *AT_CHECKOUT)), min_size=1, max_size=3)


class Machine(EngineMachine):
    """Drives one engine and the model side by side."""

    @initialize(
        size=st.integers(1, 2),
        overflow=st.integers(0, 1),
        pre_ping=st.booleans(),
        lifo=st.booleans(),
        early=st.booleans(),
        eager=st.booleans(),
    )
    def make(self, *, early: bool, eager: bool, **options: Any) -> None:
        """Make the engine; *early*: watched before its application listens; *eager*: read after every step."""
        self.eager = eager
        self.set_up(**options)
        if early:
            self.watch()
        self.listen()
        self.checkout(times=2)

    # Watching

    @precondition(lambda self: self.watched is None and not self.strangers())
    @rule()
    def watch(self) -> None:
        """Begin to watch, with whatever is open adopted."""
        self.begin_watch()
        self.model.watch()

    @precondition(lambda self: self.watched is not None and self.model.open)
    @rule()
    def unwatch(self) -> None:
        """Stop watching."""
        self.end_watch()

    @precondition(lambda self: self.watched is not None and not self.eager)
    @rule()
    def read(self) -> None:
        """A reader comes by."""
        self.compare()

    @invariant()
    def nothing_is_lost(self) -> None:
        """The driver has the connections that the model has, and an eager reader agrees."""
        assert self.model.alive == self.driver.open()
        if self.eager and self.watched is not None:
            self.compare()

    # Checking out

    @precondition(lambda self: not self.model.full)
    @rule(times=st.integers(1, 3), through_clone=st.booleans())
    def checkout(self, *, times: int = 1, through_clone: bool = False) -> None:
        """Check connections out while there are any."""
        for _ in range(times):
            if not self.model.full:
                self.checkout_in_trouble(troubles=[], through_clone=through_clone)

    @precondition(lambda self: not self.model.full)
    @rule(troubles=TROUBLES, through_clone=st.booleans())
    def checkout_in_trouble(self, *, troubles: list[str], through_clone: bool) -> None:
        """Try to check a connection out."""
        engine = self.engine.execution_options(of="clone") if through_clone else self.engine
        self.troubles.extend(troubles)
        connection = self.runner.run(attempt(engine))
        self.troubles.clear()
        try:
            place = self.model.checkout(list(troubles))
        except RefusedError as refusal:
            self.model.failures[refusal.args[0]] += 1
            assert connection is None
            if STRANDS:
                gc.collect()
        else:
            assert connection is not None
            self.take(Caller(connection, place))

    @precondition(lambda self: not self.model.full and self.some(lost=True))
    @rule(which=WHICH)
    def use_again(self, which: int) -> None:
        """A Connection that lost its connection gets another."""
        caller = self.one(which, lost=True)
        caller.place = self.model.checkout([])
        self.runner.run(use_again(caller.connection))
        if caller.place.dead:
            self.find_lost(caller)
        else:
            self.handles[caller.place] = handle(caller.connection)

    @precondition(lambda self: self.model.full)
    @rule()
    def wait_in_vain(self) -> None:
        """A caller is cancelled in the queue, and another one times out."""
        self.runner.run(self.cancel_connect(self.queued))
        pool: Any = self.engine.pool
        pool._timeout, waits = 0, pool._timeout
        assert None is self.runner.run(attempt(self.engine))
        pool._timeout = waits
        self.model.waits += 2
        self.model.failures.update(("cancelled", "timeout"))

    @precondition(lambda self: self.model.connects and self.model.open)
    @rule()
    def cancel_who_connects(self) -> None:
        """A caller is cancelled while a connection is established for it."""
        self.driver.frozen = True
        self.runner.run(self.cancel_connect(lambda: self.driver.dialing))
        self.driver.frozen = self.driver.dialing = False
        self.model.cancel_connecting()
        self.model.failures["cancelled"] += 1

    @precondition(lambda self: self.model.full)
    @rule(
        which=WHICH,
        way=st.sampled_from(("close", "invalidate", "detach", "lose", "close_in_vain", "drop")),
        dispose=st.booleans(),
        rewatch=st.booleans(),
        read=st.booleans(),
    )
    def hand_over(self, *, which: int, way: str, dispose: bool, rewatch: bool, read: bool) -> None:
        """A caller who waits gets the place that another gives up, even in a pool that is disposed of meanwhile."""
        model, pool = self.model, self.model.pool
        waiting = self.runner.run(self.wait())
        model.waits, pool.awaited = model.waits + 1, True
        if dispose:
            self.dispose(close=True, through_clone=False)
        changed = rewatch and self.watched is not None and not self.strangers()
        if changed:
            assert self.watched is not None
            self.watched.close()
            self.begin_watch()
        if read and self.watched is not None:
            assert (0 if changed else 1) == self.watched.snapshot().pending_checkouts
        # Not kept by us: what is dropped must be found by the garbage collector.
        self.callers[:] = self.callers[which:] + self.callers[:which]
        self.callers.sort(key=lambda each: each.place is None or each.place.pool is not pool)
        getattr(self, way)(0)
        if read and self.watched is not None:
            self.watched.snapshot()
        connection = self.runner.run(result(waiting))
        self.take(Caller(connection, model.checkout([], pool)))
        pool.awaited = False
        if changed:
            model.watch()

    # Using

    @precondition(lambda self: self.some())
    @rule(which=WHICH, statement=st.sampled_from(("SELECT 1", "COMMIT", "ROLLBACK", "SELECT nothing")))
    def use(self, which: int, statement: str) -> None:
        """Nothing that goes well, and no ordinary error, changes who has what."""
        self.runner.run(use(self.one(which).connection, statement))

    @precondition(lambda self: self.some())
    @rule(which=WHICH)
    def invalidate_softly(self, which: int) -> None:
        """The application asks for a connection to be replaced at its next checkout."""
        caller = self.one(which)
        self.runner.run(invalidate_softly(caller.connection))
        assert caller.place is not None
        self.model.invalidations["soft"] += 1
        caller.place.soft = self.model.now()

    @precondition(lambda self: self.model.open)
    @rule()
    def age(self) -> None:
        """Time passes, more than pool_recycle."""
        for record in list(self.records):
            record.starttime -= 2 * RECYCLE
        self.model.age()

    @precondition(lambda self: self.idle())
    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        """A connection is lost while nobody has it."""
        place = self.idle()[which % len(self.idle())]
        self.runner.run(self.handles[place].close())
        place.dead = True

    @precondition(lambda self: self.some())
    @rule(
        which=WHICH,
        way=st.sampled_from(("age", "silence", "invalidate_softly", "lose", "kill", "kill", "dispose")),
        attempts=st.lists(st.just([]) | TROUBLES, max_size=2),
    )
    def ask_for_condemned(self, which: int, way: str, attempts: list[list[str]]) -> None:
        """A connection is given back, and the next callers will not have it."""
        if way == "invalidate_softly":
            self.invalidate_softly(which)
        self.close(self.callers.index(self.one(which)))
        if way == "age":
            self.age()
        elif way == "silence" and self.watched is not None:
            self.silence()
        elif way == "dispose":
            self.dispose(close=which % 2 > 0, through_clone=False)
        elif way == "lose" and self.some():
            self.lose(which)
        elif way == "kill" and self.idle():
            self.kill(which)
        for troubles in (*attempts, []):
            if not self.model.full:
                self.checkout_in_trouble(troubles=troubles, through_clone=False)

    # Giving back

    @precondition(lambda self: self.callers)
    @rule(which=WHICH, times=st.integers(1, 3))
    def close_some(self, which: int, times: int) -> None:
        """Callers give back what they have."""
        for _ in range(min(times, len(self.callers))):
            self.close(which)

    @precondition(lambda self: self.some())
    @rule(which=WHICH, way=st.sampled_from(("lose", "cancel_a_statement", "invalidate")))
    def spoil(self, which: int, way: str) -> None:
        """A caller's connection is closed under it."""
        getattr(self, way)(which)

    @precondition(lambda self: self.some())
    @rule(which=WHICH, way=st.sampled_from(("close_in_vain", "detach", "drop")))
    def part(self, which: int, way: str) -> None:
        """A caller parts with a connection in another way."""
        getattr(self, way)(which)

    @precondition(lambda self: self.model.open)
    @rule(close=st.booleans(), through_clone=st.booleans())
    def dispose(self, *, close: bool, through_clone: bool) -> None:
        """The engine begins a new pool."""
        engine = self.engine.execution_options(of="clone") if through_clone else self.engine
        self.runner.run(engine.dispose(close=close))
        self.model.dispose(close=close)


@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
def test_any_order(tmp_path: Path) -> None:
    """Whatever happens in whatever order, every figure is the model's, and so is the number of open handles."""
    Machine.database = tmp_path / "random.db"
    Machine.seen.clear()
    _meet_what_is_rare()
    try:
        run_state_machine_as_test(Machine, settings=SETTINGS)
    finally:
        # What examples have left aside, less what is garbage now.
        gc.unfreeze()
        set_aside()
    assert set() == {each for each in EXPECTED if not Machine.seen[each]}


def _meet_what_is_rare() -> None:
    """Go by hand to where random examples, which no two versions of Hypothesis make alike, may not come."""
    machine = Machine()
    machine.make(size=2, overflow=1, pre_ping=True, lifo=False, early=True, eager=True)
    try:
        machine.close_some(which=0, times=2)
        machine.kill(which=0)
        machine.checkout(times=3)
        machine.part(which=0, way="detach")
        machine.part(which=1, way="drop")
        machine.close_some(which=0, times=1)
        machine.checkout(times=3)
        machine.close_some(which=0, times=3)
        for way in ("silence", "invalidate_softly", "age"):
            machine.checkout(times=2)
            machine.ask_for_condemned(which=0, way=way, attempts=[])
    finally:
        machine.teardown()


def test_lost_connection_of_a_pool_disposed_of(tmp_path: Path) -> None:
    """What it condemns is the engine's present pool, once, and not the one that it came from."""
    Machine.database = tmp_path / "random.db"
    machine = Machine()
    machine.make(size=1, overflow=1, pre_ping=False, lifo=False, early=True, eager=True)
    try:
        machine.close(0)
        machine.dispose(close=True, through_clone=False)
        machine.checkout()
        machine.lose(1)
        machine.lose(0)
    finally:
        machine.teardown()


def test_replacement_that_cannot_be_set_up(tmp_path: Path) -> None:
    """It is closed as failed, also where the connection it replaces was refused at the same checkout."""
    Machine.database = tmp_path / "random.db"
    machine = Machine()
    machine.make(size=1, overflow=1, pre_ping=False, lifo=False, early=True, eager=True)
    try:
        machine.close_some(which=0, times=2)
        machine.checkout_in_trouble(troubles=["refuses", "set-up fails"], through_clone=False)
        machine.nothing_is_lost()
    finally:
        machine.teardown()
