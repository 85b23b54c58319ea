"""What holds keys outside of files: OpenSSH's agent and a SoftHSM token, both real."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPACKED = Path(sys.prefix) / "softhsm/usr"
"""Where bootstrap.sh softhsm puts it when the system has none."""
PIN = "four words of SoftHSM"
MAKE_KEY = """
import sys, pkcs11
from asn1crypto.core import PrintableString
from pkcs11 import Attribute, KeyType, Mechanism
module, token, pin, label = sys.argv[1:]
with pkcs11.lib(module).get_token(token_label=token).open(user_pin=pin, rw=True) as session:
    curve = {Attribute.EC_PARAMS: PrintableString("edwards25519").dump()}
    parameters = session.create_domain_parameters(KeyType.EC_EDWARDS, curve, local=True)
    parameters.generate_keypair(
        mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, label=label, id=b"\\x07"
    )
"""
"""pkcs11-tool of OpenSC does the same: --keygen --key-type EC:edwards25519."""


@contextmanager
def ssh_agent(folder: Path) -> Iterator[str]:
    """Run an agent without keys while the block runs; yield its socket."""
    path = folder / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        wait_until(path.exists, "the agent's socket")
        yield str(path)
    finally:
        agent.terminate()
        agent.wait(10)


def add_ssh_key(agent: str, folder: Path, name: str, kind: str = "ed25519") -> Path:
    """Make a key with ssh-keygen, give it to an agent, and return its public half's path."""
    path = folder / name
    make = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"{name}@desk", "-f", str(path)]
    subprocess.run(make, check=True)
    environ = {**os.environ, "SSH_AUTH_SOCK": agent}
    subprocess.run(["ssh-add", "-q", str(path)], check=True, env=environ)
    path.unlink()  # the agent alone has it
    return path.with_name(f"{name}.pub")


def softhsm_util() -> Path | None:
    """Return SoftHSM's tool, of the system or unpacked; None where there is none."""
    found = [Path("/usr/bin/softhsm2-util"), UNPACKED / "bin/softhsm2-util"]
    return next((path for path in found if path.is_file()), None)


@dataclass(frozen=True)
class Token:
    """A SoftHSM token with the key `envferry`."""

    module: Path
    config: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"SOFTHSM2_CONF": str(self.config)}

    def uri(self, label: str = "envferry", token: str = "release", more: str = "") -> str:
        """Return a URI as RFC 7512 has it."""
        return f"pkcs11:token={token};object={label}?module-path={self.module}{more}"


def make_token(folder: Path) -> Token:
    """Initialise a token, and make a key in it that cannot be taken out."""
    util = softhsm_util()
    assert util
    module = next(util.parents[1].glob("lib/*/softhsm/libsofthsm2.so"))
    tokens, config = folder / "tokens", folder / "softhsm2.conf"
    tokens.mkdir()
    config.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\n")
    environ = {**os.environ, "SOFTHSM2_CONF": str(config)}
    names = ["--init-token", "--free", "--label", "release", "--so-pin", "12345678", "--pin", PIN]

    subprocess.run([str(util), "--module", str(module), *names], check=True, env=environ, stdout=-3)
    script = [sys.executable, "-c", MAKE_KEY, str(module), "release", PIN, "envferry"]
    subprocess.run(script, check=True, env=environ)
    return Token(module, config)
