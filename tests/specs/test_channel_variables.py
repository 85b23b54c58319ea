"""Variables in the URLs of channels: what is replaced, and what is refused."""

from __future__ import annotations

import pytest

from envferry.errors import SpecError
from envferry.redaction import without_credentials
from envferry.specs.channel_names import read_channel_names
from envferry.specs.channel_variables import with_variables


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CH_USER": "me",
        "CH_TOKEN": "s3cret",
        "CH_ODD": "a/b@c:d#e f%$CH_USER",
        "CH_CODED": "p%40w",
        "CH_HOST": "host",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CH_NONE", raising=False)


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("https://$CH_USER:${CH_TOKEN}@host/c", "https://me:s3cret@host/c"),
        ("https://$CH_TOKEN@host:8443/c/d", "https://s3cret@host:8443/c/d"),
        ("https://host/t/$CH_TOKEN/c", "https://host/t/s3cret/c"),
        ("https://host/t/${CH_TOKEN}", "https://host/t/s3cret"),
        ("https://me:$CH_CODED@host/c", "https://me:p%40w@host/c"),
        (
            "https://me:$CH_ODD@host/c",
            "https://me:a%2Fb%40c%3Ad%23e%20f%25%24CH_USER@host/c",
        ),
        ("https://me:pa$$@host/c", "https://me:pa$$@host/c"),
        ("https://host/c", "https://host/c"),
        ("conda-forge", "conda-forge"),
        ("./$CH_USER", "./$CH_USER"),
    ],
)
def test_the_values_of_logins(channel: str, expected: str) -> None:
    assert with_variables(channel) == expected
    assert with_variables(expected) == expected
    bare = without_credentials(expected)
    assert not any(secret in bare for secret in ("s3cret", "p%40w", "a%2F"))


@pytest.mark.parametrize(
    ("channel", "why"),
    [
        ("https://$CH_USER:$CH_NONE@host/c", "CH_NONE, which is not set"),
        ("https://host/t/${CH_NONE}/c", "CH_NONE, which is not set"),
        ("https://$CH_HOST/c", "outside of its login"),
        ("https://host/$CH_USER/c", "outside of its login"),
        ("https://host/conda/t/$CH_TOKEN/c", "cannot be told from folders"),
    ],
)
def test_what_is_refused(channel: str, why: str) -> None:
    with pytest.raises(SpecError) as caught:
        with_variables(channel)
    assert why in caught.value.message
    assert caught.value.hint
    assert "s3cret" not in caught.value.message


def test_wherever_a_channel_is_told() -> None:
    """In the list, before `::`, and in the spec's own table."""
    written, filled = "https://$CH_USER:$CH_TOKEN@host/c", "https://me:s3cret@host/c"
    names = read_channel_names([], {"ours": written})
    assert names.resolve([written, "ours", "conda-forge"]) == (filled, "conda-forge")
    assert names.resolve_spec(f"{written}::numpy=2") == f"{filled}::numpy=2"
    assert names.resolve_spec("ours::numpy=2") == f"{filled}::numpy=2"
