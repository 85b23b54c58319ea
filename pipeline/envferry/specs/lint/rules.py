"""The rules of lint: their codes, why each matters, and what to do."""

from __future__ import annotations

import msgspec


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of finding; `docs/lint.md` lists them all."""

    code: str
    title: str
    why: str
    fix: str


RULES = {
    rule.code: rule
    for rule in (
        Rule(
            code="S101",
            title="A package is required in both halves",
            why="an environment has one version of it, so one of the lines has no effect",
            fix="keep it in one half",
        ),
        Rule(
            code="S102",
            title="A pip package would overwrite a conda one",
            why="both write the same files, and conda's records are wrong from then on",
            fix="take it out of the pip section; what needs it finds conda's",
        ),
        Rule(
            code="S103",
            title="A wheel with its own BLAS or OpenMP beside conda's",
            why="each side brings its own BLAS or OpenMP runtime into one process",
            fix="take these packages from one side, all of them",
        ),
        Rule(
            code="S104",
            title="CUDA runtimes from both sides",
            why="which of two CUDA libraries is loaded depends on the order of imports",
            fix="take CUDA from one side: drop the conda line, or take the framework from conda",
        ),
        Rule(
            code="S105",
            title="A git dependency without a commit or tag",
            why="the next lock takes whatever the branch points to then",
            fix="write `@` and a commit or a version tag after the URL",
        ),
        Rule(
            code="S106",
            title="`pip` is missing although there is a pip section",
            why="conda adds one by itself, with a warning, and others' tools fail",
            fix="add `- pip` to `dependencies:`",
        ),
        Rule(
            code="S107",
            title="An editable requirement",
            why="a link to a local folder cannot be carried: a wheel is built from the folder",
            fix="drop `-e`, or name a git commit",
        ),
        Rule(
            code="S108",
            title="A path or `file://` URL",
            why="the spec can be locked only where that path is",
            fix="publish a wheel on an index, or name a git commit",
        ),
        Rule(
            code="S109",
            title="`defaults` beside `conda-forge`",
            why="their builds are incompatible unless conda's channel priority is strict",
            fix="keep one of them; envferry's priority is strict, but for pins with a build string",
        ),
        Rule(
            code="S110",
            title="A pin that no longer exists",
            why="no channel of the spec has such a package, so locking fails",
            fix="change the pin, or lock with `--relax build`, `patch` or `all`",
        ),
        Rule(
            code="S111",
            title="The base environment as target",
            why="conda's own installation cannot be carried or replaced safely",
            fix="give the environment a name of its own",
        ),
        Rule(
            code="S112",
            title="Build strings in a spec for several platforms",
            why="a build string names the build of one platform",
            fix="drop them: `envferry import SOURCE --relax build`",
        ),
        Rule(
            code="S113",
            title="A line that is ignored",
            why="its author expects an effect that it does not have",
            fix="remove it, or write it in a form that is supported",
        ),
        Rule(
            code="S114",
            title="A package that compiles on the host",
            why="a host without these tools fails in the middle of the work",
            fix="add gxx_linux-64, ninja or cuda-nvcc to the conda half, as it needs; "
            "`envferry doctor --for NAME` shows what a host has",
        ),
        Rule(
            code="S115",
            title="A licence that the policy does not allow",
            why="`release` does not publish what holds it",
            fix="take another package, or change the policy that license_policy names",
        ),
        Rule(
            code="S116",
            title="A login or a token in a URL",
            why="whoever reads the spec, or its history, has it",
            fix="write the URL without it; put a login into ~/.netrc, a channel's token into "
            "~/.rattler/credentials.json (`pixi auth login HOST --token …`)",
        ),
    )
}
