"""fabric_ext.receive_queue: an item reaches its receiver at once, once, and is never lost, whoever is cancelled.

`loop.call_soon(queue._put, x)` stands for the frame callback: code that runs in the loop, in no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from fabric_ext.receive_queue import ReceiveQueue, inherits_in_c

if TYPE_CHECKING:
    import random

Spawn = Callable[[Any], "asyncio.Task[Any]"]

variable = contextvars.ContextVar("variable", default="outside")


def c_task(coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), **options)


def python_task(coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    made: asyncio.Task[Any] = asyncio.tasks._PyTask(  # type: ignore[attr-defined]
        coroutine, loop=asyncio.get_running_loop(), **options
    )
    return made


def eager_task(coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    return c_task(coroutine, eager_start=True, **options)


KINDS: dict[str, Spawn] = {"C": c_task, "Python": python_task}
if sys.version_info >= (3, 12):
    KINDS["eager"] = eager_task


@pytest.fixture(params=list(KINDS))
def spawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Spawn:
    """Makes a task of the kind under test."""
    if request.param == "Python" and sys.version_info >= (3, 14):
        # From here on `current_task` knows C tasks only; a program whose tasks are Python's replaces it, too.
        def current_task(loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Task[Any] | None:
            task: asyncio.Task[Any] | None = asyncio.tasks._c_current_task(loop) or asyncio.tasks._py_current_task(loop)
            return task

        monkeypatch.setattr(asyncio, "current_task", current_task)
        monkeypatch.setattr(asyncio.tasks, "current_task", current_task)
    return KINDS[request.param]


@pytest.fixture(params=[False, True], ids=["", "debug"])
def debug(request: pytest.FixtureRequest) -> bool:
    """Whether the test switches the loop's debug mode on."""
    return bool(request.param)


def new_queue() -> ReceiveQueue:
    return ReceiveQueue(asyncio.get_running_loop())


