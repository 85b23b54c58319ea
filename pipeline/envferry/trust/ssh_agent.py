"""Ed25519 keys that an ssh-agent holds: `ssh:`, `ssh:COMMENT`, `ssh:SHA256:…`, `ssh:KEY.pub`.

Protocol: https://datatracker.ietf.org/doc/html/draft-ietf-sshm-ssh-agent
The agent signs any bytes. What envferry has signed begins with `DSSEv1`, and what logs in somewhere
with the length of a session's id: neither can stand for the other.
"""

from __future__ import annotations

import base64
import socket
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from envferry.base.files import expand_home
from envferry.base.inputs import MOST_KEY_BYTES, read_input
from envferry.base.sha256 import sha256_hex
from envferry.errors import HostError, NotFound, UsageError
from envferry.trust.signing import SigningKey, public_key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEME = "ssh:"
KEY_TYPE = b"ssh-ed25519"
LIST, LISTED, SIGN, SIGNED = 11, 12, 13, 14
"""SSH_AGENTC_REQUEST_IDENTITIES and so on."""
MOST_BYTES = 256 << 10
"""The longest answer that OpenSSH's own client takes."""
PATIENCE_SECONDS = 120
"""An agent may ask its user before it signs, or wait for a finger on a token."""

Answer = TypeVar("Answer")


class AgentKey(msgspec.Struct, frozen=True):
    """A key that an agent holds; signs by asking the agent."""

    agent: str
    """The agent's socket."""
    blob: bytes
    """The public key as SSH writes it."""
    comment: str

    @property
    def fingerprint(self) -> str:
        """What `ssh-add -l` shows."""
        digest = base64.b64encode(bytes.fromhex(sha256_hex(self.blob))).decode()
        # OpenSSH leaves the padding out.
        return f"SHA256:{digest.rstrip('=')}"

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the public key; empty for another kind of key."""
        # Type, then key (RFC 8709, 4).
        fields = list(_strings(self.blob))
        return fields[1] if len(fields) == 2 and fields[0] == KEY_TYPE else b""

    def sign(self, message: bytes) -> bytes:
        """Return the agent's signature; raise HostError when it refuses."""
        # The last four bytes are the flags: none, for they choose among hashes of RSA.
        request = bytes([SIGN]) + _string(self.blob) + _string(message) + bytes(4)
        answer = _ask(self.agent, request)
        if answer[:1] != bytes([SIGNED]):
            message_ = f"the ssh-agent did not sign with {self.comment or self.fingerprint}"
            hint = "check that the agent is not locked, and confirm the use of the key if it asks"
            raise HostError(message_, hint=hint)
        # A string that holds two: type, then signature (RFC 8709, 6).
        signature = list(_strings(next(_strings(answer[1:]), b"")))
        if len(signature) != 2 or signature[0] != KEY_TYPE:
            message_ = "the ssh-agent answered with another kind of signature"
            raise HostError(message_, hint="see `ssh-add -l`; Ed25519 keys can sign")
        return signature[1]


def open_agent_key(name: str, agent: str) -> SigningKey:
    """Find the key that `ssh:NAME` means in the agent at the socket `agent`.

    Raises UsageError without an agent and for a name that fits several keys, NotFound for one that
    fits none, HostError for an agent that does not answer as one.
    """
    if not agent:
        message = f"--sign-key {name} needs an ssh-agent, and SSH_AUTH_SOCK is not set"
        raise UsageError(message, hint="start one: eval $(ssh-agent) && ssh-add KEY")
    wanted = name.removeprefix(SCHEME)
    held = list_agent_keys(agent)
    usable = [key for key in held if key.raw]
    # A public key file tells the key without doubt; two keys may have the same comment.
    blob = _read_blob(expand_home(Path(wanted))) if wanted.endswith(".pub") else b""
    found = [key for key in usable if not wanted or _is_called(key, wanted) or key.blob == blob]
    if len(found) == 1:
        return SigningKey(public=public_key_of(found[0].raw, name), key=found[0])
    listed = ", ".join(f"{key.comment or 'no comment'} ({key.fingerprint})" for key in usable)
    hint = f"its Ed25519 keys: {listed}" if usable else "ssh-add KEY adds one"
    if found:
        message = f"{name} is any of {len(found)} keys of the ssh-agent"
        raise UsageError(message, hint=f"name one by its fingerprint; {hint}")
    message = f"the ssh-agent holds no Ed25519 key {wanted}".rstrip()
    raise NotFound(message, hint=hint)


def list_agent_keys(agent: str) -> list[AgentKey]:
    """Return the keys that an agent holds, of whatever kind."""
    answer = _ask(agent, bytes([LIST]))
    if answer[:1] != bytes([LISTED]):
        message = f"the ssh-agent at {agent} does not list its keys"
        raise HostError(message, hint="is it locked? `ssh-add -X` unlocks it")
    # After the type come four bytes with the number of keys.
    fields = list(_strings(answer[5:]))
    # Of a list that is cut off, a key without its comment is left out.
    pairs = zip(fields[::2], fields[1::2], strict=False)
    return [AgentKey(agent, blob, comment.decode(errors="replace")) for blob, comment in pairs]


def _is_called(key: AgentKey, wanted: str) -> bool:
    return wanted in (key.fingerprint, key.comment)


def _read_blob(path: Path) -> bytes:
    """Return the key in a file as ssh-keygen writes it; empty where there is none.

    A comment may end in `.pub`, too. Raises UsageError for a file that holds something else.
    """
    try:
        return base64.b64decode(read_input(path, MOST_KEY_BYTES).split()[1])
    except FileNotFoundError:
        return b""
    except (OSError, ValueError, IndexError) as error:
        message = f"{path} is not a public key of ssh-keygen"
        raise UsageError(message, hint="it begins with ssh-ed25519") from error


def _ask(agent: str, request: bytes) -> bytes:
    """Send a request to an agent and return its answer, without lengths."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(agent)
            connection.sendall(_string(request))
            # An answer is an SSH string: four bytes of length, then the message.
            length = int.from_bytes(_receive(connection, 4), "big")
            # Before anything is read: another program's socket may say any length.
            if length > MOST_BYTES:
                message = f"the ssh-agent at {agent} claims to send {length} bytes"
                raise HostError(message, hint="is SSH_AUTH_SOCK the socket of an ssh-agent?")
            return _receive(connection, length)
    except (OSError, EOFError) as error:
        message = f"no ssh-agent answers at {agent}: {error or 'it hung up'}"
        raise HostError(message, hint="SSH_AUTH_SOCK names its socket; `ssh-add -l`") from error


def _receive(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _string(data: bytes) -> bytes:
    """Return bytes as SSH's `string`: length, then bytes (RFC 4251, 5)."""
    return len(data).to_bytes(4, "big") + data


def _strings(data: bytes) -> Iterator[bytes]:
    """Yield the SSH strings that follow one another; one that is cut off is left out."""
    place = 0
    while place + 4 <= len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "big")
        if end > len(data):
            return
        yield data[place + 4 : end]
        place = end
