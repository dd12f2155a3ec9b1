"""Connections that end, are interrupted, inherited, or left over: each call gets one that is fit for it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import MySQLdb
import pytest
from check import (
    fork,
    in_threads,
    joined,
    kill_sessions,
    program,
    queries,
    sessions,
    until,
    wrong,
)
from proxy import Before, Once, Proxy, proxied
from server import Named, Server

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
BY_N = slim.Index("index_n", {"n": int})
LATER = slim.Index("index_later", "user")
A = {"id": "a", "n": 1, "user": "bob"}


@pytest.fixture
def store(connect: dict[str, Any]) -> Iterator[slim.Datastore]:
    with slim.Datastore(**connect, indexes=[BY_N]) as store:
        yield store
    assert wrong(connect) == []


@pytest.fixture
def proxy_and_connect(connect: dict[str, Any]) -> Iterator[tuple[Proxy, dict[str, Any]]]:
    with proxied(connect) as both:
        yield both


def block(store: slim.Datastore) -> Any:
    with store.transaction():
        store.put({"id": "b", "n": 2})
        return store.get("b")


def reading_block(store: slim.Datastore) -> Any:
    with store.transaction():
        return store.get("a")


def add_and_remove(store: slim.Datastore) -> Any:
    store.add_index(LATER)
    found = LATER.get_all(store, user="bob")
    store.remove_index(LATER)
    return found


# Each with what it returns.
CALLS: dict[str, tuple[Callable[[slim.Datastore], Any], Any]] = {
    "put": (lambda s: s.put({"id": "b", "n": 2}), "b"),
    "put anew": (lambda s: len(s.put({"n": 2})), 36),
    "put expecting none": (lambda s: s.put({"id": "b"}, expect=0), "b"),
    "put_many": (lambda s: s.put_many([{"id": "b"}, {"n": 3}]), 2),
    "get": (lambda s: s.get("a"), A),
    "get of none": (lambda s: s.get("none"), None),
    "get_many": (lambda s: s.get_many(["a", "none"]), {"a": A}),
    "delete": (lambda s: s.delete("a"), True),
    "delete of none": (lambda s: s.delete("none"), False),
    "update": (lambda s: s.update("a", lambda e: e.update(n=5))["n"], 5),
    "update with default": (lambda s: s.update("b", lambda e: None, default={"n": 1})["n"], 1),
    "block": (block, {"id": "b", "n": 2}),
    "reading block": (reading_block, A),
    "scan": (lambda s: list(s.scan()), [A]),
    "len": (len, 1),
    "in": (lambda s: "a" in s, True),
    "schema": (lambda s: "user" in str(s.schema()), True),
    "indexes": (lambda s: [index.table for index in s.indexes], ["index_n"]),
    "add_index": (add_and_remove, [A]),
    "get_all": (lambda s: BY_N.get_all(s, n=1), [A]),
    "find": (lambda s: list(BY_N.find(s, {"n": slice(0, 5)})), [A]),
    "count": (lambda s: BY_N.count(s), 1),
    "populate": (lambda s: BY_N.populate(s), 0),
}


# ---- Closed by the server while they are idle


@pytest.mark.parametrize("name", CALLS)
def test_connection_that_the_server_has_closed_costs_no_call_anything(
    name: str, store: slim.Datastore, sql: Sql
) -> None:
    call, answer = CALLS[name]
    store.put(A)
    # Several are idle.
    in_threads(*[lambda: [store.get("a") for _ in range(5)]] * 4)
    kill_sessions(sql)
    assert call(store) == answer


def test_conditional_put_and_delete_find_the_same_after_a_long_pause(
    store: slim.Datastore, sql: Sql
) -> None:
    store.put(A)
    version = store.get("a").version
    kill_sessions(sql)
    store.put({**A, "n": 2}, expect=version)
    version = store.get("a").version
    kill_sessions(sql)
    with pytest.raises(slim.Conflict):
        store.put(A, expect=version + 1)
    kill_sessions(sql)
    assert store.delete("a", expect=version)


def test_connections_that_were_idle_for_too_long_cost_no_call_anything(
    connect: dict[str, Any],
) -> None:
    """MySQL says goodbye with error 4031, which is left to be read."""
    limited = {**connect, "init_command": "SET wait_timeout = 1"}
    with (
        slim.Datastore(**limited, indexes=[BY_N]) as store,
        queries(connect) as query,
    ):
        store.put(A)
        for name in "get", "put", "delete of none", "update", "block", "get_all", "put anew":
            in_threads(*[lambda: store.get("a")] * 2)
            until(lambda: not sessions(query))
            time.sleep(0.05)
            call, answer = CALLS[name]
            assert call(store) == answer or name == "get_all"


def test_connection_that_ends_between_the_look_and_the_packet_is_no_wrong_answer(
    proxy_and_connect: Any,
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through, indexes=[BY_N]) as store:
        store.put(A)
        for name in "get", "get_many", "in", "len", "get_all", "count", "get of none":
            call, answer = CALLS[name]
            cut = Once(lambda packet: packet.data[3] == 0, 0)
            proxy.cut = cut
            assert call(store) == answer
            assert cut.done


# ---- How many there are


def test_threads_that_end_leak_no_connection(store: slim.Datastore, sql: Sql) -> None:
    in_threads(*[lambda: store.put({})] * 10)
    most = len(sessions(sql))
    for _ in range(5):
        in_threads(*[lambda: store.put({})] * 10)
    assert len(sessions(sql)) <= max(most, 11)
    assert len(store) == 60


def test_scan_that_is_given_up_leaks_no_connection(store: slim.Datastore, sql: Sql) -> None:
    store.put_many({"n": n} for n in range(300))
    before = len(sessions(sql))
    for end in ("del", "close") * 5:
        scan = store.scan()
        next(scan)
        if end == "close":
            scan.close()  # type: ignore[attr-defined]
        del scan
        gc.collect()
    until(lambda: len(sessions(sql)) <= before + 1)


def test_failures_of_every_kind_leak_no_connection(store: slim.Datastore, sql: Sql) -> None:
    store.put(A)
    before = len(sessions(sql))
    for _ in range(10):
        for call in (
            lambda: store.put(A, expect=0),
            lambda: store.put({"n": "text"}),
            lambda: store.update("a", lambda entity: 1),
            lambda: store.update("none", lambda entity: None),
            lambda: LATER.count(store),
            lambda: store.add_index(slim.Index("index_n", "user")),
        ):
            with pytest.raises((slim.Error, TypeError, ValueError, KeyError)):
                call()
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.put({"id": "b"})
            raise ZeroDivisionError
    assert len(sessions(sql)) <= before + 1


def test_rollback_that_fails_leaves_no_connection_open(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with queries(connect) as query:
        others = sessions(query)
        with slim.Datastore(**through) as store:
            for _ in range(3):
                cut = Once(lambda packet: b"ROLLBACK" in packet.data, 0)
                proxy.cut = cut
                with pytest.raises(ZeroDivisionError), store.transaction():
                    store.put({"id": "a"})
                    raise ZeroDivisionError
                proxy.cut = None
                assert cut.done
                assert store.get("a") is None
            assert len(sessions(query) - others) == 1
            store.put({"id": "b"})
            assert list(store) == [{"id": "b"}]


def test_rollback_that_is_interrupted_leaves_the_next_write_as_it_is(
    proxy_and_connect: Any,
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as store:
        proxy.cut = Before(b"ROLLBACK", lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt), store.transaction():
            store.put({"id": "a"})
            raise ZeroDivisionError
        proxy.cut = None
        store.put({"id": "b"})
        assert list(store) == [{"id": "b"}]


# ---- close()


def test_close_while_others_work_ends_them_with_an_error_and_leaves_no_connection(
    connect: dict[str, Any], sql: Sql
) -> None:
    store = slim.Datastore(**connect, indexes=[BY_N])
    working = [threading.Event() for _ in range(8)]

    def work(n: int) -> Exception:
        count = 0
        while True:
            try:
                store.put({"id": f"{n}-{count % 5}", "n": count})
            except (slim.Error, MySQLdb.Error) as error:
                return error
            working[n].set()
            count += 1

    def close() -> Exception | None:
        for event in working:
            assert event.wait(20)
        store.close()
        return None

    errors = in_threads(close, *(lambda n=n: work(n) for n in range(8)))
    assert all(errors[1:])
    until(lambda: not sessions(sql))
    with pytest.raises(slim.Error, match="closed"):
        store.get("0-0")
    assert wrong(connect) == []


def test_close_inside_a_block_or_a_scan_leaves_no_connection_when_they_end(
    connect: dict[str, Any], sql: Sql
) -> None:
    store = slim.Datastore(**connect)
    store.put_many({"n": n} for n in range(2_500))
    scan = store.scan()
    next(scan)
    with contextlib.suppress(slim.Error), store.transaction():
        store.put({"id": "a"})
        store.close()
    with contextlib.suppress(slim.Error):
        assert len(list(scan)) == 2_499
    del scan
    gc.collect()
    until(lambda: not sessions(sql))


def test_store_that_is_forgotten_leaves_no_connection(connect: dict[str, Any], sql: Sql) -> None:
    for _ in range(3):
        store = slim.Datastore(**connect)
        store.put({})
        del store
    gc.collect()
    until(lambda: not sessions(sql))


def test_error_while_opening_leaves_no_connection(connect: dict[str, Any], sql: Sql) -> None:
    slim.Datastore(**connect, indexes=[BY_N]).close()
    for _ in range(3):
        with pytest.raises(ValueError):
            slim.Datastore(**connect, indexes=[slim.Index("index_n", "user")])
    gc.collect()
    until(lambda: not sessions(sql))


# ---- Forks


def test_forked_children_have_connections_of_their_own_and_leave_the_parents_alone(
    store: slim.Datastore,
) -> None:
    store.put({"id": "a", "n": 0})

    def add() -> None:
        for _ in range(20):
            store.update("a", lambda entity: entity.update(n=entity["n"] + 1))
        store.close()

    children = [fork(add) for _ in range(3)]
    for _ in range(20):
        store.update("a", lambda entity: entity.update(n=entity["n"] + 1))
    assert [joined(child) for child in children] == [0, 0, 0]
    assert store.get("a")["n"] == 80


@pytest.mark.parametrize("end", ["close", "del", "nothing", "with"])
def test_child_that_ends_says_no_goodbye_on_its_parents_connections(
    end: str, store: slim.Datastore, sql: Sql
) -> None:
    in_threads(*[lambda: [store.put({"n": 1}) for _ in range(3)]] * 3)
    before = sessions(sql)

    def leave() -> None:
        if end == "close":
            store.close()
        elif end == "with":
            with store:
                pass
        gc.collect()

    assert joined(fork(leave)) == 0
    time.sleep(0.05)
    assert sessions(sql) == before
    store.put({"n": 2})
    assert sessions(sql) == before


def test_program_whose_child_exits_normally_goes_on(connect: dict[str, Any]) -> None:
    """Through the interpreter's end, with all that it destroys, and while a block is open."""
    text = """
import sys
store = slim.Datastore(**CONNECT)
store.put({"id": "a", "n": 0})
with store.transaction():
    store.put({"id": "b"})
    child = os.fork()
    if not child:
        del store
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.put({"id": "c"})
child = os.fork()
if not child:
    store.put({"id": "of child"})
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(sorted(entity["id"] for entity in store))
"""
    lines = program(text, connect)
    assert lines.endswith("['a', 'b', 'c', 'of child']")


