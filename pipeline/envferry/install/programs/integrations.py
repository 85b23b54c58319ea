"""Jupyter kernels and modulefiles of an environment: they follow its link, and go with it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from envferry.base.env_variables import UNSET, read_variables
from envferry.base.files import make_folders, remove_tree, unfinished_writes, write_bytes
from envferry.base.json import decode_json, from_json, to_json
from envferry.errors import HostError, PipelineError, TargetOccupied
from envferry.install.programs.running import start_script
from envferry.install.records.installed import read_index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation

log = logging.getLogger(__name__)

KERNEL_FILE = "kernel.json"
LAUNCHER = re.compile(r"lib/python[0-9.]+/site-packages/ipykernel_launcher\.py")
WITH_BASH = 'exec "$(command -v bash || echo /bin/sh)" -c "$@"'
"""The kernel may start in a container whose shells are others than this host's."""
MARK = "# envferry: "
TCL_SPECIAL = re.compile(r'[\\"$\[\]{};]')
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
NONE = Path("none")
"""Given as a directory: remove it."""


class Integrations(msgspec.Struct, frozen=True, kw_only=True):
    """`.integrations` of an environment: where its kernel and its modulefile are."""

    kernel_dir: str | None = None
    modulefile_dir: str | None = None
    former: tuple[str, ...] = ()
    """Files of former places that are still to be removed."""
    written_for: str | None = None
    """The installation that the files are of; empty before they are written. Notes of envferry 0.2
    do not say it."""
    schema: int = 1


def read_integrations(home: EnvHome) -> Integrations:
    """Return what an environment has."""
    path = home.integrations
    return (
        from_json(path.read_bytes(), Integrations, str(path)) if path.is_file() else Integrations()
    )


def kernel_path(home: EnvHome, directory: str) -> Path:
    """Return the file of a kernel."""
    return Path(directory, f"envferry-{home.name}", KERNEL_FILE)


def modulefile_path(home: EnvHome, directory: str) -> Path:
    """Return a modulefile: `module load NAME`."""
    return Path(directory, home.name)


def wanted_integrations(
    home: EnvHome, kernel_dir: Path | None, modulefile_dir: Path | None
) -> Integrations:
    """Return the wanted integrations; None keeps what there is, `none` removes it.

    Raises TargetOccupied where something stands that is not its own.
    """
    now = read_integrations(home)
    wanted = Integrations(
        kernel_dir=_chosen(kernel_dir, now.kernel_dir),
        modulefile_dir=_chosen(modulefile_dir, now.modulefile_dir),
    )
    for path in _paths(home, wanted):
        if _is_taken(home, path):
            message = f"{path} exists and does not belong to {home.name} in {home.envs_dir}"
            raise TargetOccupied(message, hint="move it aside, or name another directory")
    return wanted


def _chosen(told: Path | None, now: str | None) -> str | None:
    if told is None:
        return now
    return None if told == NONE else str(told.absolute())


def change_integrations(home: EnvHome, wanted: Integrations) -> None:
    """Set an environment's integrations; the caller holds its lock."""
    before = read_integrations(home)
    stays, there = _paths(home, wanted), _paths(home, before)
    former = (path for path in there if path not in stays)
    # With what is to go: a command that is killed now leaves the rest to the next one.
    noted = replace(
        wanted,
        former=tuple(map(str, former)),
        written_for=before.written_for if there == stays else "",
    )
    if before != noted:
        write_bytes(home.integrations, to_json(noted))
    _remove_former(home, noted)
    refresh_integrations(home)


def settle_integrations(home: EnvHome) -> None:
    """Finish what a command that was killed had begun; the caller holds the lock."""
    try:
        known = read_integrations(home)
        _remove_former(home, known)
        current = home.current_id()
        # After a flip the old files may start another version's python.
        if current and known.written_for not in (None, current) and _paths(home, known):
            refresh_integrations(home)
    except PipelineError as error:
        log.warning("kernel and modulefile of %s may be out of date: %s", home.name, error.message)


