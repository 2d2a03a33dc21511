"""fabric_ext.inbox: an item reaches its receiver at once, once, and is never lost, whoever is cancelled.

`loop.call_soon(inbox.put_item, x)` stands for the frame callback: code that runs in the loop, in no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from fabric_ext.inbox import Inbox, iterates_in_c

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
def spawn(request: pytest.FixtureRequest) -> Spawn:
    """Makes a task of the kind under test."""
    return KINDS[request.param]


@pytest.fixture(params=[False, True], ids=["", "debug"])
def debug(request: pytest.FixtureRequest) -> bool:
    """Whether the test switches the loop's debug mode on."""
    return bool(request.param)


def new_inbox() -> Inbox[Any]:
    return Inbox(asyncio.get_running_loop())


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
    inbox = new_inbox()
    for number in range(20):
        inbox.put_item(number)
    assert inbox.queued == 20
    assert [await inbox.recv() for _ in range(20)] == list(range(20))
    assert inbox.queued == 0


async def test_an_item_that_is_there_costs_no_turn_of_the_loop() -> None:
    inbox = new_inbox()
    inbox.put_item("ready")
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    assert await inbox.recv() == "ready"
    assert not turns
    await asyncio.sleep(0)


async def test_a_waiting_task_is_stepped_inside_the_callback(spawn: Spawn, debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    inbox = new_inbox()
    steps: list[Any] = []

    async def receive() -> None:
        while (item := await inbox.recv()) is not None:
            steps.append(item)

    task = spawn(receive())
    await settled()

    def deliver() -> list[Any]:
        for number in range(3):
            inbox.put_item(number)
            steps.append("put")
        return list(steps)

    assert await outside(deliver) == [0, "put", 1, "put", 2, "put"]
    inbox.end()
    await task


async def test_a_task_is_not_stepped_while_another_one_runs(spawn: Spawn) -> None:
    inbox = new_inbox()
    task = spawn(inbox.recv())
    await settled()
    inbox.put_item(1)
    assert not task.done(), "stepped inside the test's own task"
    assert await task == 1


async def test_a_task_stepped_in_place_may_feed_another(spawn: Spawn) -> None:
    first, second = new_inbox(), new_inbox()
    running: list[Any] = []

    async def relay() -> None:
        item = await first.recv()
        second.put_item(item)
        running.append(asyncio.current_task())

    async def receive() -> Any:
        item = await second.recv()
        running.append(asyncio.current_task())
        return item

    relaying, receiving = spawn(relay()), spawn(receive())
    await settled()
    await outside(lambda: first.put_item("x"))
    assert await receiving == "x"
    await relaying
    assert running == [relaying, receiving]


async def test_context_and_current_task_are_the_receivers_own(spawn: Spawn, debug: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    inbox = new_inbox()
    seen: list[Any] = []

    async def receive() -> None:
        variable.set("inside")
        for _ in range(3):
            await inbox.recv()
            seen.append((variable.get(), asyncio.current_task(), asyncio.get_running_loop()))
            variable.set("inside")

    task = spawn(receive())
    await settled()

    def deliver() -> tuple[str, Any]:
        inbox.put_item(1)
        inbox.put_item(2)
        return variable.get(), asyncio.current_task()

    assert await outside(deliver) == ("outside", None)
    inbox.put_item(3)  # while a task runs: scheduled, in the same context
    await task
    assert seen == [("inside", task, loop)] * 3


async def test_a_context_that_is_in_use_is_not_entered_twice(spawn: Spawn) -> None:
    loop = asyncio.get_running_loop()
    inbox = new_inbox()
    context = contextvars.copy_context()

    async def receive() -> Any:
        return await inbox.recv(), variable.get()

    task = spawn(receive(), context=context) if spawn is not eager_task else spawn(receive())  # type: ignore[call-arg]
    await settled()
    loop.call_soon(inbox.put_item, 1, context=context)
    assert await task == (1, "outside")


async def test_a_task_that_raises_in_place_harms_nobody_else(spawn: Spawn) -> None:
    inbox = new_inbox()

    async def receive() -> None:
        await inbox.recv()
        raise LookupError("mine")

    task = spawn(receive())
    await settled()
    await outside(lambda: inbox.put_item(1))
    assert task.done()
    with pytest.raises(LookupError, match="mine"):
        await task


async def test_a_task_stepped_in_place_may_await_anything_next(spawn: Spawn) -> None:
    inbox = new_inbox()
    event = asyncio.Event()

    async def receive() -> Any:
        item = await inbox.recv()
        await asyncio.sleep(0)
        await event.wait()
        async with asyncio.timeout(5):
            return item, await inbox.recv()

    task = spawn(receive())
    await settled()
    await outside(lambda: inbox.put_item(1))
    event.set()
    inbox.put_item(2)
    assert await task == (1, 2)


async def test_a_task_stepped_in_place_may_make_tasks(spawn: Spawn) -> None:
    inbox = new_inbox()

    async def child(number: int) -> int:
        assert asyncio.current_task() is not parent
        return number

    async def receive() -> int:
        await inbox.recv()
        return await spawn(child(7))

    parent = spawn(receive())
    await settled()
    await outside(lambda: inbox.put_item(1))
    assert await parent == 7


@pytest.mark.parametrize("item", [(), (1, 2), StopIteration(3), ValueError("x"), None, KeyError, b"", 0])
async def test_any_object_can_be_an_item(item: Any, spawn: Spawn) -> None:
    inbox = new_inbox()
    inbox.put_item(item)
    assert await inbox.recv() is item
    inbox.put_item(item)
    assert await spawn(inbox.recv()) is item
    task = spawn(inbox.recv())
    await settled()
    await outside(lambda: inbox.put_item(item))
    assert await task is item


async def test_receiving_while_an_exception_is_handled(spawn: Spawn) -> None:
    inbox = new_inbox()

    async def receive() -> list[Any]:
        try:
            raise LookupError
        except LookupError as error:
            got = [await inbox.recv(), await inbox.recv(), sys.exc_info()[1] is error]
        return [*got, sys.exc_info()[1]]

    inbox.put_item(1)
    task = spawn(receive())
    await settled()
    await outside(lambda: inbox.put_item(2))
    assert await task == [1, 2, True, None]


# --- what asyncio's tools make of it -----------------------------------------------------------------------


async def test_recv_is_a_coroutine_to_asyncio() -> None:
    inbox = new_inbox()
    recv = inbox.recv()
    assert inspect.isawaitable(recv)
    assert asyncio.iscoroutine(recv)
    assert not asyncio.isfuture(recv)
    recv.close()  # type: ignore[attr-defined]


async def test_create_task_gather_wait_and_task_group(debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    boxes = [new_inbox() for _ in range(3)]
    loop = asyncio.get_running_loop()

    task = asyncio.create_task(boxes[0].recv(), name="named")  # type: ignore[arg-type]
    assert "named" in repr(task)
    loop.call_soon(boxes[0].put_item, 1)
    assert await task == 1

    for number, box in enumerate(boxes):
        loop.call_soon(box.put_item, number)
    assert await asyncio.gather(*(box.recv() for box in boxes)) == [0, 1, 2]

    tasks = {asyncio.create_task(box.recv()) for box in boxes}  # type: ignore[arg-type]
    loop.call_soon(boxes[1].put_item, "first")
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [each.result() for each in done] == ["first"]
    for each in pending:
        each.cancel()
    await asyncio.wait(pending)

    async with asyncio.TaskGroup() as group:
        members = [group.create_task(box.recv()) for box in boxes]  # type: ignore[arg-type]
        for number, box in enumerate(boxes):
            loop.call_soon(box.put_item, number)
    assert [member.result() for member in members] == [0, 1, 2]


async def test_a_task_group_that_fails_cancels_its_receivers() -> None:
    inbox = new_inbox()

    async def fail() -> None:
        raise LookupError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(inbox.recv())  # type: ignore[arg-type]
            group.create_task(fail())
    inbox.put_item("kept")
    assert await inbox.recv() == "kept"


async def test_wait_for_and_timeout(debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    inbox = new_inbox()
    loop = asyncio.get_running_loop()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inbox.recv(), 0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await inbox.recv()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inbox.recv(), 0)
    loop.call_soon(inbox.put_item, 1)
    assert await asyncio.wait_for(inbox.recv(), 5) == 1
    inbox.put_item(2)
    assert await asyncio.wait_for(inbox.recv(), 5) == 2
    async with asyncio.timeout(5):
        loop.call_soon(inbox.put_item, 3)
        assert await inbox.recv() == 3


async def test_shield(spawn: Spawn) -> None:
    inbox = new_inbox()
    receiver = asyncio.ensure_future(inbox.recv())

    async def wait() -> Any:
        return await asyncio.shield(receiver)

    task = spawn(wait())
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not receiver.done()
    await outside(lambda: inbox.put_item(1))
    assert await receiver == 1
    asyncio.get_running_loop().call_soon(inbox.put_item, 2)
    assert await asyncio.shield(inbox.recv()) == 2


async def test_from_another_thread() -> None:
    inbox = new_inbox()
    loop = asyncio.get_running_loop()

    def work() -> Any:
        future = asyncio.run_coroutine_threadsafe(inbox.recv(), loop)  # type: ignore[arg-type]
        loop.call_soon_threadsafe(inbox.put_item, 1)
        return future.result(10)

    assert await asyncio.to_thread(work) == 1


async def test_what_a_debugger_asks_of_a_waiting_task(spawn: Spawn) -> None:
    inbox = new_inbox()
    direct, nested = spawn(inbox.recv()), new_inbox()

    async def receive() -> Any:
        return await nested.recv()

    inside = spawn(receive())
    await settled()
    for task in (direct, inside):
        repr(task)
        task.get_stack()
        task.get_coro()
    await outside(lambda: (inbox.put_item(1), nested.put_item(2)))
    assert [await direct, await inside] == [1, 2]


# --- one receiver at a time --------------------------------------------------------------------------------


async def test_a_second_receiver_is_refused_and_the_first_undisturbed(spawn: Spawn) -> None:
    inbox = new_inbox()
    task = spawn(inbox.recv())
    await settled()
    for _ in range(2):
        with pytest.raises(Exception, match="another task is already waiting in recv"):
            await inbox.recv()
    await outside(lambda: inbox.put_item(1))
    assert await task == 1
    inbox.put_item(2)
    assert await inbox.recv() == 2


async def test_a_second_receiver_is_refused_also_between_arrival_and_wakeup(spawn: Spawn) -> None:
    inbox = new_inbox()
    task = spawn(inbox.recv())
    await settled()
    inbox.put_item(1)  # the task is scheduled; the item is as good as its own
    with pytest.raises(Exception, match="another task"):
        await inbox.recv()
    assert await task == 1


async def test_a_recv_is_awaited_once() -> None:
    inbox = new_inbox()
    inbox.put_item(1)
    inbox.put_item(2)
    recv = inbox.recv()
    assert await recv == 1
    with pytest.raises(RuntimeError, match="already been awaited"):
        await recv
    assert inbox.queued == 1


async def test_a_recv_that_is_never_awaited_takes_nothing() -> None:
    inbox = new_inbox()
    inbox.recv()
    inbox.put_item(1)
    inbox.recv().close()  # type: ignore[attr-defined]
    assert await inbox.recv() == 1


async def test_a_coroutine_that_is_thrown_away_while_it_waits() -> None:
    inbox = new_inbox()

    async def receive() -> None:
        await inbox.recv()

    waiting = receive()
    waiting.send(None)
    waiting.close()
    inbox.put_item(1)
    assert await inbox.recv() == 1


# --- cancellation ------------------------------------------------------------------------------------------


async def test_cancelled_before_the_item_comes(spawn: Spawn, debug: bool) -> None:
    asyncio.get_running_loop().set_debug(debug)
    inbox = new_inbox()
    task = spawn(inbox.recv())
    await settled()
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("why",)
    inbox.put_item(1)
    assert await inbox.recv() == 1


async def test_cancelled_in_the_turn_in_which_the_item_comes(spawn: Spawn) -> None:
    inbox = new_inbox()
    for cancel_first in (True, False):
        task = spawn(inbox.recv())
        await settled()
        if cancel_first:
            task.cancel()
            inbox.put_item("kept")
        else:
            inbox.put_item("kept")  # in a task: the wakeup is only scheduled
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inbox.queued == 1
        assert await inbox.recv() == "kept"


async def test_cancelled_after_it_was_stepped_in_place(spawn: Spawn) -> None:
    inbox = new_inbox()
    task = spawn(inbox.recv())
    await settled()

    def deliver_and_cancel() -> bool:
        inbox.put_item("taken")
        return task.cancel()

    assert await outside(deliver_and_cancel) is False
    assert await task == "taken"
    assert inbox.queued == 0


async def test_cancelled_before_its_first_step(spawn: Spawn) -> None:
    inbox = new_inbox()
    inbox.put_item("kept")
    task = spawn(inbox.recv())
    task.cancel()
    if spawn is eager_task:
        assert await task == "kept"
        return
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await inbox.recv() == "kept"


async def test_another_receiver_takes_over_at_once_after_a_cancel(spawn: Spawn) -> None:
    inbox = new_inbox()
    first = spawn(inbox.recv())
    await settled()
    first.cancel()
    second = spawn(inbox.recv())
    await settled()
    await outside(lambda: inbox.put_item(1))
    assert await second == 1
    assert first.cancelled()


@pytest.mark.parametrize("comes", ["before", "after"])
async def test_an_item_goes_to_who_asks_while_a_cancelled_task_has_not_been_told(spawn: Spawn, comes: str) -> None:
    inbox = new_inbox()
    first = spawn(inbox.recv())
    await settled()
    first.cancel()
    if comes == "before":
        inbox.put_item(1)
    else:
        asyncio.get_running_loop().call_soon(inbox.put_item, 1)
    assert await inbox.recv() == 1  # asked for in the very step in which the other was cancelled
    with pytest.raises(asyncio.CancelledError):
        await first
    await outside(lambda: inbox.put_item(2))
    assert await inbox.recv() == 2


async def test_a_subclass_iterates_by_its_own_or_by_what_it_inherits() -> None:
    @iterates_in_c
    class Inheriting(Inbox):
        pass

    @iterates_in_c
    class Own(Inbox):
        def __anext__(self) -> Any:
            return asyncio.sleep(0, "its own")

    for made, expected in ((Inheriting(asyncio.get_running_loop()), 1), (Own(asyncio.get_running_loop()), "its own")):
        made.put_item(1)
        async for item in made:
            assert item == expected
            break


async def test_a_task_that_swallows_its_cancellation_receives_on(spawn: Spawn) -> None:
    inbox = new_inbox()

    async def receive() -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await inbox.recv()
        return await inbox.recv()

    task = spawn(receive())
    await settled()
    task.cancel()
    await settled()
    await outside(lambda: inbox.put_item(1))
    assert await task == 1


async def test_cancelled_by_itself_while_it_is_stepped_in_place(spawn: Spawn) -> None:
    inbox = new_inbox()

    async def receive() -> None:
        assert await inbox.recv() == 1
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await inbox.recv()  # an item is there: no cancellation point, as with any ready awaitable
        await inbox.recv()

    task = spawn(receive())
    await settled()
    inbox.put_item(1)
    inbox.put_item(2)
    with pytest.raises(asyncio.CancelledError):
        await task
    inbox.put_item(3)
    assert await inbox.recv() == 3


async def test_a_timeout_that_strikes_with_the_item_loses_nothing() -> None:
    inbox = new_inbox()
    loop = asyncio.get_running_loop()
    sent = received = 0
    for round_ in range(60):
        delay = 0.001
        loop.call_at(loop.time() + delay, inbox.put_item, round_)
        sent += 1
        with contextlib.suppress(TimeoutError):
            if round_ % 2:
                item = await asyncio.wait_for(inbox.recv(), delay)
            else:
                async with asyncio.timeout(delay):
                    item = await inbox.recv()
            assert item == received
            received += 1
    while received < sent:
        assert await inbox.recv() == received
        received += 1


async def test_random_receivers_and_cancellations_lose_nothing(spawn: Spawn, rng: random.Random) -> None:
    inbox = new_inbox()
    loop = asyncio.get_running_loop()
    received: list[int] = []
    sent = 0
    task: asyncio.Task[Any] | None = None

    def put() -> None:
        nonlocal sent
        inbox.put_item(sent)
        sent += 1

    async def receive(count: int) -> None:
        while count:
            count -= 1
            received.append(await inbox.recv())

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
    while inbox.queued:
        received.append(await inbox.recv())
    assert sent > 500
    assert received == list(range(sent))


# --- the end -----------------------------------------------------------------------------------------------


async def test_what_is_queued_comes_before_the_end() -> None:
    inbox = new_inbox()
    inbox.put_item(1)
    inbox.end()
    assert await inbox.recv() == 1
    assert await inbox.recv() is None
    assert await inbox.recv() is None


async def test_the_end_wakes_a_receiver(spawn: Spawn) -> None:
    for in_place in (True, False):
        inbox = new_inbox()
        task = spawn(inbox.recv())
        await settled()
        if in_place:
            await outside(inbox.end)
        else:
            inbox.end()
        assert await task is None


async def test_an_error_is_raised_after_what_is_queued_and_each_time(spawn: Spawn) -> None:
    inbox = new_inbox()
    error = ConnectionError("lost")
    inbox.put_item(1)
    inbox.end(error)
    assert await inbox.recv() == 1
    depths = []
    for _ in range(3):
        with pytest.raises(ConnectionError) as caught:
            await spawn(inbox.recv())
        assert caught.value is error
        depths.append(len(inspect.getinnerframes(caught.tb)))
    assert len(set(depths)) == 1, "each raise adds to the traceback of the one before"
    waiting = new_inbox()
    task = spawn(waiting.recv())
    await settled()
    await outside(lambda: waiting.end(error))
    with pytest.raises(ConnectionError):
        await task


async def test_only_the_first_end_counts() -> None:
    inbox = new_inbox()
    inbox.end()
    inbox.end(ConnectionError("late"))
    assert await inbox.recv() is None


async def test_async_for_until_the_end(spawn: Spawn) -> None:
    inbox = new_inbox()

    async def collect() -> list[Any]:
        return [item async for item in inbox]

    task = spawn(collect())
    await settled()
    await outside(lambda: [inbox.put_item(number) for number in range(5)])
    await outside(inbox.end)
    assert await task == [0, 1, 2, 3, 4]
    assert [item async for item in inbox] == []
    with pytest.raises(StopAsyncIteration):
        await anext(inbox)  # type: ignore[call-overload]


async def test_async_for_raises_what_ended_it() -> None:
    inbox = new_inbox()
    inbox.put_item(1)
    inbox.end(ConnectionError("lost"))
    assert await anext(inbox) == 1  # type: ignore[call-overload]
    with pytest.raises(ConnectionError, match="lost"):
        await anext(inbox)  # type: ignore[call-overload]


async def test_none_as_an_item_does_not_end_async_for() -> None:
    inbox = new_inbox()
    inbox.put_item(None)
    inbox.put_item(1)
    inbox.end()
    assert [item async for item in inbox] == [None, 1]


# --- nothing is left behind --------------------------------------------------------------------------------


async def test_items_and_tasks_are_let_go(spawn: Spawn) -> None:
    class Item:
        pass

    inbox = new_inbox()
    watched: list[weakref.ref[Any]] = []
    for _ in range(5):
        task = spawn(inbox.recv())
        await settled()

        def deliver() -> None:
            item = Item()
            watched.append(weakref.ref(item))
            inbox.put_item(item)

        await outside(deliver)
        await task
        watched.append(weakref.ref(task))
        cancelled = spawn(inbox.recv())
        await settled()
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        watched.append(weakref.ref(cancelled))
        del task, cancelled
    await settled()
    gc.collect()
    assert [reference() for reference in watched if reference() is not None] == []


async def test_an_inbox_is_let_go_with_its_receiver() -> None:
    class Box(Inbox):  # type: ignore[type-arg]
        __slots__ = ("__weakref__",)

    box = Box(asyncio.get_running_loop())

    async def receive(inbox: Inbox[Any]) -> None:
        await inbox.recv()

    task = asyncio.create_task(receive(box))
    await settled()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    watched = weakref.ref(box)
    del box, task
    await settled()
    gc.collect()
    assert watched() is None