def test_child_of_a_child_has_connections_of_its_own(store: slim.Datastore, sql: Sql) -> None:
    store.put({"id": "a", "n": 0})

    def add() -> None:
        store.update("a", lambda entity: entity.update(n=entity["n"] + 1))

    def child() -> None:
        add()
        assert joined(fork(add)) == 0
        add()
        assert joined(fork(add)) == 0
        add()

    before = sessions(sql)
    assert joined(fork(child)) == 0
    add()
    assert store.get("a")["n"] == 6
    until(lambda: sessions(sql) == before)


def test_child_that_is_forked_while_threads_work_is_fit_for_use(store: slim.Datastore) -> None:
    stop = threading.Event()

    def work() -> int:
        count = 0
        while not stop.is_set():
            store.put({"id": f"{threading.get_ident()}", "n": count})
            count += 1
        return count

    with futures.ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work) for _ in range(4)]
        try:
            for n in range(10):
                child = fork(lambda n=n: store.put({"id": f"child {n}", "n": n}))
                assert joined(child) == 0
        finally:
            stop.set()
        assert all(each.result(timeout=20) for each in working)
    assert BY_N.get_all(store, n=7)
    assert all(f"child {n}" in store for n in range(10))


def test_threads_of_a_forked_child_may_all_begin_at_once(store: slim.Datastore) -> None:
    def use() -> None:
        in_threads(*[lambda: store.get("a")] * 12)

    for _ in range(5):
        assert joined(fork(use)) == 0


