"""Objects of an S3-like store -> files with the name of their table.

The reader of files then reads them by the same rules as any folder: endings, compressions, and keys in the names of
folders.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pyarrow import fs

from leadre import progress
from leadre.data.fetch import secrets
from leadre.errors import InputError

_NS_PER_S = 1_000_000_000
_BLOCK_BYTES = 8 << 20
_TIMEOUT_S = 60
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


def copy(addresses: Mapping[str, tuple[str, str]], folder: Path) -> None:
    """Write the objects of each table into ``folder``: one as ``NAME.ENDINGS``, those below a prefix into ``NAME/``.

    ``addresses``: table -> (bucket, key; a prefix ends with a slash). Endpoint, region and credentials are those that
    the environment has for AWS tools. Raises InputError for an object that is missing or unreadable, or that changes
    meanwhile.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    hidden = {os.environ.get(name, "") for name in _SECRETS} | secrets.of_address(endpoint)
    for name, (bucket, key) in addresses.items():
        place = f"[data-fetch.objects] {name}"
        try:
            store = fs.S3FileSystem(
                scheme=urlsplit(endpoint).scheme or "https",
                endpoint_override=urlsplit(endpoint).netloc or None,  # which Arrow does not read by itself
                connect_timeout=_TIMEOUT_S,
                request_timeout=_TIMEOUT_S,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
            )
            files = _files(store, bucket, key)
            if not files:
                raise InputError(f"{place}: no object s3://{bucket}/{key}; a prefix ends with a slash")
            for info in files:
                _copy_file(store, info, folder / _target(name, info.path, f"{bucket}/{key}"), place)
        except OSError as error:
            raise InputError(
                f"{place}: {secrets.hide(str(error), hidden)}; check the address, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION"
                " and the rights of the credentials in the environment"
            ) from None
        size = sum(info.size for info in files)
        progress.say(f"data fetch: {name}: {len(files):,} objects, {size:,} bytes")


def _files(store: fs.FileSystem, bucket: str, key: str) -> list[fs.FileInfo]:
    if not key.endswith("/"):
        return [info for info in store.get_file_info([f"{bucket}/{key}"]) if info.is_file]
    below = fs.FileSelector(f"{bucket}/{key.rstrip('/')}", allow_not_found=True, recursive=True)
    infos = store.get_file_info(below)
    return sorted((info for info in infos if info.is_file and info.size), key=lambda info: info.path)


def _target(name: str, path: str, address: str) -> PurePosixPath:
    """The file of an object, relative to the folder."""
    if not address.endswith("/"):
        return PurePosixPath(name + "".join(PurePosixPath(path).suffixes))
    return PurePosixPath(name) / PurePosixPath(path).relative_to(address)


def _copy_file(store: fs.FileSystem, info: fs.FileInfo, target: Path, place: str) -> None:
    if ".." in target.parts:
        raise InputError(f"{place}: the key {info.path!r} has '..' in it; rename the object")
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.open_input_stream(info.path, compression=None) as source, target.open("xb") as file:
        while block := source.read(_BLOCK_BYTES):
            file.write(block)
            progress.sign_of_life(f"data fetch: {info.path}")
    (after,) = store.get_file_info([info.path])
    second, second_after = (at.mtime_ns // _NS_PER_S for at in (info, after))  # a listing may have fractions
    if second != second_after or not info.size == after.size == target.stat().st_size:
        raise InputError(f"{place}: {info.path} changed while it was copied; run the command again")
