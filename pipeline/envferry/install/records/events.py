"""What happened to an environment of a host: a line of JSON for each thing, the newest last."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.base.files import write_bytes
from envferry.base.json import decode_json

if TYPE_CHECKING:
    from envferry.install.records.env_home import EnvHome

log = logging.getLogger(__name__)

MOST_EVENTS = 1000
"""Older ones are forgotten."""

EventKind = Literal["installed", "current", "checks failed", "repaired", "removed"]


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who does something at what time, as the command line knows it."""

    time: str
    """In UTC: `2026-11-28T23:10:00Z`."""
    user: str


UNKNOWN_ACTOR = Actor(time="", user="")
"""For callers that keep no record of who they are."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened."""

    time: str
    user: str
    kind: str
    id: str
    detail: str = ""


def note_event(home: EnvHome, actor: Actor, kind: EventKind, id_: str, detail: str = "") -> None:
    """Record what was done; the caller holds the environment's lock.

    It is a note: that it cannot be written stops nothing.
    """
    if actor is UNKNOWN_ACTOR:
        return
    event = Event(time=actor.time, user=actor.user, kind=kind, id=id_, detail=detail)
    # Written whole and not appended: a kill leaves no half line, and the oldest lines drop out.
    lines = [msgspec.json.encode(one) for one in [*read_events(home), event][-MOST_EVENTS:]]
    try:
        write_bytes(home.events, b"".join(line + b"\n" for line in lines))
    except OSError as error:
        log.warning("%s is not written: %s", home.events, error.strerror)


def read_events(home: EnvHome) -> list[Event]:
    """Return what is known, the newest last; lines that cannot be read are skipped."""
    try:
        lines = home.events.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.info("%s is not read: %s", home.events, error.strerror)
        return []
    found = []
    for line in lines:
        try:
            found.append(decode_json(line, Event))
        except msgspec.MsgspecError as error:
            log.info("a line of %s is not read: %s", home.events, error)
    return found
