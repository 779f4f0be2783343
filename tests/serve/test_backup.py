"""A backup written while a bidder writes is consistent, and a bidder continues from it."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from leadre import artifact
from leadre.auction.budget.ledger import Ledger
from leadre.auction.budget.messages import LeaseRequest
from leadre.clock import SystemClock
from leadre.errors import ArtifactError, InputError
from leadre.serve import backup
from leadre.serve.events import event_log, table_position, training
from leadre.serve.events.erased import ErasedUsers
from leadre.serve.events.records import EventRecord, RequestRecord
from leadre.serve.events.tokens import TokenKeys
from leadre.serve.ipc.messages import AppendRequest, EventRequest, LedgerRequest, ReportRequest
from leadre.serve.paths import StatePaths
from leadre.serve.processes import erasures as erasures_module
from leadre.serve.processes.erasures import Erasures
from leadre.serve.processes.table_writer import TableWriter
from leadre.serve.processes.writer_state import WriterState
from leadre.store import erased, open_store
from leadre.store.contract import Profile, ProfileEvent, StoredList
from leadre.units import US_PER_DAY

from .bidder import until
from .conftest import make_token

CAMPAIGN, AD = "c1", "a1"


@pytest.fixture
def paths(tmp_path):
    return paths_in(tmp_path / "state")


def paths_in(folder):
    return StatePaths(folder=folder, store=f"lmdb:{folder / 'lists'}")


def open_writer_state(paths):
    return WriterState(paths, retain_days=90, clock=SystemClock())


class Traffic:
    """The writer of a bidder in a thread, as fast as the disk allows. A round is a request, its bill, imp and click."""

    def __init__(self, paths):
        self.paths = paths
        self.rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        while self.rounds < 3:
            time.sleep(0.01)
            assert self._thread.is_alive()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        writer_state = open_writer_state(self.paths)
        encrypt = TokenKeys.open(self.paths.token_keys).encrypt
        while not self._stop.is_set():
            now_us = time.time_ns() // 1000
            (leases,) = writer_state.handle(
                [
                    LedgerRequest(
                        [LeaseRequest(worker="w", campaign_id=CAMPAIGN, min_nanos=9_000_000, max_nanos=9_000_000)],
                        [],
                    )
                ],
                now_us,
            )
            lease_id = leases.leases[0].lease_id
            request_id = f"r{self.rounds}"
            token = make_token(now_us, 2_000_000, request_id=request_id, user_id="u1", lease_id=lease_id)
            record = RequestRecord(request_id=request_id, at_us=now_us, user_id=f"u{self.rounds % 7}")
            events = [
                EventRequest(kind=kind, token=encrypt(token, kind), at_us=now_us, price_nanos=1_500_000)
                for kind in ("bill", "imp", "click")
            ]
            writer_state.handle([AppendRequest([record]), *events], now_us)
            if self.rounds % 20 == 19:
                writer_state.maintain(now_us)
                training.compact(self.paths.events, self.paths.tables, ())
                writer_state.log.rotate()
            self.rounds += 1
        writer_state.close()


@pytest.fixture
def served(paths, campaign, ad):
    """Paths of a state with a campaign that has a budget, a list, a profile and an erased user."""
    from leadre.serve.catalogue.campaigns import CampaignStore
    from leadre.serve.catalogue.database import ManageDatabase

    records = ManageDatabase(paths.manage_database)
    CampaignStore(records).add(
        [campaign(campaign_id=CAMPAIGN, total_nanos=1 << 50)], [ad(ad_id=AD, campaign_id=CAMPAIGN)]
    )
    records.close()
    store = open_store(paths.store)
    store.put_lists("v1", {"u1": StoredList("v1", 1, (AD,), (-0.5,))})
    store.switch("v1")
    store.write_profiles(Profile("u9", (ProfileEvent("o1", 5, "ad", 7),)))
    store.close()
    writer_state = open_writer_state(paths)
    writer_state.erased.add("gone")
    writer_state.close()
    return paths


def test_backups_under_traffic_are_consistent_and_a_bidder_continues_from_one(served, tmp_path):
    with Traffic(served) as traffic:
        for number in range(4):
            backup.write(served, tmp_path / f"backup-{number}")
            until = traffic.rounds + 15
            while traffic.rounds < until:
                time.sleep(0.005)
    last_numbers = []
    for number in range(4):
        paths = paths_in(tmp_path / f"state-{number}")
        backup.restore(tmp_path / f"backup-{number}", paths)
        entries = list(event_log.read(paths.events))
        last_numbers.append(entries[-1].number)
        with Ledger(paths.ledger) as ledger:
            assert ledger.verify() == [] and ledger.log_number <= entries[-1].number
        assert table_position.read(paths.tables) <= entries[-1].number
        writer_state = open_writer_state(paths)  # posts log records that the ledger lacks
        bills = [entry.record for entry in entries if isinstance(entry.record, EventRecord)]
        charged = sum(bill.outcome.charge_nanos for bill in bills)
        assert writer_state.ledger.verify() == [] and writer_state.ledger.spent(CAMPAIGN) == charged > 0
        now_us = time.time_ns() // 1000
        (reply,) = writer_state.handle([ReportRequest([CAMPAIGN], now_us - US_PER_DAY, now_us + US_PER_DAY)], now_us)
        assert sum(day.charged_nanos for day in reply.days) == charged
        assert sum(day.clicks for day in reply.days) == sum(bill.outcome.kind == "click" for bill in bills)
        assert "gone" in writer_state.erased and "u1" not in writer_state.erased
        writer_state.close()
        store = open_store(paths.store)
        assert store.read_list("u1").ad_ids == (AD,) and store.read_profile("u9").recent[0].value_nanos == 7
        store.close()
        with Traffic(paths):
            pass
        assert next(event_log.read(paths.events, last_numbers[-1])).number == last_numbers[-1] + 1
    assert last_numbers == sorted(last_numbers) and last_numbers[0] < last_numbers[-1]


def test_backup_is_readable_by_its_owner_only_and_overwrites_nothing(served, tmp_path):
    artifact = backup.write(served, tmp_path / "backup")
    assert artifact.path.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="is there already; name a new folder"):
        backup.write(served, tmp_path / "backup")
    with pytest.raises(InputError, match="holds no state of a bidder that has served"):
        backup.write(paths_in(tmp_path / "nothing"), tmp_path / "another")


def test_backup_of_an_inconsistent_ledger_is_refused(served, tmp_path):
    with Traffic(served):
        pass
    shutil.rmtree(served.events)
    with pytest.raises(InputError, match=r"record \d+ is posted, and the log ends at 0"):
        backup.write(served, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_backup_waits_for_a_running_erasure(served, tmp_path):
    with erased.locked(served.erased):
        thread = threading.Thread(target=backup.write, args=(served, tmp_path / "backup"))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join()
    assert (tmp_path / "backup" / artifact.META).exists()


def test_restore_refuses_an_existing_state_and_a_damaged_backup(served, tmp_path):
    backup.write(served, tmp_path / "backup")
    with pytest.raises(InputError, match="is not empty; move it away first"):
        backup.restore(tmp_path / "backup", served)
    writer_state = open_writer_state(served)
    with pytest.raises(InputError, match="a bidder runs on it; stop it, and move it away first"):
        backup.restore(tmp_path / "backup", served)
    writer_state.close()
    keys = tmp_path / "backup" / "state" / "token.keys"
    keys.write_bytes(keys.read_bytes()[::-1])
    with pytest.raises(ArtifactError, match=r"token\.keys is missing or has changed"):
        backup.restore(tmp_path / "backup", paths_in(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def erase(paths, *users):
    """Erase users as the writer and the management process do it; returns when no file names them."""
    writer_state = open_writer_state(paths)
    store = open_store(paths.store)

    one_at_a_time = threading.Lock()  # as the writer, which has one thread

    def hide(user):
        with one_at_a_time:
            writer_state._hide(user)

    erasures = Erasures(paths, store, hide)
    with ThreadPoolExecutor(len(users)) as threads:
        requests = [threads.submit(erasures.erase, user) for user in users]
        until(lambda: len(erasures._results) == len(users), "waiting")
        erasures.run()
        assert [request.exception() for request in requests] == [None] * len(users)
    store.close()
    writer_state.close()


def names(folder, user):
    """Whether a file below the folder has the ID; a table is read, as its bytes are packed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    tables = [pl.read_parquet(path) for path in files if path.suffix == ".parquet"]
    in_tables = any(user in table["user_id"].to_list() for table in tables if "user_id" in table.columns)
    return in_tables or any(user.encode() in path.read_bytes() for path in files)


