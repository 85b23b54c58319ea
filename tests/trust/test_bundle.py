"""Trust that ends: bundles, roles, thresholds, revocations, tags that expire, clocks that lag."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import replace

from envferry.base.times import rfc3339
from envferry.errors import IntegrityError, SpecError, UsageError
from envferry.names import Ref
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from envferry.trust.bundle import (
    PAYLOAD_TYPE,
    BundleFile,
    BundleKey,
    RevokedArtifact,
    SignedBundle,
    TrustBundle,
    decode_bundle,
    follow_to,
)
from envferry.trust.bundle_edit import (
    BundleEditor,
    add_key,
    revoke_artifact,
    revoke_key,
    set_threshold,
)
from envferry.trust.host_trust import Trust
from envferry.trust.signed_clock import SignedClock
from envferry.trust.signing import generate_key, parse_public_key, parse_signing_key, seal
from tests.support.artifacts import PLATFORM, make_artifact
from tests.support.keys import signer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envferry.models import Artifact, Manifest
    from envferry.trust.signing import SigningKey

NOW = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
STABLE = Ref.parse("demo@stable")


class Person:
    """Somebody with a key."""

    def __init__(self, name: str) -> None:
        private, public = generate_key()
        self.name, self.pem = name, public.decode()
        self.key: SigningKey = parse_signing_key(private, name)
        self.public = parse_public_key(public, name)

    def may(self, *roles: Any, **times: str) -> Callable[[TrustBundle], TrustBundle]:
        """Return the change that gives the key roles."""
        return add_key(BundleKey(name=self.name, pem=self.pem, roles=roles, **times))


ROOT, NEW_ROOT, CI, OTHER = (Person(name) for name in ("root", "new root", "ci", "other"))


def edited(before: SignedBundle | None, change: Any, *people: Person) -> SignedBundle:
    keys = tuple(person.key for person in people or (ROOT,))
    return BundleEditor(keys, NOW).edited(before, change)


def first(*changes: Any) -> SignedBundle:
    """Return a bundle whose root is ROOT."""
    made = edited(None, ROOT.may("root"))
    for change in changes:
        made = edited(made, change)
    return made


def accepted(signed: SignedBundle, known: SignedBundle | None = None) -> TrustBundle:
    anchors = (ROOT.public,)
    read = decode_bundle(signed.to_bytes(), "it")
    return follow_to(read, known.bundle if known else None, anchors, NOW)


def test_a_first_bundle_must_be_signed_by_a_key_that_is_trusted() -> None:
    made = first()
    assert accepted(made).version == 1
    with pytest.raises(IntegrityError, match="none of the keys that this host trusts"):
        follow_to(made, None, (OTHER.public,), NOW)


def test_the_next_version_is_signed_by_the_root_keys_of_the_one_before() -> None:
    one = first()
    two = edited(one, CI.may("release"))
    assert accepted(two, one).version == 2
    foreign = edited(edited(None, OTHER.may("root"), OTHER), CI.may("release"), OTHER)
    with pytest.raises(IntegrityError, match="signed by 0 root keys"):
        accepted(foreign, one)


def test_root_keys_rotate_and_hosts_follow_from_any_version() -> None:
    one = first()
    two = edited(one, CI.may("release"))
    three = edited(two, NEW_ROOT.may("root"), ROOT)
    four = edited(three, revoke_key(ROOT.public.id, "rotated", NOW), ROOT, NEW_ROOT)
    five = edited(four, OTHER.may("tag"), NEW_ROOT)
    for known in (None, one, two, three, four):
        assert accepted(five, known).version == 5
    with pytest.raises(IntegrityError, match="signed by 0 root keys"):
        accepted(_by_old_root(five), five)


def _by_old_root(before: SignedBundle) -> SignedBundle:
    """Return a version that only the revoked root key signed."""
    bundle = msgspec.structs.replace(before.bundle, version=before.bundle.version + 1)
    envelope = seal(PAYLOAD_TYPE, msgspec.json.encode(bundle), (ROOT.key,))
    return SignedBundle(bundle, BundleFile(bundle=envelope, history=before.file.history))


def test_a_bundle_does_not_go_back() -> None:
    one = first()
    two = edited(one, CI.may("tag"))
    with pytest.raises(IntegrityError, match="is older, or from another history"):
        accepted(one, two)
    aside = edited(one, OTHER.may("tag"))
    with pytest.raises(IntegrityError, match="is older, or from another history"):
        accepted(aside, two)
    assert accepted(two, two) == two.bundle


def test_several_root_keys_must_sign_where_the_threshold_says_so() -> None:
    one = first(NEW_ROOT.may("root"), set_threshold("root", 2))
    two = edited(one, CI.may("release"), ROOT)
    with pytest.raises(IntegrityError, match=r"signed by 1 root keys .* asks for 2"):
        accepted(two, one)
    both = BundleEditor((NEW_ROOT.key,), NOW).countersigned(two)
    assert accepted(both, one).version == one.bundle.version + 1


def test_one_key_does_not_count_twice() -> None:
    one = first(NEW_ROOT.may("root"), set_threshold("root", 2))
    two = edited(one, CI.may("release"), ROOT, ROOT)
    assert len(two.file.bundle.signatures) == 2
    with pytest.raises(IntegrityError, match="signed by 1 root keys"):
        accepted(two, one)
    twin = msgspec.structs.replace(
        one.bundle, keys=(*one.bundle.keys, BundleKey(name="twin", pem=ROOT.pem, roles=("root",)))
    )
    envelope = seal(PAYLOAD_TYPE, msgspec.json.encode(twin), (ROOT.key,))
    with pytest.raises(IntegrityError, match="it lists a key twice"):
        decode_bundle(SignedBundle(twin, BundleFile(bundle=envelope)).to_bytes(), "it")


@pytest.mark.parametrize(
    "change",
    [
        CI.may("release"),
        ROOT.may("root", expires="tomorrow"),
        lambda bundle: msgspec.structs.replace(ROOT.may("root")(bundle), thresholds={"root": 2}),
        lambda bundle: msgspec.structs.replace(ROOT.may("root")(bundle), thresholds={"tag": 0}),
        lambda bundle: msgspec.structs.replace(
            bundle, keys=(BundleKey(name="x", pem="none", roles=("root",)),)
        ),
    ],
)
def test_a_bundle_that_nobody_could_obey_is_not_made(change: Any) -> None:
    with pytest.raises(UsageError, match="would not work"):
        edited(None, change)


def test_a_stranger_cannot_make_a_version() -> None:
    with pytest.raises(UsageError, match="none of the keys that sign is a root key"):
        edited(first(), CI.may("tag"), OTHER)


def test_damaged_bundles() -> None:
    good = first()
    for data in (b"", b"{", good.to_bytes()[:-40], good.to_bytes().replace(b"payload", b"pay")):
        with pytest.raises(IntegrityError, match="damaged"):
            decode_bundle(data, "it")
    newer = msgspec.structs.replace(good.bundle, schema=2)
    file = BundleFile(bundle=seal(PAYLOAD_TYPE, msgspec.json.encode(newer), (ROOT.key,)))
    with pytest.raises(SpecError, match="schema 2"):
        decode_bundle(SignedBundle(newer, file).to_bytes(), "it")
    other = BundleFile(bundle=seal("application/x", b"{}", (ROOT.key,)))
    with pytest.raises(IntegrityError, match="something else"):
        decode_bundle(SignedBundle(newer, other).to_bytes(), "it")


# What a host accepts


class Site:
    """A registry, and a host with a bundle."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path, self.url = tmp_path, str(tmp_path / "bucket")
        self.envs_dir = tmp_path / "envs"

    def push(self, *people: Person, seed: int = 1, **signing: Any) -> Artifact:
        artifact = make_artifact(self.tmp_path / "packed", seed=seed)
        made = replace(signer(*(person.key for person in people)), **signing)
        trust = Trust(keys=tuple(person.public for person in (CI, OTHER, ROOT)))
        registry = Registry.open(self.url, signer=made, trust=trust)
        push_artifact(artifact, registry=registry, tags=("stable",), progress=Silent())
        return artifact

    def trust(self, bundle: TrustBundle, now: datetime = NOW, **more: Any) -> Trust:
        return Trust(
            keys=tuple(key.public for key in bundle.keys),
            envs_dir=self.envs_dir,
            bundle=bundle,
            clock=SignedClock(self.envs_dir, now),
            **more,
        )

    def ask(self, trust: Trust, ref: Ref = STABLE) -> Manifest:
        registry = Registry.open(self.url, trust=trust)
        return registry.manifest(ref.name, PLATFORM, registry.resolve(ref, PLATFORM))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


