"""JSON in and out: typed values, decoded from any thread, encoded to one form."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from envferry.errors import IntegrityError, SpecError

T = TypeVar("T")

_decoders: dict[object, msgspec.json.Decoder[Any]] = {}
_building = threading.Lock()


def decode_json(data: bytes | str, type_: type[T]) -> T:
    """Decode JSON as a value of a type.

    Raises msgspec.MsgspecError for whatever is not one, also for text that nests too deeply or is
    not UTF-8.
    """
    decoder: msgspec.json.Decoder[T] = _decoder(type_)
    try:
        return decoder.decode(data)
    except RecursionError as error:
        msg = "JSON nests too deeply"
        raise msgspec.DecodeError(msg) from error
    except UnicodeError as error:
        msg = f"JSON is not UTF-8: {error}"
        raise msgspec.DecodeError(msg) from error


def convert(value: object, type_: type[T], *, strict: bool = True) -> T:
    """Convert what a parser of YAML or TOML returned to a value of a type, as msgspec does.

    Raises msgspec.ValidationError for whatever is not one.
    """
    # Only for what it compiles (see there): msgspec.convert takes no decoder.
    _decoder(type_)
    return msgspec.convert(value, type_, strict=strict)


def to_json(value: object) -> bytes:
    """Encode a record as our one JSON form: sorted keys, indented, newline at the end."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def from_json(data: bytes, type_: type[T], what: str) -> T:
    """Decode a record of schema 1; `what` names it in errors.

    Raises IntegrityError when it is not such a record, SpecError when its schema is newer.
    """
    schema = 1
    try:
        # The schema first: as this type, a record of a newer schema would look damaged.
        header: dict[str, Any] = decode_json(data, dict[str, Any])
        schema = header.get("schema", 1)
        if schema == 1:
            return decode_json(data, type_)
    except msgspec.MsgspecError as error:
        message = f"{what} is damaged: {error}"
        raise IntegrityError(message, hint="copy or fetch it again") from error
    message = f"{what} has schema {schema}, this envferry reads schema 1"
    raise SpecError(message, hint="install a newer envferry")


def _decoder(type_: type[T]) -> msgspec.json.Decoder[T]:
    """Return the decoder of a type, built by one thread at a time.

    msgspec 0.22 compiles what it knows of a class at its first use and keeps it on the class;
    threads that do so at once free the same memory, and the process dies of SIGSEGV.
    """
    decoder = _decoders.get(type_)
    if decoder is None:
        with _building:
            decoder = _decoders.setdefault(type_, msgspec.json.Decoder(type_))
    return decoder