def test_server_that_is_not_there_is_told_at_once() -> None:
    begun = time.monotonic()
    with pytest.raises(MySQLdb.OperationalError):
        slim.Datastore("127.0.0.1", "me", "secret", "app", port=1)
    assert time.monotonic() - begun < 5


# ---- Interrupted


class Late(BaseException):
    pass


def late(*_: Any) -> None:
    raise Late


@contextlib.contextmanager
def interrupted(seconds: float) -> Iterator[None]:
    """Raises Late in the main thread after so long, as Ctrl-C does it."""

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def interrupted_at(point: int, handler: Callable[[], Any] = late) -> Iterator[None]:
    """Calls the handler at this event of Python's profiler, counted from 0."""
    events = itertools.count()

    def interrupt(*_: Any) -> None:
        if next(events) == point:
            sys.setprofile(None)
            handler()

    sys.setprofile(interrupt)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextlib.contextmanager
def locked_for_a_while(connect: dict[str, Any]) -> Iterator[None]:
    """The entities answer nobody for half a second."""
    with contextlib.closing(MySQLdb.connect(**connect)) as other:
        other.query("LOCK TABLES entities WRITE")
        unlock = threading.Timer(0.5, lambda: other.query("UNLOCK TABLES"))
        unlock.start()
        try:
            yield
        finally:
            unlock.join()