async def outside(function: Callable[[], Any]) -> Any:
    """Call `function` where a frame callback runs: in the loop, in no task; return what it returned."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def call() -> None:
        try:
            done.set_result(function())
        except Exception as error:  # noqa: BLE001 (it is passed on)
            done.set_exception(error)

    loop.call_soon(call, context=contextvars.Context())
    return await done


async def settled() -> None:
    """Let everything run that is already due."""
    for _ in range(5):
        await asyncio.sleep(0)


# --- an item and its receiver ------------------------------------------------------------------------------


async def test_items_come_in_order() -> None:
    queue = new_queue()
    for number in range(20):
        queue._put(number)
    assert queue.queued == 20
    assert [await queue.recv() for _ in range(20)] == list(range(20))
    assert queue.queued == 0


async def test_an_item_that_is_there_costs_no_turn_of_the_loop() -> None:
    queue = new_queue()
    queue._put("ready")
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    assert await queue.recv() == "ready"
    assert not turns
    await asyncio.sleep(0)


async def test_a_waiting_task_is_stepped_inside_the_callback(spawn: Spawn, debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    queue = new_queue()
    steps: list[Any] = []

    async def receive() -> None:
        while (item := await queue.recv()) is not None:
            steps.append(item)

    task = spawn(receive())
    await settled()

    def deliver() -> list[Any]:
        for number in range(3):
            queue._put(number)
            steps.append("put")
        return list(steps)

    assert await outside(deliver) == [0, "put", 1, "put", 2, "put"]
    queue._finish()
    await task


async def test_a_task_is_not_stepped_while_another_one_runs(spawn: Spawn) -> None:
    queue = new_queue()
    task = spawn(queue.recv())
    await settled()
    queue._put(1)
    assert not task.done(), "stepped inside the test's own task"
    assert await task == 1


async def test_a_task_stepped_in_place_may_feed_another(spawn: Spawn) -> None:
    first, second = new_queue(), new_queue()
    running: list[Any] = []

    async def relay() -> None:
        item = await first.recv()
        second._put(item)
        running.append(asyncio.current_task())

    async def receive() -> Any:
        item = await second.recv()
        running.append(asyncio.current_task())
        return item

    relaying, receiving = spawn(relay()), spawn(receive())
    await settled()
    await outside(lambda: first._put("x"))
    assert await receiving == "x"
    await relaying
    assert running == [relaying, receiving]


@pytest.mark.parametrize("receiver", list(KINDS))
async def test_a_task_is_not_stepped_while_one_of_another_kind_runs(spawn: Spawn, receiver: str) -> None:
    queue = new_queue()
    steps: list[str] = []

    async def receive() -> None:
        await queue.recv()
        steps.append("received")

    async def feed() -> None:
        queue._put(1)
        steps.append("fed")

    receiving = KINDS[receiver](receive())
    await settled()
    await spawn(feed())
    await receiving
    assert steps == ["fed", "received"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_item_that_comes_while_the_loop_does_not_run(
    kind: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        queue = ReceiveQueue(loop)

        async def start() -> asyncio.Task[Any]:
            task = KINDS[kind](queue.recv())
            await settled()
            return task

        task = runner.run(start())
        queue._put(1)
        assert loop.run_until_complete(task) == 1


async def test_context_and_current_task_are_the_receivers_own(spawn: Spawn, debug: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    queue = new_queue()
    seen: list[Any] = []

    async def receive() -> None:
        variable.set("inside")
        for _ in range(3):
            await queue.recv()
            seen.append((variable.get(), asyncio.current_task(), asyncio.get_running_loop()))
            variable.set("inside")

    task = spawn(receive())
    await settled()

    def deliver() -> tuple[str, Any]:
        queue._put(1)
        queue._put(2)
        return variable.get(), asyncio.current_task()

    assert await outside(deliver) == ("outside", None)
    queue._put(3)  # while a task runs: scheduled, in the same context
    await task
    assert seen == [("inside", task, loop)] * 3


async def test_a_context_that_is_in_use_is_not_entered_twice(spawn: Spawn) -> None:
    loop = asyncio.get_running_loop()
    queue = new_queue()
    context = contextvars.copy_context()

    async def receive() -> Any:
        return await queue.recv(), variable.get()

    task = spawn(receive(), context=context) if spawn is not eager_task else spawn(receive())  # type: ignore[call-arg]
    await settled()
    loop.call_soon(queue._put, 1, context=context)
    assert await task == (1, "outside")


async def test_a_task_that_raises_in_place_harms_nobody_else(spawn: Spawn) -> None:
    queue = new_queue()

    async def receive() -> None:
        await queue.recv()
        raise LookupError("mine")

    task = spawn(receive())
    await settled()
    await outside(lambda: queue._put(1))
    assert task.done()
    with pytest.raises(LookupError, match="mine"):
        await task


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_is_to_stop_the_program_goes_on_to_the_loop(spawn: Spawn, kind: type[BaseException]) -> None:
    queue = new_queue()

    async def receive() -> None:
        await queue.recv()
        raise kind

    def deliver() -> str:
        with pytest.raises(kind):
            queue._put(1)
        return "went on"

    task = spawn(receive())
    await settled()
    assert await outside(deliver) == "went on"
    assert isinstance(task.exception(), kind)


async def test_a_task_stepped_in_place_may_await_anything_next(spawn: Spawn) -> None:
    queue = new_queue()
    event = asyncio.Event()

    async def receive() -> Any:
        item = await queue.recv()
        await asyncio.sleep(0)
        await event.wait()
        async with asyncio.timeout(20):
            return item, await queue.recv()

    task = spawn(receive())
    await settled()
    await outside(lambda: queue._put(1))
    event.set()
    queue._put(2)
    assert await task == (1, 2)


async def test_a_task_stepped_in_place_may_make_tasks(spawn: Spawn) -> None:
    queue = new_queue()

    async def child(number: int) -> int:
        assert asyncio.current_task() is not parent
        return number

    async def receive() -> int:
        await queue.recv()
        return await spawn(child(7))

    parent = spawn(receive())
    await settled()
    await outside(lambda: queue._put(1))
    assert await parent == 7


@pytest.mark.parametrize("item", [(), (1, 2), StopIteration(3), ValueError("x"), None, KeyError, b"", 0])
async def test_any_object_can_be_an_item(item: Any, spawn: Spawn) -> None:
    queue = new_queue()
    queue._put(item)
    assert await queue.recv() is item
    queue._put(item)
    assert await spawn(queue.recv()) is item
    task = spawn(queue.recv())
    await settled()
    await outside(lambda: queue._put(item))
    assert await task is item


async def test_receiving_while_an_exception_is_handled(spawn: Spawn) -> None:
    queue = new_queue()

    async def receive() -> list[Any]:
        try:
            raise LookupError
        except LookupError as error:
            got = [await queue.recv(), await queue.recv(), sys.exc_info()[1] is error]
        return [*got, sys.exc_info()[1]]

    queue._put(1)
    task = spawn(receive())
    await settled()
    await outside(lambda: queue._put(2))
    assert await task == [1, 2, True, None]


def result_of(recv: Any) -> StopIteration:
    """What one step of a ready `recv()` raises, as a coroutine written by hand sees it."""
    try:
        recv.send(None)
    except StopIteration as stop:
        return stop
    raise AssertionError("it waits")


async def test_a_stop_iteration_that_somebody_keeps_does_not_change() -> None:
    """Those that nobody keeps serve again."""
    queue = new_queue()
    for item in ("a", "b", "c"):
        queue._put(item)
    kept = [result_of(queue.recv()), result_of(queue.recv())]
    assert await queue.recv() == "c"
    assert [stop.value for stop in kept] == ["a", "b"]
    queue._put("d")
    with pytest.raises(StopIteration) as caught:
        queue.recv().__await__().__next__()
    queue._put("e")
    assert await queue.recv() == "e"
    assert caught.value.value == "d"


# --- what asyncio's tools make of it -----------------------------------------------------------------------


async def test_recv_is_a_coroutine_to_asyncio() -> None:
    queue = new_queue()
    recv = queue.recv()
    assert inspect.isawaitable(recv)
    assert asyncio.iscoroutine(recv)
    assert not asyncio.isfuture(recv)
    recv.close()


async def test_create_task_gather_wait_and_task_group(debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    queues = [new_queue() for _ in range(3)]
    loop = asyncio.get_running_loop()

    task = asyncio.create_task(queues[0].recv(), name="named")
    assert "named" in repr(task)
    loop.call_soon(queues[0]._put, 1)
    assert await task == 1

    for number, queue in enumerate(queues):
        loop.call_soon(queue._put, number)
    assert await asyncio.gather(*(queue.recv() for queue in queues)) == [0, 1, 2]

    tasks = {asyncio.create_task(queue.recv()) for queue in queues}
    loop.call_soon(queues[1]._put, "first")
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [each.result() for each in done] == ["first"]
    for each in pending:
        each.cancel()
    await asyncio.wait(pending)

    async with asyncio.TaskGroup() as group:
        members = [group.create_task(queue.recv()) for queue in queues]
        for number, queue in enumerate(queues):
            loop.call_soon(queue._put, number)
    assert [member.result() for member in members] == [0, 1, 2]


async def test_a_task_group_that_fails_cancels_its_receivers() -> None:
    queue = new_queue()

    async def fail() -> None:
        raise LookupError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(queue.recv())
            group.create_task(fail())
    queue._put("kept")
    assert await queue.recv() == "kept"


async def test_wait_for_and_timeout(debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    queue = new_queue()
    loop = asyncio.get_running_loop()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.recv(), 0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await queue.recv()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.recv(), 0)
    loop.call_soon(queue._put, 1)
    assert await asyncio.wait_for(queue.recv(), 20) == 1
    queue._put(2)
    assert await asyncio.wait_for(queue.recv(), 20) == 2
    async with asyncio.timeout(20):
        loop.call_soon(queue._put, 3)
        assert await queue.recv() == 3


async def test_shield(spawn: Spawn) -> None:
    queue = new_queue()
    receiver = asyncio.ensure_future(queue.recv())

    async def wait() -> Any:
        return await asyncio.shield(receiver)

    task = spawn(wait())
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not receiver.done()
    await outside(lambda: queue._put(1))
    assert await receiver == 1
    asyncio.get_running_loop().call_soon(queue._put, 2)
    assert await asyncio.shield(queue.recv()) == 2


async def test_from_another_thread() -> None:
    queue = new_queue()
    loop = asyncio.get_running_loop()

    def work() -> Any:
        future = asyncio.run_coroutine_threadsafe(queue.recv(), loop)
        loop.call_soon_threadsafe(queue._put, 1)
        return future.result(10)

    assert await asyncio.to_thread(work) == 1


async def test_what_a_debugger_asks_of_a_waiting_task(spawn: Spawn) -> None:
    queue = new_queue()
    direct, nested = spawn(queue.recv()), new_queue()

    async def receive() -> Any:
        return await nested.recv()

    inside = spawn(receive())
    await settled()
    for task in (direct, inside):
        repr(task)
        task.get_stack()
        task.get_coro()
    await outside(lambda: (queue._put(1), nested._put(2)))
    assert [await direct, await inside] == [1, 2]


# --- one receiver at a time --------------------------------------------------------------------------------


async def test_a_second_receiver_is_refused_and_the_first_undisturbed(spawn: Spawn) -> None:
    queue = new_queue()
    task = spawn(queue.recv())
    await settled()
    for _ in range(2):
        with pytest.raises(Exception, match="another task is already waiting in recv"):
            await queue.recv()
    await outside(lambda: queue._put(1))
    assert await task == 1
    queue._put(2)
    assert await queue.recv() == 2


async def test_a_second_receiver_is_refused_also_between_arrival_and_wakeup(spawn: Spawn) -> None:
    queue = new_queue()
    task = spawn(queue.recv())
    await settled()
    queue._put(1)  # the task is scheduled; the item is as good as its own
    with pytest.raises(Exception, match="another task"):
        await queue.recv()
    assert await task == 1


async def test_a_recv_is_awaited_once() -> None:
    queue = new_queue()
    queue._put(1)
    queue._put(2)
    recv = queue.recv()
    assert await recv == 1
    with pytest.raises(RuntimeError, match="already been awaited"):
        await recv
    assert queue.queued == 1


async def test_a_recv_that_is_never_awaited_takes_nothing() -> None:
    queue = new_queue()
    queue.recv()
    queue._put(1)
    queue.recv().close()
    assert await queue.recv() == 1


async def test_a_coroutine_that_is_thrown_away_while_it_waits() -> None:
    queue = new_queue()

    async def receive() -> None:
        await queue.recv()

    waiting = receive()
    waiting.send(None)
    waiting.close()
    queue._put(1)
    assert await queue.recv() == 1


# --- cancellation ------------------------------------------------------------------------------------------


async def test_cancelled_before_the_item_comes(spawn: Spawn, debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    queue = new_queue()
    task = spawn(queue.recv())
    await settled()
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("why",)
    queue._put(1)
    assert await queue.recv() == 1


async def test_cancelled_in_the_turn_in_which_the_item_comes(spawn: Spawn) -> None:
    queue = new_queue()
    for cancel_first in (True, False):
        task = spawn(queue.recv())
        await settled()
        if cancel_first:
            task.cancel()
            queue._put("kept")
        else:
            queue._put("kept")  # in a task: the wakeup is only scheduled
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue.queued == 1
        assert await queue.recv() == "kept"


async def test_cancelled_after_it_was_stepped_in_place(spawn: Spawn) -> None:
    queue = new_queue()
    task = spawn(queue.recv())
    await settled()

    def deliver_and_cancel() -> bool:
        queue._put("taken")
        return task.cancel()

    assert await outside(deliver_and_cancel) is False
    assert await task == "taken"
    assert queue.queued == 0


async def test_cancelled_before_its_first_step(spawn: Spawn) -> None:
    queue = new_queue()
    queue._put("kept")
    task = spawn(queue.recv())
    task.cancel()
    if spawn is eager_task:
        assert await task == "kept"
        return
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await queue.recv() == "kept"


async def test_another_receiver_takes_over_at_once_after_a_cancel(spawn: Spawn) -> None:
    queue = new_queue()
    first = spawn(queue.recv())
    await settled()
    first.cancel()
    second = spawn(queue.recv())
    await settled()
    await outside(lambda: queue._put(1))
    assert await second == 1
    assert first.cancelled()


@pytest.mark.parametrize("comes", ["before", "after"])
async def test_an_item_goes_to_who_asks_while_a_cancelled_task_has_not_been_told(spawn: Spawn, comes: str) -> None:
    queue = new_queue()
    first = spawn(queue.recv())
    await settled()
    first.cancel()
    if comes == "before":
        queue._put(1)
    else:
        asyncio.get_running_loop().call_soon(queue._put, 1)
    assert await queue.recv() == 1  # asked for in the very step in which the other was cancelled
    with pytest.raises(asyncio.CancelledError):
        await first
    await outside(lambda: queue._put(2))
    assert await queue.recv() == 2


async def test_a_subclass_iterates_by_its_own_or_by_what_it_inherits() -> None:
    @inherits_in_c
    class Inheriting(ReceiveQueue):
        pass

    @inherits_in_c
    class Own(ReceiveQueue):
        def __anext__(self) -> Any:
            return asyncio.sleep(0, "its own")

    for made, expected in ((Inheriting(asyncio.get_running_loop()), 1), (Own(asyncio.get_running_loop()), "its own")):
        made._put(1)
        async for item in made:
            assert item == expected
            break


def test_what_a_class_inherits_from_a_compiled_one_it_has_as_its_own() -> None:
    @inherits_in_c
    class Inheriting(ReceiveQueue):
        def _finish(self, error: BaseException | None = None) -> None:
            pass

    class Derived(Inheriting):
        pass

    loop = asyncio.new_event_loop()
    assert Inheriting.recv.__objclass__ is Inheriting  # type: ignore[attr-defined]
    assert inspect.isfunction(Inheriting._finish)
    for name in ("__reduce__", "__anext__", "__aiter__", "queued"):
        assert name not in vars(Inheriting)
    for kind in (ReceiveQueue, Inheriting, Derived):
        queue = kind(loop)
        queue._put("item")
        with pytest.raises(StopIteration) as stopped:
            queue.recv().send(None)
        assert stopped.value.value == "item"
    with pytest.raises(TypeError):
        Inheriting.recv(ReceiveQueue(loop))  # type: ignore[arg-type]
    loop.close()


async def test_a_task_that_swallows_its_cancellation_receives_on(spawn: Spawn) -> None:
    queue = new_queue()

    async def receive() -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await queue.recv()
        return await queue.recv()

    task = spawn(receive())
    await settled()
    task.cancel()
    await settled()
    await outside(lambda: queue._put(1))
    assert await task == 1


async def test_cancelled_by_itself_while_it_is_stepped_in_place(spawn: Spawn) -> None:
    queue = new_queue()

    async def receive() -> None:
        assert await queue.recv() == 1
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await queue.recv()  # an item is there: no cancellation point, as with any ready awaitable
        await queue.recv()

    task = spawn(receive())
    await settled()
    queue._put(1)
    queue._put(2)
    with pytest.raises(asyncio.CancelledError):
        await task
    queue._put(3)
    assert await queue.recv() == 3


async def test_a_timeout_that_strikes_with_the_item_loses_nothing() -> None:
    queue = new_queue()
    loop = asyncio.get_running_loop()
    sent = received = 0
    for round_ in range(60):
        delay = 0.001
        loop.call_at(loop.time() + delay, queue._put, round_)
        sent += 1
        with contextlib.suppress(TimeoutError):
            if round_ % 2:
                item = await asyncio.wait_for(queue.recv(), delay)
            else:
                async with asyncio.timeout(delay):
                    item = await queue.recv()
            assert item == received
            received += 1
    while received < sent:
        assert await queue.recv() == received
        received += 1


async def test_random_receivers_and_cancellations_lose_nothing(spawn: Spawn, rng: random.Random) -> None:
    queue = new_queue()
    loop = asyncio.get_running_loop()
    received: list[int] = []
    sent = 0
    task: asyncio.Task[Any] | None = None

    def put() -> None:
        nonlocal sent
        queue._put(sent)
        sent += 1

    async def receive(count: int) -> None:
        while count:
            count -= 1
            received.append(await queue.recv())

    for _ in range(3000):
        action = rng.randrange(6)
        if action == 0:
            put()
        elif action == 1:
            loop.call_soon(put)
        elif action == 2 and (task is None or task.done()):
            task = spawn(receive(rng.randrange(1, 4)))
        elif action == 3 and task is not None:
            task.cancel()
        elif action == 4:
            await asyncio.sleep(0)
        elif task is not None and task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await task
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await settled()
    while queue.queued:
        received.append(await queue.recv())
    assert sent > 500
    assert received == list(range(sent))


# --- the end -----------------------------------------------------------------------------------------------


async def test_what_is_queued_comes_before_the_end() -> None:
    queue = new_queue()
    queue._put(1)
    queue._finish()
    assert await queue.recv() == 1
    assert await queue.recv() is None
    assert await queue.recv() is None


async def test_the_end_wakes_a_receiver(spawn: Spawn) -> None:
    for in_place in (True, False):
        queue = new_queue()
        task = spawn(queue.recv())
        await settled()
        if in_place:
            await outside(queue._finish)
        else:
            queue._finish()
        assert await task is None


async def test_an_error_is_raised_after_what_is_queued_and_each_time(spawn: Spawn) -> None:
    queue = new_queue()
    error = ConnectionError("lost")
    error.__cause__ = LookupError("why")
    queue._put(1)
    queue._finish(error)
    assert await queue.recv() == 1
    depths = []
    for _ in range(3):
        with pytest.raises(ConnectionError, match="lost") as caught:
            await spawn(queue.recv())
        assert caught.value is not error, "what is raised keeps its frames alive"
        assert caught.value.__cause__ is error.__cause__
        depths.append(len(inspect.getinnerframes(caught.tb)))
    assert len(set(depths)) == 1, "each raise adds to the traceback of the one before"
    assert error.__traceback__ is None
    waiting = new_queue()
    task = spawn(waiting.recv())
    await settled()
    await outside(lambda: waiting._finish(error))
    with pytest.raises(ConnectionError):
        await task


async def test_only_the_first_end_counts() -> None:
    queue = new_queue()
    queue._finish()
    queue._finish(ConnectionError("late"))
    assert await queue.recv() is None


async def test_async_for_until_the_end(spawn: Spawn) -> None:
    queue = new_queue()

    async def collect() -> list[Any]:
        return [item async for item in queue]

    task = spawn(collect())
    await settled()
    await outside(lambda: [queue._put(number) for number in range(5)])
    await outside(queue._finish)
    assert await task == [0, 1, 2, 3, 4]
    assert [item async for item in queue] == []
    with pytest.raises(StopAsyncIteration):
        await anext(queue)


async def test_async_for_raises_what_ended_it() -> None:
    queue = new_queue()
    queue._put(1)
    queue._finish(ConnectionError("lost"))
    assert await anext(queue) == 1
    with pytest.raises(ConnectionError, match="lost"):
        await anext(queue)


async def test_none_as_an_item_does_not_end_async_for() -> None:
    queue = new_queue()
    queue._put(None)
    queue._put(1)
    queue._finish()
    assert [item async for item in queue] == [None, 1]


# --- nothing is left behind --------------------------------------------------------------------------------


async def test_items_and_tasks_are_let_go(spawn: Spawn) -> None:
    class Item:
        pass

    queue = new_queue()
    watched: list[weakref.ref[Any]] = []
    for _ in range(5):
        task = spawn(queue.recv())
        await settled()

        def deliver() -> None:
            item = Item()
            watched.append(weakref.ref(item))
            queue._put(item)

        await outside(deliver)
        await task
        watched.append(weakref.ref(task))
        cancelled = spawn(queue.recv())
        await settled()
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        watched.append(weakref.ref(cancelled))
        del task, cancelled
    await settled()
    gc.collect()
    assert [reference() for reference in watched if reference() is not None] == []


async def test_the_last_item_is_let_go_while_its_receiver_waits_for_the_next(spawn: Spawn) -> None:
    class Item:
        pass

    queue = new_queue()

    async def receive() -> None:
        while await queue.recv() is not None:
            pass

    task = spawn(receive())
    await settled()

    def deliver() -> Any:
        item = Item()
        queue._put(item)
        return weakref.ref(item)

    for _ in range(3):
        watched = await outside(deliver)
        assert watched() is None
    queue._finish()
    await task


async def test_a_queue_is_let_go_with_its_receiver() -> None:
    class Watched(ReceiveQueue):
        __slots__ = ("__weakref__",)

    watched_queue = Watched(asyncio.get_running_loop())

    async def receive(queue: ReceiveQueue) -> None:
        await queue.recv()

    task = asyncio.create_task(receive(watched_queue))
    await settled()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    watched = weakref.ref(watched_queue)
    del watched_queue, task
    await settled()
    gc.collect()
    assert watched() is None


# --- an asyncio that is not as expected --------------------------------------------------------------------

PROGRAM = """
import asyncio, warnings

