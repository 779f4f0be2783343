"""Requests of the management process to the writer."""

from __future__ import annotations

import pytest

from leadre.clock import ManualClock
from leadre.errors import PeerError
from leadre.serve.ipc.messages import CountsReply
from leadre.serve.paths import StatePaths
from leadre.serve.processes import management
from leadre.serve.processes.management import RETRY_S, ManagementBackend


def test_page_waits_for_a_stalled_writer_once(tmp_path, monkeypatch):
    """Fragments of a page send several requests; after one without a reply, the others fail at once."""
    requests = []

    def request_once(path, request, replies, *, timeout_s):
        requests.append(request)
        if len(requests) == 1:
            raise PeerError(f"{path.name}: no reply within {timeout_s:.0f} s")
        return CountsReply({}, 0)

    monkeypatch.setattr(management, "request_once", request_once)
    paths = StatePaths(folder=tmp_path, store=f"lmdb:{tmp_path / 'lists'}")
    clock = ManualClock()
    backend = ManagementBackend(paths, tmp_path, clock)
    for message in ("no reply within", "no reply a moment ago", "no reply a moment ago"):
        with pytest.raises(PeerError, match=message):
            backend.counts()
    assert len(requests) == 1
    clock.advance(RETRY_S)
    assert backend.counts() == {}
    backend.store.close()
