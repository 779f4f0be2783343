"""`LmdbStore`: lists, profiles and caps in one folder, without a server; any process of the machine may open it.

Three files, so that each commit waits for the disk only as long as its data needs: ``lists`` (a commit is on the disk),
``profiles`` (a power cut may lose the last commits) and ``caps`` (never synchronised).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from leadre.errors import InputError, StoreDown
from leadre.store.contract import Cap, ListVersions, Profile, StoredList, is_possible
from leadre.store.lmdb.caps import LmdbCaps
from leadre.store.lmdb.lists import LmdbLists
from leadre.store.lmdb.profiles import LmdbProfiles


class LmdbStore:
    """`contract.Store` in ``folder``, which is created if missing. InputError if it cannot be created.

    Every file is opened at once, as a disk that is full later leaves no room for opening them.

    ``lock_s`` limits the wait of reads, `reserve` and `void` for a lock that other processes hold; None: for ever.
    """

    def __init__(self, folder: Path, *, lock_s: float | None = None) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"store {folder}: cannot be made a folder ({error.strerror})") from error
        self._lists = LmdbLists(folder / "lists", lock_s)
        self._profiles = LmdbProfiles(folder / "profiles", lock_s)
        self._caps = LmdbCaps(folder, lock_s)
        for part in (self._lists, self._profiles, self._caps):
            with suppress(StoreDown):  # the first read or write tries again
                part.file.open(lock_s)

    def put_lists(self, version: str, lists: Mapping[str, StoredList]) -> None:
        self._lists.put(version, lists)

    def read_list(self, user: str) -> StoredList | None:
        return self._lists.read(user)

    def scan(self, version: str) -> Iterator[tuple[str, StoredList]]:
        return self._lists.scan(version)

    def versions(self) -> ListVersions:
        return self._lists.versions()

    def switch(self, version: str) -> None:
        self._lists.switch(version)

    def rollback(self) -> str:
        return self._lists.rollback()

    def drop(self, version: str) -> None:
        self._lists.drop(version)

    def read_profile(self, user: str) -> Profile | None:
        return self._profiles.read(user)

    def find_user(self, *users: str) -> str:
        possible = [user for user in users if is_possible(user)]
        known = zip(possible, self._lists.have(possible), self._profiles.have(possible), strict=True)
        return next((user for user, has_list, has_profile in known if has_list or has_profile), "")

    def write_profiles(self, *profiles: Profile) -> None:
        self._profiles.write(profiles)

    def reserve(
        self,
        user: str,
        caps: Sequence[Cap],
        *,
        now_us: int,
        until_us: int,
        count: int = 1,
        certain_us: int | None = None,
        holder: str = "",
    ) -> dict[str, list[str]]:
        return self._caps.reserve(
            user, caps, now_us=now_us, until_us=until_us, count=count, certain_us=certain_us, holder=holder
        )

    def post(self, reservation: str, user: str = "", cap: Cap | None = None) -> bool:
        return self._caps.post(reservation, user, cap)

    def void(self, *reservations: str) -> None:
        self._caps.void(reservations)

    def erase(self, *users: str) -> None:
        possible = [user for user in users if is_possible(user)]
        for part in (self._lists, self._profiles, self._caps):
            part.erase(possible)
        for part in (self._lists, self._profiles, self._caps):
            part.file.compact()

    def users(self) -> Iterator[str]:
        """Yield the users of all lists and profiles; some several times."""
        yield from self._lists.users()
        yield from self._profiles.users()

    def retain(self, after_us: int, now_us: int) -> int:
        changed_lists = self._lists.retain(after_us)
        changed_profiles = self._profiles.retain(after_us)
        self._caps.purge(now_us)
        if changed_lists:
            self._lists.file.compact()
        if changed_profiles:
            self._profiles.file.compact()
        self._caps.file.compact()  # always: `reserve` purges records too, and leaves free pages
        return changed_lists + changed_profiles

    def copy(self, folder: Path) -> None:
        """Copy lists and profiles, each as of one moment, into an existing folder, which can be opened as a store.

        Caps are not copied: they are valid for this machine's boot and for a few days.
        """
        for part in (self._lists, self._profiles):
            part.file.copy(folder)

    def close(self) -> None:
        """Drop the references to the files; each closes when no store of this process uses it."""
        with suppress(AttributeError):  # closed already
            del self._lists, self._profiles, self._caps