{change}

async def main():
    importing = asyncio.current_task()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from fabric_ext.receive_queue import ReceiveQueue
    assert asyncio.current_task() is importing
    print([each.category.__name__ for each in caught])

    queue = ReceiveQueue(asyncio.get_running_loop())
    seen = []

    async def receive():
        while (item := await queue.recv()) is not None:
            seen.append(item)

    def deliver():
        for number in range(3):
            queue._put(number)
            seen.append("put")
        queue._finish()

    task = asyncio.create_task(receive())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(deliver)
    await task
    print(seen)

asyncio.run(main())
"""

DEBUG_MODE = {"PYTHONDEVMODE", "PYTHONASYNCIODEBUG"}
NOBODY_RUNS = "asyncio.tasks._current_tasks = {}; asyncio.tasks._c_current_task = lambda loop: None"
NO_CALLBACKS = """
class Future(asyncio.Future):
    _callbacks = None

asyncio.Future = Future
"""
IN_PLACE = "[]\n[0, 'put', 1, 'put', 2, 'put']\n"
PLAIN = "['RuntimeWarning']\n['put', 'put', 'put', 0, 1, 2]\n"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param("", IN_PLACE, id="as it is"),
        pytest.param(NOBODY_RUNS, PLAIN, id="nobody ever runs"),
        pytest.param(NO_CALLBACKS, PLAIN, id="futures do not show their callbacks"),
    ],
)
def test_where_asyncio_is_not_as_expected_tasks_are_resumed_a_turn_later(change: str, expected: str) -> None:
    """Imported inside a task, too."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(change=change)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            # Debug mode would report what a busy machine makes slow.
            **{name: value for name, value in os.environ.items() if name not in DEBUG_MODE},
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert (done.stdout, done.stderr) == (expected, "")