BOTH = ("release", "tag")


def test_a_key_signs_only_what_its_roles_allow(site: Site) -> None:
    artifact = site.push(CI)
    assert site.ask(site.trust(first(CI.may(*BOTH)).bundle)) == artifact.manifest
    with pytest.raises(IntegrityError, match=r"the tag demo@stable .* not signed by a trusted key"):
        site.ask(site.trust(first(CI.may("release")).bundle))
    with pytest.raises(IntegrityError, match=r"the artifact demo.* not signed by a trusted key"):
        site.ask(site.trust(first(CI.may("tag")).bundle))
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        site.ask(site.trust(first(CI.may("tool", "database", "root")).bundle))


def test_as_many_keys_must_sign_as_the_threshold_says(site: Site) -> None:
    bundle = first(CI.may(*BOTH), OTHER.may("release"), set_threshold("release", 2)).bundle
    site.push(CI)
    with pytest.raises(IntegrityError, match="signed by 1 trusted keys, 2 are required"):
        site.ask(site.trust(bundle))
    artifact = site.push(CI, OTHER)
    assert site.ask(site.trust(bundle)) == artifact.manifest


def test_a_threshold_of_tags(site: Site) -> None:
    bundle = first(CI.may(*BOTH), OTHER.may("tag"), set_threshold("tag", 2)).bundle
    site.push(CI)
    with pytest.raises(IntegrityError, match=r"the tag .* signed by 1 trusted keys, 2"):
        site.ask(site.trust(bundle))
    site.push(OTHER)
    site.ask(site.trust(bundle))
    site.push(CI, OTHER, seed=2)
    site.ask(site.trust(bundle))


