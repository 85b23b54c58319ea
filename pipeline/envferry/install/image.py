"""Images: an environment as one squashfs file, to mount in the place of a tree.

Behind the file system lie the archive's index frame, a record, and where both begin: what `install`
needs to know without reading the rest. Whoever mounts the file does not see them.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from envferry import process
from envferry.archive.extraction import cannot_write
from envferry.archive.index import decode_index
from envferry.archive.prefixes import Relocation
from envferry.archive.relocated_tar import RelocatedTar
from envferry.archive.validation import check_index
from envferry.base.files import starts_with, sync_directory, write_bytes
from envferry.base.json import decode_json, to_json
from envferry.errors import (
    HostError,
    IntegrityError,
    NotFound,
    PipelineError,
    TargetOccupied,
    ToolFailed,
)
from envferry.install.cleanup import changing
from envferry.install.host.host_check import Needs, check_host, cuda_runtime
from envferry.install.plan import check_target, is_installed, plan_installation, wanted_prefix
from envferry.install.programs.integrations import wanted_integrations
from envferry.install.records.env_home import IMAGE_SUFFIX, PARTIAL, TRASH, EnvHome
from envferry.install.records.events import note_event
from envferry.install.records.installation import Installation  # noqa: TC001  (msgspec looks it up)
from envferry.install.records.installed import chosen_id, open_installed
from envferry.install.switching import switch_to
from envferry.install.tree.installed_tar import InstalledTar
from envferry.install.tree.mounting import mount, unmount
from envferry.install.tree.moves import discard_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.archive.reader import Archive
    from envferry.install.plan import InstallOptions
    from envferry.models import Manifest
    from envferry.progress import Progress

log = logging.getLogger(__name__)

MAGIC = b"EFIMAGE1"
FOOTER = struct.Struct("<QQQ8s")
"""The bytes of the file system, of the index frame and of the record; then the magic."""
SQUASHFS_MAGIC = b"hsqs"
# The level that zstd itself takes, where mksquashfs would take 15. 128 KiB is its default, and
# stated because it decides the bytes.
COMPRESSION_LEVEL = 3
BLOCK_BYTES = 128 << 10
MAKE_AGAIN = "make the image again with `envferry image`, or copy it again"


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says of itself."""

    installation: Installation
    """As `install` writes it, for the prefix that the image was made for."""
    schema: int = 1


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image, of which the end was read."""

    path: Path
    size: int
    record: ImageRecord
    index: Index
    end: ImageEnd


class ImageEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What stands behind the file system, as bytes."""

    size: int
    """Of the whole file."""
    index_frame: bytes
    record: bytes


def write_image(
    archive: Archive,
    manifest: Manifest | None,
    target: Path,
    *,
    options: InstallOptions,
    progress: Progress,
) -> Image:
    """Write the image of an archive in one pass: equal inputs give equal bytes.

    It is for the prefix at which `options` would install it, and for no other. Raises HostError
    where mksquashfs is missing or the disk is full, IntegrityError for a damaged archive.
    """
    home = EnvHome.of(options.envs_dir, options.name or archive.index.name)
    installation = plan_installation(archive.index, manifest, home, options)
    relocation = Relocation(archive.index.prefix, installation.prefix, archive.index)
    with _unfinished(target) as partial:
        with progress.task(f"image {archive.index.name}", archive.index.tar_size) as advance:
            stream = RelocatedTar(archive, relocation, advance)
            process.feed(squashfs_command(partial, archive.index.mtime), stream)
        # The stream fills `edited` while it is read, so this comes after it.
        edited = {path: (held.size, held.xxh128) for path, held in stream.edited.items()}
        _append(partial, archive.index_frame, msgspec.structs.replace(installation, edited=edited))
    return read_image(target)


def write_installed_image(
    home: EnvHome, id_: str | None, target: Path, *, progress: Progress
) -> Image:
    """Write the image of an installation, for the prefix that it is installed at.

    It has the bytes of the archive's image for that prefix. Raises IntegrityError, and leaves no
    image, where the tree is not as it was installed.
    """
    installation = home.installation(chosen_id(home, id_))
    tree = open_installed(home, installation.id)
    with _unfinished(target) as partial:
        with progress.task(f"image {home.name}", installation.size) as advance:
            stream = InstalledTar(tree, advance)
            process.feed(squashfs_command(partial, tree.index.mtime), stream)
        _append(partial, home.index(installation.id).read_bytes(), installation)
    return read_image(target)


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Give an image a name for now, and its own when it is whole; remove it when it fails."""
    # 4.5 is the first one that reads a tar.
    if process.find_program("mksquashfs") is None:
        message = "mksquashfs is missing: it writes images"
        raise HostError(message, hint="install the system's squashfs-tools, 4.5 or newer")
    # In the same directory: a rename is atomic within one file system only.
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, ToolFailed) and (full := _disk_is_full(error, target)):
            raise full from error
        raise
    sync_directory(target.parent)


def _disk_is_full(error: ToolFailed, target: Path) -> HostError | None:
    """Return the error that a program's failure means, if what it wrote did not fit."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        # The exit status does not say why it failed; the C library's text in its message does.
        if os.strerror(number) in error.message:
            return cannot_write(OSError(number, os.strerror(number)), target)
    return None


