"""The docs say what the code does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from benchmarks import fleet_model
from docs.api_page import api_page
from docs.generate import commands, render, settings_page
from envferry.base.settings_table import SETTINGS
from envferry.cli.main import COMMANDS, envferry
from envferry.errors import EXIT_BUG, EXIT_INTERRUPTED, PipelineError

DOCS = Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"


def test_the_command_page_is_up_to_date() -> None:
    assert (DOCS / "cli.md").read_text() == render(), "run `make docs`"


def test_the_page_of_settings_is_up_to_date() -> None:
    assert (DOCS / "settings.md").read_text() == settings_page(), "run `make docs`"


def test_the_model_of_scale_is_up_to_date() -> None:
    assert fleet_model.render() in (DOCS / "scale.md").read_text(), "run benchmarks.fleet_model"


def test_the_page_of_the_python_interface_is_up_to_date() -> None:
    assert (DOCS / "api.md").read_text() == api_page(), "run `make docs`"


def test_no_variable_is_missing_in_the_table() -> None:
    sources = DOCS.parent / "pipeline/envferry"
    texts = [
        path.read_text()
        for path in sources.rglob("*")
        if path.suffix in (".py", ".sh", "") and path.is_file()
    ]
    names = {name for text in texts for name in re.findall(r"(?<![A-Z_])ENVFERRY_[A-Z_]+\b", text)}
    assert names == {one.variable for one in SETTINGS}


def test_every_command_and_option_has_help() -> None:
    for context in commands(envferry, "envferry"):
        assert context.command.help, context.command_path
        for parameter in context.command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), f"{context.command_path} {parameter.name}"


def test_the_short_help_is_the_commands_own_summary() -> None:
    assert set(COMMANDS) == set(envferry.list_commands(None))  # type: ignore[arg-type]


def test_every_stage_is_in_the_readme() -> None:
    text = README.read_text()
    stages = (DOCS / "stages.md").read_text()
    for command in ("lock", "build", "pack", "push", "fetch", "install"):
        assert f"envferry {command}" in text
        assert f"envferry {command}" in stages
    assert "envferry channel create" in stages


def test_the_readme_fits_two_screens() -> None:
    """Two of 50 lines each; what does not fit has a page in docs/."""
    assert len(README.read_text().splitlines()) <= 100


def test_pictures_are_readable_in_the_dark_and_load_nothing() -> None:
    for path in (DOCS / "images").glob("*.svg"):
        text = path.read_text()
        assert "prefers-color-scheme: dark" in text
        assert "<title" in text, "what a screen reader says"
        assert not re.search(r"<script|<image|href=|url\((?!#)", text)


LINES_OF_SHELL = re.compile(r"^```(?:sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_FILES = re.compile(r"^(?:\$ )?(?:sudo )?(?:envferry|sh \S*envferry\.run) (\S.*)$", re.MULTILINE)


def typed_commands() -> list[tuple[str, list[str]]]:
    """Return each command line of envferry in a page: where it is, and its words."""
    found = []
    for page in (*README.parent.glob("*.md"), *DOCS.rglob("*.md")):
        if page.name == "CHANGELOG.md" or page.parent.name == "adr":
            continue
        for block in LINES_OF_SHELL.findall(page.read_text()):
            for line in RUN_FILES.findall(block.replace("\\\n", " ")):
                words = shlex.split(line, comments=True)
                ends = [words.index(one) for one in ("--", "|", "&&", ">") if one in words]
                found.append((f"{page.name}: {line}", words[: min(ends, default=len(words))]))
    return found


def test_every_command_line_in_the_docs_makes_sense() -> None:
    """Its command exists, and so do its options; what each does is said by other tests."""
    known = {context.command_path: context.command for context in commands(envferry, "envferry")}
    lines = typed_commands()
    assert len(lines) > 100
    for where, words in lines:
        if words[0].startswith("--"):
            continue
        path = f"envferry {words[0]}"
        if len(words) > 1 and f"{path} {words[1]}" in known:
            path = f"{path} {words[1]}"
        assert path in known, where
        command = known[path]
        if default := getattr(command, "default_command", ""):
            command = known[f"{path} {default}"]
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= options | {"-h", "--help"}, where


def test_exit_codes_are_unique_and_documented() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (\w*)", (DOCS / "errors.md").read_text(), re.M))
    errors = {str(error.exit_code): error.__name__ for error in PipelineError.__subclasses__()}
    assert len(errors) == len(PipelineError.__subclasses__())
    assert errors == {code: name for code, name in table.items() if name}
    assert {"0", str(EXIT_BUG), str(EXIT_INTERRUPTED)} <= set(table)


def headings(page: Path) -> set[str]:
    """Return what links call the headings of a page (Python-Markdown's slugs)."""
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
        for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    }