@pytest.mark.parametrize(
    ("times", "is_valid"),
    [
        ({}, True),
        ({"not_before": "2026-11-29T12:00:00Z", "expires": "2026-11-29T12:00:00Z"}, True),
        ({"not_before": "2026-11-29T12:00:01Z"}, False),
        ({"expires": "2026-11-29T11:59:59Z"}, False),
    ],
)
def test_keys_begin_and_end(site: Site, times: dict[str, str], is_valid: bool) -> None:
    site.push(CI)
    trust = site.trust(first(CI.may(*BOTH, **times)).bundle)
    if is_valid:
        site.ask(trust)
    else:
        with pytest.raises(IntegrityError, match="not signed by a trusted key"):
            site.ask(trust)


def test_a_revoked_key_counts_no_more_even_if_the_command_line_names_it(site: Site) -> None:
    site.push(CI)
    bundle = first(CI.may(*BOTH), revoke_key(CI.public.id, "stolen", NOW)).bundle
    trust = site.trust(bundle, named_keys=(CI.public,))
    reason = f"not signed by a trusted key.*; {CI.public.id} was revoked on [0-9-]+: stolen"
    with pytest.raises(IntegrityError, match=reason):
        site.ask(trust)
    known = first(OTHER.may(*BOTH)).bundle
    assert site.ask(site.trust(known, named_keys=(CI.public,)))


def test_a_revoked_artifact_is_not_installed_by_whatever_name(site: Site) -> None:
    artifact = site.push(CI)
    gone = RevokedArtifact(
        name="demo",
        platform=PLATFORM,
        id=artifact.manifest.id,
        why="bad weights",
        time=rfc3339(NOW),
    )
    trust = site.trust(first(CI.may(*BOTH), revoke_artifact(gone)).bundle)
    for ref in (STABLE, Ref.parse(f"demo@{artifact.manifest.id}")):
        with pytest.raises(IntegrityError, match="was revoked on 2026-11-29: bad weights"):
            site.ask(trust, ref)
    other = site.push(CI, seed=2)
    assert site.ask(trust) == other.manifest


# Tags that expire


def until(days: int) -> str:
    return rfc3339(NOW + timedelta(days=days))