def _remove_former(home: EnvHome, known: Integrations) -> None:
    if not known.former:
        return
    for path in map(Path, known.former):
        _remove(home, path)
    # What could not be removed was said; it is tried again as long as it is there.
    left = tuple(path for path in known.former if _is_ours(home, Path(path)))
    if left != known.former:
        write_bytes(home.integrations, to_json(replace(known, former=left)))


def refresh_integrations(home: EnvHome) -> None:
    """Write what belongs to the current installation; remove what it cannot have.

    Raises HostError where that may not be written: the environment is changed already then.
    """
    wanted, id_ = read_integrations(home), home.current_id()
    if id_ is None:
        forget_integrations(home)
        return
    installation = home.installation(id_)
    if wanted.kernel_dir:
        path = kernel_path(home, wanted.kernel_dir)
        # An update may have lost ipykernel: then its kernel goes, which could not start.
        if launcher := find_launcher(home, id_):
            _write(home, path, kernel_text(home, installation, launcher))
        else:
            log.warning(
                "%s@%s has no ipykernel, so no Jupyter kernel: add it to the spec", home.name, id_
            )
            _remove(home, path)
    if wanted.modulefile_dir:
        path = modulefile_path(home, wanted.modulefile_dir)
        _write(home, path, modulefile_text(home, installation))
    if wanted != Integrations() and wanted.written_for != id_:
        write_bytes(home.integrations, to_json(replace(wanted, written_for=id_)))


def forget_integrations(home: EnvHome) -> None:
    """Remove the files of an environment that goes."""
    try:
        known = read_integrations(home)
    except PipelineError as error:
        log.warning("kernel and modulefile are not removed: %s", error.message)
        return
    for path in _paths(home, known):
        _remove(home, path)


def find_launcher(home: EnvHome, id_: str) -> str:
    """Return what Jupyter starts in an installation; empty where that has no ipykernel."""
    paths = (entry.path for entry in read_index(home, id_).files)
    return next(filter(LAUNCHER.fullmatch, paths), "")


def kernel_text(home: EnvHome, installation: Installation, launcher: str) -> bytes:
    """Return a kernel spec; it activates by itself, so it needs nothing of Jupyter's own.

    The launcher is named by its path: `-m` would look for it in the notebook's folder first.

    https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs
    """
    script = start_script(installation, read_variables(home.tree(installation.id)))
    prefix = installation.prefix
    launched = (f"{prefix}/bin/python", f"{prefix}/{launcher}", "-f", "{connection_file}")
    spec = {
        "argv": ["/bin/sh", "-c", WITH_BASH, "sh", script, "envferry", *launched],
        "display_name": f"{home.name} ({installation.version or installation.id})",
        "language": "python",
        "metadata": {"debugger": True, "envferry": {**mark(home), "id": installation.id}},
    }
    return to_json(spec)


def modulefile_text(home: EnvHome, installation: Installation) -> bytes:
    """Return a modulefile in Tcl, which Lmod and Environment Modules read.

    `source-sh` runs the packages' scripts where it is known: Modules 4.6, Lmod 8.6 and newer.
    """
    prefix, variables = installation.prefix, read_variables(home.tree(installation.id))
    about = f"{home.name} {installation.version or ''} ({installation.id})".replace("  ", " ")
    scripts = sorted(home.tree(installation.id).glob("etc/conda/activate.d/*.sh"))
    lines = [
        "#%Module1.0",
        # Not the first line: a modulefile is known by `#%Module` at its start.
        MARK + msgspec.json.encode(mark(home), order="sorted").decode(),
        f"module-whatis {tcl_word(f'the environment {about}')}",
        f"setenv CONDA_PREFIX {tcl_word(prefix)}",
        f"setenv CONDA_DEFAULT_ENV {tcl_word(home.name)}",
        f"prepend-path PATH {tcl_word(f'{prefix}/bin')}",
        *variable_lines(variables),
    ]
    if scripts:
        lines.append("if {[llength [info commands source-sh]]} {")
        places = (f"{prefix}/etc/conda/activate.d/{script.name}" for script in scripts)
        lines += [f"    source-sh bash {tcl_word(place)}" for place in places]
        lines.append("}")
    return "".join(f"{line}\n" for line in lines).encode()