def test_restored_backup_has_no_user_erased_since(served, tmp_path, monkeypatch):
    """The state is lost with its file of erased users; the list beside the backups is not."""
    monkeypatch.setattr(erasures_module, "PROPAGATE_S", 0.0)
    gone = ("erased-later-1", "pubcid.org:erased-later-2")
    writer_state = open_writer_state(served)
    now_us = time.time_ns() // 1000
    writer_state.handle(
        [AppendRequest([RequestRecord(request_id=f"r-{len(user)}", at_us=now_us, user_id=user)]) for user in gone],
        now_us,
    )
    writer_state.close()
    training.compact(served.events, served.tables, ())
    store = open_store(served.store)
    store.put_lists("v1", {user: StoredList("v1", 1, (AD,), (-0.5,)) for user in gone})
    store.write_profiles(*(Profile(user, (ProfileEvent("o1", 5, "ad", 7),)) for user in gone))
    store.close()
    backups = tmp_path / "backups"
    backup.write(served, backups / "monday")
    assert names(backups / "monday", gone[0]) and names(backups / "monday", "erased-later-2")
    erase(served, gone[0], "erased-later-2")
    backup.write(served, backups / "tuesday")
    shutil.rmtree(served.folder)
    for day in ("monday", "tuesday"):
        paths = paths_in(tmp_path / f"state-{day}")
        assert backup.restore(backups / day, paths) == (2 if day == "monday" else 0)
        assert not names(paths.folder, "erased-later"), day
        writer_state = open_writer_state(paths)
        assert all(user in writer_state.erased for user in (*gone, "gone")) and "u1" not in writer_state.erased
        writer_state.close()
        store = open_store(paths.store)
        assert store.read_list("u1") is not None and store.read_profile("u9") is not None
        store.close()
    erase(paths, "u1")  # the restored state keeps the same list
    assert backup.restore(backups / "tuesday", paths_in(tmp_path / "again")) == 1