def squashfs_command(target: Path, mtime: int) -> list[str | Path]:
    """Return what makes a squashfs of a tar on stdin that says nothing of when and where.

    All files of an archive have one time; `-root-time` does not count where a tar is read (4.5.1).
    """
    return [
        *("mksquashfs", "-", target, "-tar", "-noappend", "-quiet", "-no-progress", "-no-xattrs"),
        *("-comp", "zstd", "-Xcompression-level", str(COMPRESSION_LEVEL), "-b", str(BLOCK_BYTES)),
        *("-mkfs-time", str(mtime), "-all-time", str(mtime), "-root-mode", "0755"),
        *("-root-uid", "0", "-root-gid", "0"),
    ]


def _append(path: Path, index_frame: bytes, installation: Installation) -> None:
    """Write behind the file system what an image says of itself."""
    # Nothing that is true of one host only: equal artifacts give equal images.
    mounted = msgspec.structs.replace(
        installation, mounted=True, origin=None, sharing=None, unchecked=None
    )
    record = to_json(ImageRecord(installation=mounted))
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(index_frame + record)
        stream.write(FOOTER.pack(size, len(index_frame), len(record), MAGIC))
        stream.flush()
        # Whatever the umask is.
        os.fchmod(stream.fileno(), 0o644)
        # On the disk before it gets its name: after a crash no name stands for half an image.
        os.fsync(stream.fileno())


def is_image(path: Path) -> bool:
    """Whether a file begins as a squashfs does."""
    return starts_with(path, SQUASHFS_MAGIC)


def read_image(path: Path) -> Image:
    """Read what an image says of itself, at its end; raise IntegrityError when it is damaged."""
    end = _read_end(path)
    try:
        record = decode_json(end.record, ImageRecord)
    except msgspec.MsgspecError as error:
        message = f"the record in {path} is damaged: {error}"
        raise IntegrityError(message, hint=MAKE_AGAIN) from error
    index = decode_index(end.index_frame, str(path))
    check_index(index, str(path))
    if (index.id, index.prefix) != (record.installation.id, record.installation.built_prefix):
        message = f"{path} contradicts itself: {record.installation.id} is not {index.id}"
        raise IntegrityError(message, hint=MAKE_AGAIN)
    return Image(path=path, size=end.size, record=record, index=index, end=end)


