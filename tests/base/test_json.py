"""JSON: typed values from any thread, and text that is not what it claims to be."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from envferry.base.json import convert, decode_json
from envferry.models import Manifest

RACE = """
import sys, threading
from envferry.base.json import convert, decode_json
from envferry.models import Manifest
import msgspec

sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)

def first_use(number):
    barrier.wait()
    try:
        convert({}, Manifest) if number % 2 else decode_json(b"{}", Manifest)
    except msgspec.ValidationError:
        refused.append(number)

refused = []
threads = [threading.Thread(target=first_use, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(refused) == 8
"""


def test_threads_may_decode_a_type_for_the_first_time_at_once() -> None:
    """msgspec 0.22 alone dies of SIGSEGV in one run of four."""
    for _ in range(20):
        subprocess.run([sys.executable, "-c", RACE], check=True)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b'{"name": "\xff"}',
        b"\xff\xfe",
        b"",
    ],
    ids=["nested lists", "nested mappings", "text that is not UTF-8", "UTF-16", "nothing"],
)
@pytest.mark.parametrize("type_", [dict[str, Any], Manifest, object])
def test_damaged_json_is_an_error_of_one_kind(data: bytes, type_: Any) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_json(data, type_)


def test_convert_is_strict_unless_told_otherwise() -> None:
    assert convert("3", int, strict=False) == 3
    with pytest.raises(msgspec.ValidationError):
        convert("3", int)