def test_links_between_pages_lead_somewhere() -> None:
    for page in (*README.parent.glob("*.md"), *DOCS.rglob("*.md")):
        links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", page.read_text())
        for link, heading in links:
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            if heading and target.suffix == ".md":
                assert heading in headings(target), f"{page.name}: {link}#{heading}"


def test_references_to_decisions_lead_to_a_record() -> None:
    """In every text of the repository, by number or by file."""
    records = {int(path.name[:4]) for path in DOCS.glob("adr/0*.md")}
    assert records == set(range(1, len(records) + 1)), "numbers without a gap"
    root = DOCS.parent
    folders = (*(root / name for name in ("pipeline", "tests", "docs", "benchmarks")), root)
    paths = [
        path
        for folder in folders
        for path in (folder.glob("*") if folder == root else folder.rglob("*"))
        if path.is_file() and path.suffix in (".md", ".py", ".sh", ".toml", ".yml", "")
    ]
    found = [
        (path, int(number))
        for path in paths
        for number in re.findall(
            r"(?:\bADRs? (?=\d)|adr/(?=\d\d))(\d+)", path.read_text(errors="replace")
        )
    ]
    assert len(found) > 20
    assert not [f"{path}: {number}" for path, number in found if number not in records]


def test_the_questions_of_a_newcomer_lead_to_files() -> None:
    text = (DOCS / "architecture.md").read_text()
    sources = DOCS.parent / "pipeline/envferry"
    questions = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", text, re.M)
    assert len(questions) >= 14
    for question, answer in questions:
        files = re.findall(r"`([\w/]+\.py)`", answer)
        assert 1 <= len(files) <= 3, question
        for file in files:
            assert (sources / file).is_file(), f"{question} {file}"


def test_every_folder_is_on_the_plan() -> None:
    text = (DOCS / "architecture.md").read_text()
    folders = {
        path.parent.name for path in (DOCS.parent / "pipeline/envferry").glob("*/__init__.py")
    }
    assert folders
    assert folders <= set(re.findall(r"`(\w+)/`", text))
    inner = {path.parent for path in (DOCS.parent / "pipeline/envferry").glob("*/*/__init__.py")}
    assert {path.name for path in inner} <= set(re.findall(r"`(?:\w+/)?(\w+)/`", text))
    for file in re.findall(r"^\|[^|]*\(`([\w/]+\.py)`\) \|", text, re.M):
        assert (DOCS.parent / "pipeline/envferry" / file).is_file(), file


def test_the_changelog_has_each_version_and_section_once() -> None:
    text = (DOCS.parent / "CHANGELOG.md").read_text()
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    dated = [re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d)", title) for title in titles[1:]]
    dates = [found[1] for found in dated if found]
    assert len(set(titles)) == len(titles) == len(dates) + 1
    assert dates == sorted(dates, reverse=True)
    for version in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        sections = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert len(set(sections)) == len(sections)
        assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


LONGEST_CHANGE = 160


def test_a_change_is_one_line() -> None:
    """A reader looks through the list: what a change does in full is in the documentation."""
    text = (DOCS.parent / "CHANGELOG.md").read_text()
    _, *sections = re.split(r"^### .*$", text, flags=re.MULTILINE)
    assert sections
    lines = [
        line
        for section in sections
        for line in re.sub(r"^## .*", "", section, flags=re.MULTILINE | re.DOTALL).splitlines()
        if line
    ]
    assert not [line for line in lines if not line.startswith("- ")]
    assert not [line for line in lines if len(line) > LONGEST_CHANGE]
