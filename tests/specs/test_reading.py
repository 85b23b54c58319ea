"""Reading specs: the users' own file, and every way in which a file is no spec."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from envferry.errors import NotFound, PipelineError, SpecError
from envferry.models import Checks, SystemRequirements
from envferry.specs.reading import find_spec, read_spec

SPECS_DIR = Path(__file__).parents[2] / "specs"


def write(directory: Path, text: str | bytes, name: str = "torch.yml") -> Path:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_users_own_file_reads_as_it_is() -> None:
    spec = read_spec(SPECS_DIR / "transformer_env.yml")
    assert spec.name == "transformer_env"
    assert spec.channels == ("conda-forge", "defaults")
    assert (len(spec.conda), len(spec.pip)) == (32, 172)
    assert "python=3.10.19=h6fa692b_0" in spec.conda
    assert "partial-json-parser==0.2.1.1.post6" in spec.pip


def test_lines_are_kept_as_written_and_numbers_are_text(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: n\nchannels: [conda-forge, nodefaults]\nplatforms: [linux-aarch64]\n"
        "pip-repositories: [https://example.org/simple]\nprefix: /opt/x\n"
        "dependencies:\n  - conda-forge::numpy\n  - numpy-base >=2  # why\n  - pip:\n"
        "    - --find-links ./wheels\n    - 'torch==2.8.0; python_version > \"3.9\"'\n"
        "envferry:\n  version: 1.10\n  system: {glibc: 2.30, cuda: 12.8}\n"
        "  checks:\n    imports: [torch]\n    commands:\n",
    )
    spec = read_spec(path)
    assert spec.channels == ("conda-forge",)
    assert spec.conda == ("conda-forge::numpy", "numpy-base >=2")
    assert spec.pip == (
        "--extra-index-url https://example.org/simple",
        "--find-links ./wheels",
        'torch==2.8.0; python_version > "3.9"',
    )
    assert spec.platforms == ("linux-aarch64",)
    assert spec.options.version == "1.10"
    assert spec.options.system == SystemRequirements(glibc="2.30", cuda="12.8")
    assert spec.options.checks == Checks(imports=("torch",))


def test_extras_are_for_pip(tmp_path: Path) -> None:
    """conda reads `a[all]` as `a`; lint says so (S113)."""
    path = tmp_path / "n.yml"
    path.write_text("dependencies: ['python-lsp-server[all]', 'b[build=x*]', 'c >=1 [x,y]']\n")
    assert read_spec(path).conda == ("python-lsp-server", "b[build=x*]", "c >=1")


def test_the_file_names_a_spec_without_a_name(tmp_path: Path) -> None:
    assert read_spec(write(tmp_path, "dependencies: [python]")).name == "torch"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n", "torch.yml:1: expected a mapping with `dependencies:`, found a list"),
        ("torch\n", "found the text `torch`"),
        ("numpy==1.0\ntorch==2.8\n", "expected a mapping"),
        ("dependencies:\n\t- a\n", "torch.yml:2: expected YAML: a tab"),
        ("dependencies: [a\n", "torch.yml:2: expected YAML"),
        ("dependencies: [a]\nname: x\nname: y\n", "torch.yml:3: the key `name` is repeated"),
        ("dependencies: [a]\n---\ndependencies: [b]\n", "torch.yml:2: a second YAML document"),
        ("name: x\n", "has no `dependencies:`"),
        ("dependencies: a\n", "expected `dependencies:` to be a list, found `a`"),
        ("dependencies: []\n", "requires no packages"),
        ("dependencies: [[a]]\n", "expected a conda package or `pip:`"),
        ("dependencies:\n - a\n - pipp: [b]\n", "torch.yml:3: expected a conda package or `pip:`"),
        ("dependencies: [==3]\n", "expected a conda package such as"),
        ("dependencies:\n - pip: torch\n", "expected a list of requirements under `pip:`"),
        (
            "dependencies:\n - pip:\n   - torch=>2\n",
            "torch.yml:3: `torch=>2` is not a valid pip requirement",
        ),
        ("dependencies:\n - pip:\n   - -r nope.txt\n", "nope.txt, which does not exist"),
        ("dependencies: [numpy=1=a, numpy=2=b]\n", "for numpy contradict each other"),
        ("dependencies: [c::numpy, d::numpy]\n", "they name the channels c and d"),
        ("dependencies: [a]  # [linux and]\n", "torch.yml:1: `[linux and]` selects no platform"),
        (
            "dependencies:\n - python={{ python }}\n",
            "torch.yml:2: `python={{ python }}` contains the template",
        ),
        (
            "dependencies:\n - pip:\n   - --rich\n",
            "torch.yml:3: `--rich` is not a valid pip requirement",
        ),
        ("dependencies:\n - pip:\n   - hg+https://h.example.org/x\n", "hg repositories cannot"),
        ("dependencies: [a]\nplatforms: [win-64]\n", "is for win-64 only"),
        ("dependency: [a]\n", "no `dependencies:`: write it for `dependency`"),
        ("dependencies: [a]\nname: base\n", "conda's own installation"),
        ("dependencies: [a]\nname: a b\n", "'a b' is not a valid environment name"),
        ("dependencies: [a]\nname: [a]\n", "expected `name:` to be a name, found a list"),
        ("dependencies: [a]\nchannels: main\n", "expected `channels:` to be a list of names"),
        ("dependencies: [a]\nenvferry: [x]\n", "expected `envferry:` to be a mapping"),
        ("dependencies: [a]\nenvferry:\n  systems: x\n", "perhaps you meant `system`"),
        (
            "dependencies: [a]\nenvferry:\n  checks:\n   import: [x]\n",
            "perhaps you meant `imports`",
        ),
        ("dependencies: [a]\nenvferry: {platforms: x}\n", "Expected `array`"),
        ("dependencies: [a]\nenvferry: {platforms: [linux64]}\n", "perhaps you meant `linux-64`"),
        ("dependencies: [a]\nenvferry: {system: {glibc: new}}\n", "is not a valid version"),
        ("[" * 100_000, "nests far deeper"),
        ("dependencies: *a\n", "*a is not defined"),
        ("? [a]\n: b\n", "expected a key, found a list or mapping"),
        ("name: {{ x }}\n", "expected a key, found a list or mapping"),
        (b"\xff\x00a", "torch.yml:1: expected UTF-8 text, found the byte 0xff"),
        (b"\0" * 64, "is a binary file"),
        (b"a" * (9 << 20), "larger than 8 MB"),
    ],
)
def test_what_is_no_spec_is_refused_with_its_place(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        read_spec(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(SpecError, match="larger than 8 MB"):
        read_spec(path)


def test_a_directory_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Is a directory"):
        read_spec(tmp_path)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        st.lists(
            st.sampled_from(
                [
                    *("dependencies:", "- pip:", "  ", "\n", "- a", "envferry:", "name: "),
                    *("{", "]", "&x ", "*x", "!!int ", "? ", "|", "# [linux]", "\t", "'", "- -r x"),
                    *("2024-13-45", "0x", "- ", ": "),
                ]
            ),
            max_size=25,
        ).map(lambda words: "".join(words).encode()),
    )
)
def test_no_text_brings_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), text, "any.yml")
    try:
        read_spec(path)
        read_spec(path, platform="linux-64")
    except PipelineError:
        pass


def test_selectors_keep_lines_for_their_platforms(tmp_path: Path) -> None:
    path = write(
        tmp_path, "dependencies:\n  - a=1  # [linux64]\n  - a=2  # [aarch64]\n  - b  # [linux]\n"
    )
    assert read_spec(path, platform="linux-64").conda == ("a=1", "b")
    assert read_spec(path, platform="linux-aarch64").conda == ("a=2", "b")
    assert read_spec(path).conda == ("a=1", "a=2", "b")


def test_the_digest_is_the_documented_one(tmp_path: Path) -> None:
    spec = read_spec(
        write(
            tmp_path, "channels: [c]\ndependencies: [python, {pip: [six]}]\nplatforms: [linux-64]"
        )
    )
    form = (
        b'{"channels":["c"],"conda":["python"],"pip":["six"],"platforms":["linux-64"],'
        b'"schema":1,"system":{}}'
    )
    assert spec.digest == blake3(form).hexdigest()


BASE = "name: n\nchannels: [c]\ndependencies: [python, {pip: [six]}]\n"


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\n" + BASE,
        BASE.replace("name: n", "name: other"),
        BASE + "prefix: /somewhere\n",
        BASE + "envferry: {version: '2', checks: {imports: [six]}}\n",
    ],
)
def test_what_decides_nothing_leaves_the_digest(tmp_path: Path, same: str) -> None:
    assert read_spec(write(tmp_path, same)).digest == read_spec(write(tmp_path, BASE)).digest


@pytest.mark.parametrize(
    "other",
    [
        BASE.replace("six", "six==1.16"),
        BASE.replace("python", "python=3.10"),
        BASE.replace("[c]", "[d]"),
        BASE + "platforms: [linux-64]\n",
        BASE + "envferry: {system: {glibc: '2.35'}}\n",
        BASE.replace("dependencies: [python,", "dependencies: [python, # [linux]\n"),
    ],
)
def test_what_decides_the_lock_changes_the_digest(tmp_path: Path, other: str) -> None:
    digest = read_spec(write(tmp_path, BASE)).digest
    assert read_spec(write(tmp_path, other)).digest != digest


def test_a_named_requirements_file_counts(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("six\n")
    path = write(tmp_path, BASE.replace("six", "-r more.txt"))
    before = read_spec(path).digest
    (tmp_path / "more.txt").write_text("six==1.16\n")
    assert read_spec(path).digest != before


def test_find_spec_by_path_and_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    assert find_spec(str(path), tmp_path / "elsewhere") == path
    assert find_spec("torch", tmp_path) == path


@pytest.mark.parametrize("argument", ["troch", "specs/troch.yml"])
def test_a_missing_spec_names_the_ones_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.chdir(tmp_path)
    specs_dir = Path("specs")
    specs_dir.mkdir()
    write(specs_dir, BASE)
    write(specs_dir, BASE, "torch.conda-lock.yml")
    with pytest.raises(NotFound) as caught:
        find_spec(argument, specs_dir)
    assert "specs/troch.yml" in caught.value.message
    assert "(specs/ has torch)" in caught.value.message
    assert "did you mean `torch`?" in caught.value.hint


def bomb(levels: int) -> str:
    """A few lines that mean nine to the power of `levels` values."""
    lines = ["  x0: &x0 [l, l, l, l, l, l, l, l, l]"]
    lines += [f"  x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"dependencies: [python]\nvariables:\n{bomb(9)}\n", "aliases repeat more than"),
        ("dependencies: [python]\nenvferry: &e\n  checks: *e\n", "refers to itself"),
        ("dependencies: &d\n  - *d\n", "refers to itself"),
        ("dependencies: [python]\nvariables: *gone\n", "is not defined"),
        (
            "dependencies: [python]\nvariables:\n  x0: &x0 [l]\n"
            + "".join(f"  x{n}: &x{n} [*x{n - 1}]\n" for n in range(1, 2000)),
            "nests far deeper",
        ),
        ("dependencies: !ours [python]\n", "the tag `!ours` is not supported"),
        ("dependencies: !!python/object/apply:os.system [ls]\n", "is not supported"),
    ],
)
def test_what_yaml_can_do_and_no_spec_needs(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_spec(write(tmp_path, text))


def test_an_alias_is_what_it_stands_for(tmp_path: Path) -> None:
    text = (
        "dependencies: [python]\nenvferry:\n  checks:\n    imports: &i [rich]\n    commands: *i\n"
    )
    checks = read_spec(write(tmp_path, text)).options.checks
    assert checks == Checks(imports=("rich",), commands=("rich",))


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    (tmp_path / "torch.yml").mkdir()
    with pytest.raises(NotFound, match="is a folder"):
        find_spec(str(tmp_path), tmp_path)
    with pytest.raises(NotFound, match="has no specs"):
        find_spec("torch", tmp_path)


def test_variables_are_read_as_they_are_written(tmp_path: Path) -> None:
    text = "dependencies: [python]\nvariables:\n  HELLO: big world\n  n_2: 007\n  EMPTY:\n"
    spec = read_spec(write(tmp_path, text))
    assert spec.options.variables == {"HELLO": "big world", "n_2": "007", "EMPTY": ""}
    assert read_spec(write(tmp_path, "dependencies: [python]\n")).options.variables == {}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ("variables: [A=1]", "`variables:` to be a mapping"),
        ("variables: {A-B: 1}", "spec.yml:2: expected the name of a variable"),
        ("variables: {A: [1]}", "spec.yml:2: expected a string as the value of `A`"),
        ("envferry: {variables: {A: b}}", "`variables` is not a key of `envferry:`"),
    ],
)
def test_variables_that_are_none_are_refused(tmp_path: Path, variables: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec(write(tmp_path, f"dependencies: [python]\n{variables}\n", "spec.yml"))
    assert words in caught.value.message


def test_the_priority_of_channels(tmp_path: Path) -> None:
    """As other tools have it at the top, or under `envferry:`, which wins."""
    text = "channels: [c]\ndependencies: [a]\n"
    plain = read_spec(write(tmp_path, text))
    top = read_spec(write(tmp_path, f"{text}channel_priority: flexible\n"))
    own = read_spec(write(tmp_path, f"{text}envferry: {{channel_priority: disabled}}\n"))
    both = "channel_priority: flexible\nenvferry: {channel_priority: disabled}\n"
    assert read_spec(write(tmp_path, text + both)).options.channel_priority == "disabled"
    assert plain.options.channel_priority is None
    assert top.options.channel_priority == "flexible"
    assert own.options.channel_priority == "disabled"
    assert len({plain.digest, top.digest, own.digest}) == 3
    with pytest.raises(SpecError, match="rigid"):
        read_spec(write(tmp_path, f"{text}channel_priority: rigid\n"))