def test_signal_between_a_query_and_its_answer_leaves_a_store_that_works(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.put(A)
    with locked_for_a_while(connect), pytest.raises(Late), interrupted(0.1):
        store.get("a")
    assert store.get("a") == A
    assert store.get("none") is None
    store.delete("a")


def test_block_that_goes_on_after_a_signal_fails_and_leaves_a_store_that_works(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    with locked_for_a_while(connect), pytest.raises(slim.Error, match="failed"):
        with store.transaction():
            with pytest.raises(Late), interrupted(0.1):
                store.get("a")
    with store.transaction():
        store.put(A)
    assert store.get("a") == A


@pytest.mark.parametrize("text", [b"START TRANSACTION", b"INSERT INTO", b"COMMIT"])
def test_interrupt_in_the_middle_of_a_packet_leaves_a_store_that_works(
    text: bytes, proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through, indexes=[BY_N]) as store:
        for call in (
            lambda: store.put({"id": "a", "n": 2}),
            lambda: store.update("a", lambda entity: entity.update(n=3)),
            lambda: block(store),
        ):
            store.put({"id": "a", "n": 1})
            before = Before(text, lambda: os.kill(os.getpid(), signal.SIGINT))
            proxy.cut = before
            with pytest.raises(KeyboardInterrupt):
                call()
            until(lambda before=before: before.done)
            proxy.cut = None
            store.put({"id": "c", "n": 4})
            assert store.get("c") == {"id": "c", "n": 4}
            assert store.get("none") is None
    with queries(connect) as query:
        until(lambda: not sessions(query))
    assert wrong(connect) == []


def test_interrupt_at_any_point_of_a_put_costs_no_later_one(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    kept = None
    for point in itertools.count():
        try:
            with interrupted_at(point):
                store.put(A)
            break
        except Late as error:
            # As a handler has it: with all frames that it came through.
            kept = error
        store.put({"id": f"after {point}"})
    assert kept is not None and point > 100
    with queries(connect) as query:
        told = query("SELECT COUNT(*) FROM entities WHERE id LIKE 'after%'")
    assert told == [(point,)]


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put(A),
        lambda store: store.update("a", lambda entity: entity.update(n=1)),
        lambda store: store.delete("a"),
    ],
)
def test_put_of_a_signal_handler_amid_a_call_is_stored_or_an_error(
    call: Callable[[slim.Datastore], Any], store: slim.Datastore, connect: dict[str, Any]
) -> None:
    refused = 0
    outcome: list[Any] = []

    def put() -> None:
        try:
            outcome.append(store.put({"id": "handler's"}))
        except slim.Error as error:
            outcome.append(error)

    with queries(connect) as query:
        for point in itertools.count():
            outcome.clear()
            store.put(A)
            # The call, too, is refused where the handler asked whose block it is amid that.
            with contextlib.suppress(slim.Error), interrupted_at(point, put):
                call(store)
            if not outcome:
                break
            stored = query("SELECT id FROM entities WHERE id LIKE 'h%'")
            assert stored == [(id,) for id in outcome if isinstance(id, str)], point
            refused += not stored
            store.delete("handler's")
    assert refused > 10


@pytest.mark.parametrize("earlier", [True, False])
def test_interrupt_at_any_point_of_a_call_in_a_block_that_goes_on_commits_all_or_nothing(
    earlier: bool, store: slim.Datastore, connect: dict[str, Any]
) -> None:
    written = ["first", "last"] if earlier else ["last"]
    versions: dict[str, Any] = dict.fromkeys(written, [])
    ended = False
    with queries(connect) as query:
        points = itertools.count()
        while not ended:
            point = next(points)
            raised = False
            try:
                with store.transaction():
                    if earlier:
                        store.put({"id": "first", "point": point})
                    with contextlib.suppress(Late):
                        with interrupted_at(point):
                            store.put({"id": "middle", "point": point})
                        ended = True
                    store.put({"id": "last", "point": point})
            except (slim.Error, MySQLdb.Error):
                raised = True
            for id in written:
                found = query("SELECT added_id FROM entities WHERE id = %s", [id])
                assert (found == versions[id]) == raised, (point, id)
                versions[id] = found
            store.put({"id": f"after {point}"})
        assert point > 100 and not raised
        assert query("SELECT COUNT(*) FROM entities WHERE id LIKE 'after%'") == [(point + 1,)]


def test_interrupt_at_any_point_of_a_refused_put_commits_no_half_of_it(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.add_index(slim.Index("index_name", "name", unique=True))
    store.put({"id": "owner", "name": "bob"})
    ended = False
    for point in itertools.count():
        with contextlib.suppress(slim.Error, MySQLdb.Error), store.transaction():
            with contextlib.suppress(Late), interrupted_at(point):
                try:
                    store.put({"id": f"p{point}", "name": "bob", "n": point})
                except slim.Duplicate:
                    ended = True
        assert [*store] == [{"id": "owner", "name": "bob"}], point
        if ended:
            break
    assert point > 100
    assert wrong(connect) == []


def test_interrupts_at_random_moments_bend_nothing(connect: dict[str, Any]) -> None:
    dice = random.Random(1)
    with slim.Datastore(**connect, indexes=[BY_N]) as store:
        store.put({"id": "a", "n": 0})
        acknowledged = 0
        for _ in range(150):
            try:
                with interrupted(dice.uniform(0.0001, 0.01)):
                    store.put({"id": f"e{acknowledged % 5}", "n": acknowledged})
                    acknowledged += 1
                    with store.transaction():
                        store.update("a", lambda entity: entity.update(n=entity["n"] + 1))
                    list(store)
            except Late:
                pass
            assert store.get("a")["n"] >= 0
    assert wrong(connect) == []


# ---- The end of the interpreter


def test_program_that_ends_while_threads_work_does_not_hang(connect: dict[str, Any]) -> None:
    text = """
store = slim.Datastore(**CONNECT, indexes=[slim.Index("index_n", {"n": int})])
def work(n):
    threading.main_thread().join()
    try:
        told = str(store.put_many({"n": n} for n in range(3000)))
    except slim.Error as error:
        told = "refused"
    # In one piece: print() writes the end of a line by itself, and another thread in between.
    print(f"{told}\\n", end="")
for n in range(3):
    threading.Thread(target=work, args=(n,)).start()
"""
    lines = program(text, connect, seconds=40).split()
    assert len(lines) == 3 and set(lines) <= {"3000", "refused"}
    assert wrong(connect) == []


def test_program_whose_daemons_work_at_its_end_does_not_hang(connect: dict[str, Any]) -> None:
    text = """
store = slim.Datastore(**CONNECT, indexes=[slim.Index("index_n", {"n": int})])
begun = threading.Barrier(4)
def work(n):
    begun.wait()
    while True:
        store.put({"id": str(n), "n": n})
for n in range(3):
    threading.Thread(target=work, args=(n,), daemon=True).start()
begun.wait()
time.sleep(0.2)
print("end")
"""
    assert program(text, connect, seconds=40) == "end"
    with queries(connect) as query:
        until(lambda: not sessions(query))
    assert wrong(connect) == []


def test_program_that_adds_an_index_in_its_last_thread_does_so(connect: dict[str, Any]) -> None:
    text = """
def work():
    threading.main_thread().join()
    index = slim.Index("index_n", {"n": int})
    with slim.Datastore(**CONNECT) as store:
        store.put_many({"n": n} for n in range(2000))
        store.add_index(index)
        print(index.count(store))
threading.Thread(target=work).start()
"""
    assert program(text, connect, seconds=40) == "2000"


def test_program_that_never_closes_its_store_ends_in_silence(connect: dict[str, Any]) -> None:
    text = """
store = slim.Datastore(**CONNECT)
store.put_many({"n": n} for n in range(2000))
scan = store.scan()
next(scan)
block = store.transaction()
block.__enter__()
store.put({"id": "a"})
print(len(store))
"""
    assert program(text, connect, seconds=40) == "2001"
    with slim.Datastore(**connect) as store:
        assert len(store) == 2000


# ---- Packets over the server's limit


@pytest.fixture(scope="module")
def narrow(server: Named) -> Iterator[Server]:
    """A server that takes packets of 1 MiB."""
    with Server(server.name, ["--max-allowed-packet=1M"]) as narrow:
        narrow.query("CREATE DATABASE narrow")
        yield narrow


def test_entity_over_the_servers_limit_is_a_value_error_before_anything_is_sent(
    narrow: Server,
) -> None:
    connect = {**narrow.connect, "database": "narrow"}
    with proxied(connect) as (proxy, through):
        with slim.Datastore(**through, indexes=[BY_N]) as store:
            store.put(A)
            big = {"id": "a", "n": 2, "data": random.Random(1).randbytes(1 << 20)}
            proxy.requests = 0
            for call in (
                lambda: store.put(big),
                lambda: store.put_many([big]),
                lambda: store.put({**big, "id": "new"}),
            ):
                with pytest.raises(ValueError, match="max_allowed_packet"):
                    call()
            assert proxy.requests <= 3
            with pytest.raises(ValueError, match="max_allowed_packet"):
                store.update("a", lambda entity: entity.update(big))
            with store.transaction():
                store.put({"id": "b", "n": 1})
                with pytest.raises(ValueError, match="max_allowed_packet"):
                    store.put(big)
            assert store.get("a") == A and "b" in store
    assert wrong(connect) == []


def test_packets_just_below_the_servers_limit_are_taken(narrow: Server) -> None:
    dice = random.Random(2)
    connect = {**narrow.connect, "database": "narrow"}
    with slim.Datastore(**connect) as store:
        refused = 0
        for size in range(1_000_000, 1 << 20, 1_500):
            # A body of zeros and quotes grows when it is written into SQL.
            data = dice.randbytes(size // 2)
            try:
                store.put({"id": "a", "data": data, "more": dice.randbytes(size // 2)})
            except ValueError:
                refused += 1
        assert 0 < refused


def test_batches_are_cut_to_the_servers_limit(narrow: Server) -> None:
    dice = random.Random(3)
    connect = {**narrow.connect, "database": "narrow"}
    with slim.Datastore(**connect) as store:
        whole = [
            {"id": f"e{n}", "data": dice.randbytes(dice.choice([10, 300_000]))} for n in range(40)
        ]
        assert store.put_many(whole) == 40
        assert store.get_many([e["id"] for e in whole]) == {e["id"]: e for e in whole}


# ---- A server that is not there for a while


def test_calls_wait_for_a_server_that_is_started_again(server: Named) -> None:
    with Server(server.name) as own:
        own.query("CREATE DATABASE again")
        connect = {**own.connect, "database": "again"}
        with (
            slim.Datastore(**connect, indexes=[BY_N]) as store,
            futures.ThreadPoolExecutor() as pool,
        ):
            store.put(A)
            own.kill()
            got = pool.submit(store.get, "a")
            put = pool.submit(store.put, {"id": "b", "n": 1})
            time.sleep(0.3)
            own.start()
            assert got.result(timeout=60) == A
            assert put.result(timeout=60) == "b"
            assert BY_N.count(store) == 2
        assert wrong(connect) == []
