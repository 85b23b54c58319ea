"""The ways to a bucket that sites have: roles, their own authority, host names, and who listens."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from demo.seaweed import seaweed
from envferry.errors import StoreError
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from envferry.stores.opening import open_store
from envferry.stores.port import KnownRange
from envferry.stores.receive import content_of_file
from envferry.stores.s3.multipart import PART_BYTES
from tests.support.artifacts import make_artifact
from tests.support.cli_runner import ENVFERRY
from tests.support.fault_proxy import Plan, fault_proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.seaweed import S3Server

pytestmark = pytest.mark.s3

ROLE = "build-machine"
MARKER = b"the bytes of an environment, which anybody on the way may read\n"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port; yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def without_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave no credentials in the environment and in files."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def test_an_instance_role(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's metadata service (IMDSv2) hands out the keys."""
    asked: list[str] = []
    expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    keys = {
        "Code": "Success",
        "AccessKeyId": s3_server.access_key,
        "SecretAccessKey": s3_server.secret_key,
        "Token": "",
        "Expiration": f"{expiry:%Y-%m-%dT%H:%M:%SZ}",
    }

    class Metadata(BaseHTTPRequestHandler):
        """Answers as the service at 169.254.169.254 does."""

        def answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            place = "/latest/meta-data/iam/security-credentials/"
            has_token = self.headers.get("x-aws-ec2-metadata-token") == "t0ken"
            texts = {place: ROLE, f"{place}{ROLE}": json.dumps(keys)} if has_token else {}
            if self.command == "PUT":
                texts = {"/latest/api/token": "t0ken"}
            text = texts.get(self.path)
            self.send_response(200 if text else 404)
            self.send_header("Content-Length", str(len(text or "")))
            self.end_headers()
            self.wfile.write((text or "").encode())

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    without_keys(monkeypatch, tmp_path)
    with serving(Metadata) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
        store = open_store(s3_url)
        store.create("a", b"x")
        assert store.read("a") == b"x"
    assert asked[0] == "PUT /latest/api/token"


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a site, and a server's certificate that it signed."""

    ca_path: Path
    server_path: Path

    @classmethod
    def make(cls, folder: Path, age: datetime.timedelta = datetime.timedelta(0)) -> Authority:
        """Write both in PEM; they are valid for a day before and after the moment of that age."""
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name, name = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("site", "s3")
        )
        now = datetime.datetime.now(datetime.timezone.utc) - age

        def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = x509.CertificateBuilder(
                issuer_name=ca_name,
                subject_name=subject,
                public_key=public,
                serial_number=x509.random_serial_number(),
                not_valid_before=now - datetime.timedelta(days=1),
                not_valid_after=now + datetime.timedelta(days=1),
            )
            is_ca = subject == ca_name
            builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            names = x509.SubjectAlternativeName([address])
            return builder.add_extension(names, critical=False).sign(ca_key, hashes.SHA256())

        pem = serialization.Encoding.PEM
        authority = cls(folder / "ca.pem", folder / "server.pem")
        authority.ca_path.write_bytes(certificate(ca_name, ca_key.public_key()).public_bytes(pem))
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain = certificate(name, key.public_key()).public_bytes(pem)
        authority.server_path.write_bytes(private + chain)
        return authority


