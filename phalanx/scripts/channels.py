"""A channel's files as a folder: local ones are linked, remote ones fetched, once on every machine."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from .. import storage
from ..data.channel import Channel
from ..errors import PhalanxError
from .plan import Folders, Plan


def lay_out(plan: Plan, folders: Folders) -> None:
    """Make the folders of all channels that are files: all of them, and each rank's part of those that are sharded.

    A sharded channel is spread file by file, in the order of the names: rank r has the files r, r + workers, …; a rank may have
    none.

    Raises:
        UserError: a file is not there any more.
        PlatformError: a storage does not answer.
    """
    for name, channel in plan.channels.items():
        if channel.mode != "file":
            continue
        try:
            files = _fill(channel, folders.channel(name), folders.input / "fetched" / name)
        except PhalanxError as error:
            error.message = f"channel '{name}': {error.message}"
            raise
        if channel.spread == "shard":
            for rank in range(plan.workers):
                target = folders.shard(name, rank)
                shutil.rmtree(target, ignore_errors=True)  # of another number of workers
                target.mkdir(parents=True, exist_ok=True)
                for relative in files[rank :: plan.workers]:
                    _link(folders.channel(name) / relative, target / relative)


def _fill(channel: Channel, folder: Path, store: Path) -> list[str]:
    """Put every file of a channel into `folder` under its own name; return the names, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    for number, url in enumerate(channel.urls):
        files = storage.list_files(url)
        for file, local in zip(files, storage.fetch(files, store / str(number)), strict=True):
            name = relative_name(url, file.url)
            while name in names:  # two URLs hold files of one name
                taken = PurePosixPath(name)
                name = str(taken.with_name(f"{number}-{taken.name}"))
            names[name] = local.url
    for name, path in names.items():
        _link(Path(path).absolute(), folder / name)
    return sorted(names)


def relative_name(url: str, file: str) -> str:
    """Return a file's name below the folder `url`; its last part where `url` is a file or a glob."""
    if storage.is_local(url):
        root = storage.local_path(url)
        return Path(file).relative_to(root).as_posix() if root.is_dir() else Path(file).name
    root_path, path = (text.split("?")[0].partition("://")[2].strip("/") for text in (url, file))
    below = path.removeprefix(root_path + "/")
    return below if below != path else PurePosixPath(path).name


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():  # of an attempt that was cut short
        target.symlink_to(source)