def test_restore_without_a_list_of_erased_users_is_refused(served, tmp_path):
    backup.write(served, tmp_path / "backups" / "one")
    (list_beside,) = (tmp_path / "backups").glob("erased-*")
    assert list_beside.read_bytes() == served.erased.read_bytes() and list_beside.stat().st_mode & 0o077 == 0
    list_beside.unlink()
    paths = paths_in(tmp_path / "new")
    with pytest.raises(InputError, match=r"erased-.* is missing.* name a copy.* --erased FILE"):
        backup.restore(tmp_path / "backups" / "one", paths)
    other = tmp_path / "other"
    ErasedUsers(other)
    with pytest.raises(InputError, match="is the list of another bidder"):
        backup.restore(tmp_path / "backups" / "one", paths, str(other))
    assert not paths.folder.exists()
    assert backup.restore(tmp_path / "backups" / "one", paths, str(served.erased)) == 0
    assert backup.restore(tmp_path / "backups" / "one", paths_in(tmp_path / "another"), "none") == 0


def test_lists_outside_the_state_folder_are_restored_outside(served, tmp_path):
    apart = StatePaths(folder=served.folder, store=f"lmdb:{tmp_path / 'apart'}")
    shutil.copytree(served.folder / "lists", tmp_path / "apart")
    backup.write(apart, tmp_path / "backup")
    new = StatePaths(folder=tmp_path / "new", store=f"lmdb:{tmp_path / 'there'}")
    backup.restore(tmp_path / "backup", new)
    store = open_store(new.store)
    assert store.read_list("u1") is not None
    store.close()
    on_a_server = StatePaths(folder=served.folder, store="redis://127.0.0.1:1/0")
    assert not (backup.write(on_a_server, tmp_path / "without").path / "lists").exists()


def test_table_writer_that_stops_has_flushed_the_whole_log(served):
    with Traffic(served):
        pass
    stopped = threading.Event()
    stopped.set()
    TableWriter(served, retain_days=90, clock=SystemClock()).run(stopped)
    numbers = [entry.number for entry in event_log.read(served.events)]
    assert table_position.read(served.tables) == numbers[-1] > 10
    assert pl.read_parquet(served.tables / "events").height > 0