def _read_end(path: Path) -> ImageEnd:
    try:
        with path.open("rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            stream.seek(max(total - FOOTER.size, 0))
            footer = stream.read()
            if len(footer) != FOOTER.size or not footer.endswith(MAGIC):
                message = f"{path} is not an image that envferry wrote, or it is not complete"
                raise IntegrityError(message, hint=MAKE_AGAIN)
            system, frame_size, record_size, _ = FOOTER.unpack(footer)
            # The parts fill the file exactly, so no read goes beyond it.
            if system + frame_size + record_size + FOOTER.size != total:
                message = f"{path} has {total} bytes, which contradicts its end"
                raise IntegrityError(message, hint=MAKE_AGAIN)
            stream.seek(system)
            frame, text = stream.read(frame_size), stream.read(record_size)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise NotFound(message, hint="name an image that `envferry image` wrote") from error
    return ImageEnd(size=total, index_frame=frame, record=text)


def image_there(home: EnvHome, id_: str, options: InstallOptions) -> Image | None:
    """Return the image that an installation of this id was mounted from, for the same prefix."""
    if not (home.record(id_).is_file() and home.image(id_).is_file()):
        return None
    try:
        image = read_image(home.image(id_))
    except PipelineError as error:
        log.info("the image of %s@%s is made again: %s", home.name, id_, error)
        return None
    wanted = wanted_prefix(home, options.prefix)
    return image if (image.index.id, image.record.installation.prefix) == (id_, wanted) else None


def mount_image(
    image: Image,
    *,
    options: InstallOptions,
    progress: Progress,
    accept: Callable[[Path], tuple[str, ...]] = lambda path: (),
) -> Installation:
    """Install an image by mounting it, and make it the current installation.

    The image is linked beside the tree where it lies on the same file system and is its owner's
    alone, else copied. `accept` gets the file that will be mounted, which no other user can change
    any more, and raises IntegrityError unless that is what the host accepts; it returns the ids of
    the keys that signed the image. Raises HostError, IntegrityError or TargetOccupied with nothing
    changed.
    """
    home = EnvHome.of(options.envs_dir, options.name or image.record.installation.name)
    prefix = wanted_prefix(home, options.prefix)
    installation = msgspec.structs.replace(image.record.installation, name=home.name)
    if installation.prefix != prefix:
        message = f"{image.path} is for the prefix {installation.prefix}, not for {prefix}"
        hint = f"make one for it: `envferry image REF FILE --prefix {shlex.quote(prefix)}`"
        raise TargetOccupied(message, hint=hint)
    integrations = wanted_integrations(home, options.kernel_dir, options.modulefile_dir)
    check_target(home, installation, replace=options.replace)
    check_host(_needs(image, home), options.force)
    with changing(home, installing=installation.id):
        if not is_installed(home, installation):
            with progress.task(f"bring the image of {home.name}", image.size):
                partial = _bring(image, home)
            try:
                # What is looked at is what will be mounted: no other user can change it any more.
                signed_by = accept(partial)
                _require_same(image, partial)
                if options.origin:
                    origin = msgspec.structs.replace(options.origin, signed_by=signed_by)
                    installation = msgspec.structs.replace(installation, origin=origin)
                _put_in_place(image, home, installation)
            finally:
                partial.unlink(missing_ok=True)
            note_event(home, options.actor, "installed", installation.id, str(image.path))
        # From the disk: what was installed already keeps its own record.
        installed = home.installation(installation.id)
        switch_to(home, installed, options, integrations, progress)
    return installation


def _needs(image: Image, home: EnvHome) -> Needs:
    return Needs(
        platform=image.index.platform,
        system=image.record.installation.requirements,
        cuda_runtime=cuda_runtime(image.index.packages),
        cuda_code=image.record.installation.cuda_code,
        directory=home.directory,
        free_bytes=0 if _can_link(image.path, home) else image.size,
        # The image, the directory that it is mounted at, its index and its record.
        inodes=4,
        has_links=False,
    )


def _bring(image: Image, home: EnvHome) -> Path:
    """Link or copy an image to where it will be mounted from, under a name for now."""
    partial = home.directory / f"{PARTIAL}{image.index.id}{IMAGE_SUFFIX}"
    if partial.exists() and partial.samefile(image.path):
        return partial  # it was made here
    partial.unlink(missing_ok=True)
    if _can_link(image.path, home) and _linked(image.path, partial):
        return partial
    try:
        shutil.copyfile(image.path, partial)
        # For every user to read, whatever the umask is: copyfile does not copy modes.
        partial.chmod(0o644)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(error, home.directory) from error
    return partial


def _linked(path: Path, other: Path) -> bool:
    """Give a file a second name; return False where that cannot be.

    One file system may be mounted twice, as volumes of containers are: links do not lead across,
    and some file systems have none.
    """
    try:
        os.link(path, other)
    except OSError as error:
        log.debug("%s is copied: %s", path, error)
        return False
    return True


def _require_same(image: Image, brought: Path) -> None:
    """Raise IntegrityError when a file is not the image that was looked at."""
    if _read_end(brought) != image.end:
        message = f"{image.path} was changed while it was copied"
        raise IntegrityError(message, hint="copy it to this host, then install it")


def _put_in_place(image: Image, home: EnvHome, installation: Installation) -> None:
    """Mount an image that was brought, and write its index and record last."""
    id_, tree = installation.id, home.tree(installation.id)
    # Not installed from here on, until the new record is there.
    home.record(id_).unlink(missing_ok=True)
    unmount(tree)
    discard_directory(tree, home.directory / f"{TRASH}{id_}")
    (home.directory / f"{PARTIAL}{id_}{IMAGE_SUFFIX}").replace(home.image(id_))
    # At an empty folder, which this makes: the old tree has gone.
    mount(home.image(id_), tree)
    write_bytes(home.index(id_), image.end.index_frame)
    write_bytes(home.record(id_), to_json(installation))


def _can_link(path: Path, home: EnvHome) -> bool:
    """Whether an image can be shared: on one file system, and writable by no other user."""
    existing = next(one for one in (home.directory, *home.directory.parents) if one.is_dir())
    status = path.stat()
    # A link is the same file: who can write to it could change what is mounted later.
    is_ours = status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022
    return is_ours and status.st_dev == existing.stat().st_dev