@dataclass
class Relay:
    """Passes connections on to a port, and keeps what it sees of them."""

    port: int
    tls: ssl.SSLContext | None = None
    """Ends TLS here, as a load balancer does; what was seen is then what it decrypted."""
    seen: list[bytes] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Listen on a free port while the block runs."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0.1)
            stopped = threading.Event()
            thread = threading.Thread(target=self._accept, args=(listener, stopped))
            thread.start()
            try:
                yield listener.getsockname()[1]
            finally:
                stopped.set()
                thread.join()

    def _accept(self, listener: socket.socket, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        try:
            client.settimeout(None)
            if self.tls:
                client = self.tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            client.close()
            return
        there = threading.Thread(target=self._pour, args=(client, server), daemon=True)
        there.start()
        self._pour(server, client)
        there.join()
        client.close()
        server.close()

    def _pour(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.seen.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@contextmanager
def behind_tls(server: S3Server, authority: Authority) -> Iterator[int]:
    """Run something that ends TLS in front of a server; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_path)
    port = urlsplit(server.endpoint_url).port
    assert port
    with Relay(port, context).running() as tls_port:
        yield tls_port


def test_an_authority_of_ones_own(
    s3_server: S3Server, s3_url: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AWS_CA_BUNDLE the site's authority is trusted, and only with it."""
    with behind_tls(s3_server, authority) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://127.0.0.1:{port}")
        with pytest.raises(StoreError, match="cannot reach") as caught:
            open_store(s3_url).stat("a")
        assert "AWS_CA_BUNDLE" in caught.value.hint
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca_path))
        store = open_store(s3_url)
        store.create("a", b"x")
        assert store.read("a") == b"x"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_listens_on_the_network(
    s3_server: S3Server,
    s3_url: str,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    """Without TLS the bytes are there to read, but never a secret; with it nothing is."""
    port = urlsplit(s3_server.endpoint_url).port
    assert port
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca_path))
    with behind_tls(s3_server, authority) as tls_port:
        listener = Relay(tls_port if scheme == "https" else port)
        with listener.running() as heard:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{scheme}://127.0.0.1:{heard}")
            store = open_store(s3_url)
            store.create("environment", MARKER)
            assert store.read("environment") == MARKER
    record = b"".join(listener.seen)
    assert s3_server.secret_key.encode() not in record
    assert (MARKER in record) == (scheme == "http")
    assert (b"environment" in record) == (scheme == "http")


def test_a_bucket_in_the_host_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual-host style: the names are not in any DNS, so a proxy finds the way."""
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with seaweed(tmp_path / "data", "-s3.domainName=s3.example") as server:
        plan = Plan(upstream=server.endpoint_url)
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        port = urlsplit(server.endpoint_url).port
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://s3.example:{port}")
        with fault_proxy(plan) as url:
            for name in ("http_proxy", "HTTP_PROXY"):
                monkeypatch.setenv(name, url)
            for name in ("no_proxy", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)
            registry = Registry.open(f"s3://{server.bucket}/site")
            artifact = make_artifact(tmp_path / "packed", PART_BYTES + 5)
            push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
            registry.verify_archive(artifact.manifest, progress=Silent())
            (entry,) = registry.environments()
        assert entry.tags == ("latest", "stable")
        assert {urlsplit(path).hostname for path in plan.paths} == {f"{server.bucket}.s3.example"}


def test_a_killed_push_goes_on(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of an upload: the next push sends the parts that are missing."""
    parts = 8
    artifact = make_artifact(tmp_path / "packed", parts * PART_BYTES - 2000)
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        argv = [str(ENVFERRY), "push", str(artifact.archive_path), "--registry", s3_url, "-q"]
        journal = artifact.archive_path.with_name(f".{artifact.archive_path.name}.upload")
        with subprocess.Popen(argv) as push:
            wait_until(lambda: arrived(journal) >= 2 or push.poll() is not None, "parts arrived")
            push.send_signal(signal.SIGKILL)
        assert push.returncode == -signal.SIGKILL
        before = arrived(journal)
        assert 2 <= before < parts
        assert Registry.open(s3_url).environments() == ()
        plan.sent.clear()
        subprocess.run(argv, check=True)
        expected = (parts - before) * PART_BYTES
        assert expected - 2000 <= plan.sent_bytes < expected + 20_000
        registry = Registry.open(s3_url)
        registry.verify_archive(artifact.manifest, progress=Silent())
        assert list(registry.store.list_unfinished("")) == []


def arrived(journal: Path) -> int:
    """The parts that a journal names."""
    return max(journal.read_text().count("\n") - 1, 0) if journal.exists() else 0