def test_a_tag_warns_then_is_refused(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.push(CI, time=rfc3339(NOW), tags_expire=until(10))
    bundle = first(CI.may(*BOTH)).bundle
    grace = timedelta(days=5)
    site.ask(site.trust(bundle, NOW + timedelta(days=9), grace=grace))
    assert "expired" not in caplog.text
    with caplog.at_level(logging.WARNING):
        site.ask(site.trust(bundle, NOW + timedelta(days=12), grace=grace))
    assert "has expired on" in caplog.text
    with pytest.raises(IntegrityError, match="has expired on"):
        site.ask(site.trust(bundle, NOW + timedelta(days=16), grace=grace))


def test_tags_expire_for_hosts_without_a_bundle_too(site: Site) -> None:
    site.push(CI, time=rfc3339(NOW), tags_expire=until(10))
    clock = SignedClock(site.envs_dir, NOW + timedelta(days=11))
    with pytest.raises(IntegrityError, match="has expired"):
        site.ask(Trust(keys=(CI.public,), envs_dir=site.envs_dir, clock=clock))


def test_the_end_of_a_tag_is_signed(site: Site) -> None:
    site.push(CI, time=rfc3339(NOW), tags_expire=until(10))
    (path,) = site.tmp_path.glob("bucket/v1/tags/demo/*/stable")
    text = path.read_text()
    bundle = first(CI.may(*BOTH)).bundle
    for changed in (text.replace(until(10), until(9999)), _without_expiry(text)):
        path.write_text(changed)
        with pytest.raises(IntegrityError, match="not signed by a trusted key"):
            site.ask(site.trust(bundle))


def _without_expiry(text: str) -> str:
    record = msgspec.json.decode(text)
    return msgspec.json.encode({k: v for k, v in record.items() if k != "expires"}).decode()


def test_renewing_a_tag_is_a_move_that_mirrors_take(site: Site) -> None:
    site.push(CI, time=rfc3339(NOW), tags_expire=until(10))
    (path,) = site.tmp_path.glob("bucket/v1/tags/demo/*/stable")
    before = msgspec.json.decode(path.read_bytes())
    site.push(CI, time=until(9), tags_expire=until(20))
    after = msgspec.json.decode(path.read_bytes())
    assert (after["counter"], after["id"]) == (before["counter"] + 1, before["id"])
    bundle = first(CI.may(*BOTH)).bundle
    site.ask(site.trust(bundle, NOW + timedelta(days=15)))


def test_records_without_an_end_are_signed_as_they_always_were(site: Site) -> None:
    site.push(CI)
    (path,) = site.tmp_path.glob("bucket/v1/tags/demo/*/stable")
    assert set(msgspec.json.decode(path.read_bytes())) == {"counter", "id", "schema", "signatures"}


# Clocks


def test_a_clock_that_was_put_back_does_not_bring_an_expired_tag_back(site: Site) -> None:
    """What this host has seen signed later is a floor for its clock."""
    site.push(CI, time=rfc3339(NOW), tags_expire=until(10))
    bundle = first(CI.may(*BOTH)).bundle
    (path,) = site.tmp_path.glob("bucket/v1/tags/demo/*/stable")
    old = path.read_bytes()
    site.push(CI, seed=2, time=until(40), tags_expire=until(50))
    wrong = datetime(2000, 1, 1, tzinfo=timezone.utc)
    site.ask(site.trust(bundle, wrong))
    path.write_bytes(old)
    with pytest.raises(IntegrityError, match="has expired"):
        site.ask(site.trust(bundle, wrong, allow_downgrade=True))


def test_a_key_that_ended_stays_ended_when_the_clock_goes_back(site: Site) -> None:
    bundle = first(CI.may(*BOTH, expires=until(10)), OTHER.may(*BOTH)).bundle
    site.push(OTHER, time=until(40), tags_expire=until(50))
    site.ask(site.trust(bundle, NOW))
    site.push(CI, seed=2, time=until(5), tags_expire=until(9))
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        site.ask(site.trust(bundle, NOW))


def test_unsigned_times_do_not_move_the_floor(site: Site) -> None:
    site.push(CI, time=until(40), tags_expire=until(50))
    with pytest.raises(IntegrityError):
        site.ask(site.trust(first(OTHER.may(*BOTH)).bundle))
    assert SignedClock(site.envs_dir, NOW).now == NOW


@pytest.mark.parametrize(("minutes", "is_said"), [(1, False), (6, True)])
def test_a_clock_that_is_behind_is_said(
    site: Site, caplog: pytest.LogCaptureFixture, minutes: int, is_said: bool
) -> None:
    later = rfc3339(NOW + timedelta(minutes=minutes))
    site.push(CI, time=later, tags_expire=until(10))
    site.ask(site.trust(first(CI.may(*BOTH)).bundle))
    assert ("the clock of this machine is behind" in caplog.text) is is_said
    assert SignedClock(site.envs_dir, NOW).now == NOW + timedelta(minutes=minutes)
