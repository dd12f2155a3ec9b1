"""What `encode` writes `decode` reads again, type by type."""

from __future__ import annotations

import collections
import copy
import datetime as dt
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import slim

hashables = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.decimals().filter(lambda number: not number.is_snan())
    | st.fractions()
    | st.uuids()
    | st.ip_addresses()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.datetimes()
    | st.datetimes(timezones=st.timezones())
    | st.datetimes(timezones=st.just(dt.timezone(dt.timedelta(hours=5.5))))
    | st.builds(pathlib.PurePosixPath, st.text("ab/."))
    | st.builds(pathlib.PureWindowsPath, st.text("ab."))
)
values = st.recursive(
    hashables | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(collections.deque)
        | st.dictionaries(hashables, inner)
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
        | st.sets(hashables)
        | st.frozensets(hashables)
        | st.text().map(collections.Counter)
    ),
    max_leaves=12,
)


def typed(value: Any) -> Any:
    """The value with all its types, in a form in which NaN equals itself, and True is not 1."""
    if isinstance(value, dict):
        return type(value), [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), collections.Counter(repr(typed(item)) for item in value)
    return type(value), repr(value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(hashables, values, max_size=8))
def test_decode_gives_back_every_value_and_type_that_encode_takes(entity: dict[Any, Any]) -> None:
    assert typed(slim.decode(slim.encode(entity))) == typed(entity)


def test_one_object_met_twice_is_one_object_again() -> None:
    shared: list[int] = []
    decoded = slim.decode(slim.encode({"a": shared, "b": shared}))
    assert decoded["a"] is decoded["b"]


def test_body_is_a_zlib_stream_of_protocol_5() -> None:
    assert zlib.decompress(slim.encode({}))[:2] == b"\x80\x05"


def test_entity_equals_a_plain_dict_and_is_written_as_one(store: slim.Datastore) -> None:
    plain = {"id": "x", "tags": ["a", "b"]}
    store.put(plain)
    entity = store.get("x")
    assert entity == plain and plain == entity
    assert type(entity) is slim.Entity and entity.version > 0
    assert entity.updated.utcoffset() == dt.timedelta(0)
    for body in slim.encode(entity), slim.encode({"id": "y", "inner": entity}):
        assert b"slim" not in zlib.decompress(body)
    assert slim.encode(entity) == slim.encode(plain)
    assert type(slim.decode(slim.encode({"inner": entity}))["inner"]) is dict


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda entity: pickle.loads(pickle.dumps(entity))]
)
def test_copy_of_an_entity_keeps_its_version(
    store: slim.Datastore, again: Callable[[Any], Any]
) -> None:
    store.put({"id": "x", "tags": ["a"]})
    entity = store.get("x")
    assert entity
    copied = again(entity)
    assert copied == {"id": "x", "tags": ["a"]} and copied is not entity
    assert (copied.version, copied.updated) == (entity.version, entity.updated)


def test_max_size_bounds_what_a_body_decompresses_to(
    connect: dict[str, Any], store: slim.Datastore
) -> None:
    body = slim.encode({"text": "x" * 10_000})
    assert slim.decode(body, max_size=len(zlib.decompress(body)))
    with pytest.raises(slim.Corrupt, match="max_size=10000"):
        slim.decode(body, max_size=10_000)
    store.put({"id": "big", "text": "x" * 10_000})
    with slim.Datastore(**connect, max_size=10_000) as small:
        with pytest.raises(slim.Corrupt, match="max_size=10000") as caught:
            small.get("big")
    assert caught.value.id == "big"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no zlib",
        zlib.compress(b""),
        zlib.compress(b"no pickle"),
        slim.encode({})[:-1],
        slim.encode({}) + b"more",
        zlib.compress(pickle.dumps([1])),
        zlib.compress(pickle.dumps(None)),
    ],
)
def test_body_that_is_no_whole_dictionary_is_corrupt(body: bytes) -> None:
    with pytest.raises(slim.Corrupt) as caught:
        slim.decode(body)
    assert caught.value.id is None


def test_copy_of_the_module_in_a_package_reads_and_is_read(tmp_path: pathlib.Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(slim.__file__, package / "slim.py")
    program = """
import app.slim, slim
class Point:
    def __init__(self, x): self.x = x
for one, other in (slim, app.slim), (app.slim, slim):
    body = one.encode({"point": Point(7)}, [Point])
    assert other.decode(body, [Point])["point"].x == 7
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