def variable_lines(variables: Mapping[str, str]) -> list[str]:
    """Return what sets an environment's variables in a modulefile."""
    return [
        f"unsetenv {name}" if text == UNSET else f"setenv {name} {tcl_word(text)}"
        for name, text in variables.items()
    ]


def tcl_word(text: str) -> str:
    """Return a text as one word of Tcl, in which nothing is substituted.

    In ASCII: Lmod 8.6 reads UTF-8 as if it were Latin-1, whatever the locale is.
    """
    escaped = TCL_SPECIAL.sub(r"\\\g<0>", text)
    escaped = NOT_ASCII.sub(lambda found: _tcl_escape(ord(found[0])), escaped)
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _tcl_escape(number: int) -> str:
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def mark(home: EnvHome) -> dict[str, str]:
    """Return what tells our files from those of others, and of other envs directories."""
    return {"envs_dir": str(home.envs_dir), "name": home.name}


def _paths(home: EnvHome, known: Integrations) -> list[Path]:
    kernel = [kernel_path(home, known.kernel_dir)] if known.kernel_dir else []
    module = [modulefile_path(home, known.modulefile_dir)] if known.modulefile_dir else []
    return kernel + module + [Path(path) for path in known.former]


def _is_taken(home: EnvHome, path: Path) -> bool:
    """Whether something stands there that this environment did not write."""
    return (path.exists() or path.is_symlink()) and not _is_ours(home, path)


def _is_ours(home: EnvHome, path: Path, name: str = "") -> bool:
    """Whether this environment wrote a file, which has or is to get this name."""
    if path.is_symlink() or not path.is_file():
        return False
    if (name or path.name) == KERNEL_FILE and path.parent.name == f"envferry-{home.name}":
        try:
            found: Any = decode_json(path.read_bytes(), dict[str, Any]).get("metadata", {})
        except msgspec.MsgspecError:
            return False
        marked = found.get("envferry") if isinstance(found, dict) else None
        return isinstance(marked, dict) and mark(home).items() <= marked.items()
    line = MARK + msgspec.json.encode(mark(home), order="sorted").decode()
    return line in path.read_text(errors="replace").splitlines()[:3]


def _write(home: EnvHome, path: Path, data: bytes) -> None:
    if _is_taken(home, path):
        log.warning("%s is left as it is: it does not belong to %s", path, home.name)
        return
    try:
        make_folders(path.parent)
        _remove_unfinished(home, path)
        write_bytes(path, data)
    except OSError as error:
        message = f"{home.name} is in place, but {path} cannot be written: {error.strerror}"
        raise HostError(message, hint="run it as a user who can, or name another place") from error


def _remove_unfinished(home: EnvHome, path: Path) -> None:
    """Remove what killed commands were writing: the caller holds the environment's lock."""
    for left in unfinished_writes(path):
        # Modulefiles lie among files of others: one of ours is empty, or has our mark.
        if not left.stat().st_size or _is_ours(home, left, path.name):
            left.unlink(missing_ok=True)


def _remove(home: EnvHome, path: Path) -> None:
    try:
        _remove_unfinished(home, path)
        is_kernel = path.name == KERNEL_FILE
        # A folder that was removed in part has no file left to tell whose it is.
        is_empty = is_kernel and path.parent.is_dir() and not any(path.parent.iterdir())
        if not is_empty and not _is_ours(home, path):
            return
        if is_kernel:
            remove_tree(path.parent)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