def test_what_the_store_will_not_copy_is_sent(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without UploadPartCopy, or one that forbids it, costs bytes and nothing else."""
    data = os.urandom(24 << 20)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(data)
    new.write_bytes(data + b"more")
    known = (KnownRange(0, len(data), "old", 0),)
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        store.create_from_file("old", old)
        for number, fault in enumerate((None, "denied", "unimplemented")):
            plan.copies = fault
            plan.sent.clear()
            with content_of_file(new) as content:
                store.receive(f"new-{number}", content, known=known)
            assert store.read(f"new-{number}") == new.read_bytes()
            assert (plan.sent_bytes > len(data)) == (fault is not None)


@pytest.mark.parametrize(("scheme", "size"), [("https", PART_BYTES - 1), ("http", 2 * PART_BYTES)])
def test_bytes_that_change_on_the_way_up_are_refused(
    s3_server: S3Server,
    s3_url: str,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    size: int,
) -> None:
    """The server compares each body with the checksum that came with it."""
    source = tmp_path / "large"
    source.write_bytes(os.urandom(size))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca_path))
    plan = Plan(upstream=s3_server.endpoint_url, flips=True)
    with (
        fault_proxy(plan) as url,
        behind_tls(replace(s3_server, endpoint_url=url), authority) as port,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        if scheme == "https":
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://127.0.0.1:{port}")
        store = open_store(s3_url)
        with pytest.raises(StoreError) as caught:
            store.create_from_file("large", source)
        assert "damaged" in caught.value.message
        assert store.stat("large") is None
        plan.flips = False
        store.create_from_file("large", source)
        assert store.read("large") == source.read_bytes()


def test_a_damaged_part_beside_copied_ones_is_refused(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload with copies has no CRC32, which would double the server's work, but an MD5."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(os.urandom(2 * PART_BYTES))
    new.write_bytes(os.urandom(PART_BYTES) + old.read_bytes())
    known = (KnownRange(PART_BYTES, 2 * PART_BYTES, "old", 0),)
    plan = Plan(upstream=s3_server.endpoint_url)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        store.create_from_file("old", old)
        plan.flips, checksums = True, plan.seen["checksums"]
        with pytest.raises(StoreError, match="damaged"), content_of_file(new) as content:
            store.receive("new", content, known=known)
        assert store.stat("new") is None
        assert plan.seen["checksums"] == checksums
        plan.flips = False
        with content_of_file(new) as content:
            store.receive("new", content, known=known)
        assert store.read("new") == new.read_bytes()


@pytest.mark.parametrize("fault", ["unimplemented", "argument"])
def test_a_server_that_knows_no_checksums(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(3 * PART_BYTES))
    plan = Plan(upstream=s3_server.endpoint_url, checksums=fault)
    with fault_proxy(plan) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        store = open_store(s3_url)
        store.create_from_file("large", source)
        assert store.read("large") == source.read_bytes()
        version = store.replace("tag", b"1", None)
        store.replace("tag", b"2", version)
        assert plan.seen["checksums"] == 1


def test_secrets_are_in_no_process_list(
    s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a push signs and sends, `ps` shows neither key."""
    subprocess.run([ENVFERRY, "keygen", tmp_path / "ours", "-q"], check=True, capture_output=True)
    pem = (tmp_path / "ours.key").read_text()
    monkeypatch.setenv("ENVFERRY_SIGN_KEY", pem)
    artifact = make_artifact(tmp_path / "packed", 3 * PART_BYTES)
    secrets = [s3_server.secret_key.encode(), pem.splitlines()[1].encode()]
    lines: set[bytes] = set()
    with subprocess.Popen(
        [ENVFERRY, "push", artifact.archive_path, "--registry", s3_url, "-vv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as push:
        while push.poll() is None:
            lines |= process_list()
        assert push.stdout
        said = push.stdout.read()
    assert push.returncode == 0
    assert any(b"push" in line and str(artifact.archive_path).encode() in line for line in lines)
    for secret in secrets:
        assert secret not in said
        assert not any(secret in line for line in lines)


def process_list() -> set[bytes]:
    """The command lines of all processes, as `ps` shows them."""
    lines = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.add(path.read_bytes())
        except OSError:
            continue
    return lines
