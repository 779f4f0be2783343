"""The process with the language model: profiles as they are now -> live objects, inside the asker's deadline.

Workers ask over a socket (`serve.peers`); `generate.engine` batches what is waiting and answers whoever cannot wait any
longer with what its beams have found. A full queue refuses at once, so that the asker has time for something else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import polars as pl

from leadre.artifact import Artifact
from leadre.data.histories import AD, CONTENT, TEST, Logs
from leadre.errors import BusyError
from leadre.generate.engine import Engine
from leadre.lm.backbone import has_bfloat16
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.layout import Ids
from leadre.lm.prefix import PrefixCache
from leadre.semid import codebook as codebooks
from leadre.semid.inventory import Inventory
from leadre.serve.ipc.messages import GenerateReply, GenerateRequest, ModelInfoReply, ModelInfoRequest
from leadre.store.contract import ProfileEvent
from leadre.tune import model as saved
from leadre.tune.threads import ThreadBuilder

PREFIX_MB = 256


class ModelServer:
    """A tuned model over its catalogue. Use it in a ``with``, as its engine has a thread of its own."""

    def __init__(
        self, tables: Artifact, codebook: Artifact, model: Artifact, *, beam: int, queue: int = 64, batch: int = 16
    ) -> None:
        loaded = saved.load(tables, saved.tuned_ids(codebooks.load(codebook), model), model, training=False)
        self.beam, self.live, self.logs = beam, loaded.live, loaded.threads.logs
        self.prompter = loaded.threads.prompter
        self.objects = {object_id: row for row, object_id in enumerate(self.logs.objects["object_id"].to_list())}
        self.users = {user_id: row for row, user_id in enumerate(self.logs.users["user_id"].to_list())}
        self.version = f"{model.hash[:12]}-{beam}"  # other beams, other answers
        weights = self.live.rates_O
        self.inventory = Inventory(self.live.codes_OL, self.live.sizes, weights)
        self.is_bfloat16 = has_bfloat16(loaded.backbone.device)
        searcher = BeamSearcher(loaded.backbone, prefix_cache=PrefixCache(capacity_mb=PREFIX_MB))
        self.engine = Engine(searcher, queue=queue, batch=batch)

    def __enter__(self) -> ModelServer:
        self.engine.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        self.engine.__exit__(kind, value, trace)

    async def answer(self, wanted: ModelInfoRequest | GenerateRequest) -> ModelInfoReply | GenerateReply:
        """The best live objects for a user, or what was found in time."""
        if isinstance(wanted, ModelInfoRequest):
            return ModelInfoReply(list(self.objects), self.version)
        left_ms = (wanted.until_s - time.monotonic()) * 1000
        if left_ms <= 0:
            return GenerateReply([], [], False)
        count = len(self.live.codes_OL)
        eligible_O = np.unpackbits(np.frombuffer(wanted.eligible, np.uint8), count=count).astype(np.bool_)
        logs = self._logs_of(wanted.user_id, wanted.recent, wanted.now_us)
        ids = self.prompt(logs)
        pointer_bias_T = self.live.pointer_bias(0, self.prompter.layout.objects(ids), logs)
        inventory = self.inventory.restrict(allowed=eligible_O)
        ask = BeamRequest(len(ids) - 1, inventory, np.arange(count), pointer_bias_T=pointer_bias_T)
        try:
            future = self.engine.submit(ids, ask, BeamPolicy(self.beam, top=wanted.top), deadline_ms=left_ms)
        except BusyError:
            return GenerateReply([], [], False)
        found = await asyncio.wrap_future(future)
        return GenerateReply(found.rows.tolist(), found.log_p.tolist(), found.complete)

    def prompt(self, logs: Logs) -> Ids:
        """The prompt of the one request of these logs."""
        threads = ThreadBuilder(self.prompter.over(logs))
        (window,) = threads.serving(np.zeros(1, np.int64))
        return threads.write(window).ids

    def _logs_of(self, user_id: str, recent: Sequence[ProfileEvent], now_us: int) -> Logs:
        """Logs of one user with one request; what the catalogue does not know is left out."""
        known = [
            (self.objects[seen.object_id], seen.at_us, seen.domain == "ad", seen.value_nanos)
            for seen in recent
            if seen.object_id in self.objects and seen.at_us < now_us
        ]
        known.sort(key=lambda event: event[1])
        events_EF = np.array(known, np.int64).reshape(-1, 4)
        object_E, at_us_E, is_ad_E, value_E = events_EF.T
        row = self.users.get(user_id)
        stranger = pl.DataFrame([{"user_id": user_id}], schema=self.logs.users.schema)  # nothing else is known
        users = stranger if row is None else self.logs.users[row : row + 1]
        return dataclasses.replace(
            self.logs,
            users=users,
            event_offsets=np.array([0, len(known)]),
            at_us_E=at_us_E,
            object_E=object_E.astype(np.int32),
            ad_E=np.full(len(known), -1, np.int32),
            domain_E=np.where(is_ad_E, AD, CONTENT).astype(np.int8),
            value_nanos_E=value_E,
            request_E=np.full(len(known), -1, np.int32),
            request_user_R=np.zeros(1, np.int32),
            request_at_us_R=np.array([now_us]),
            request_placement_R=np.zeros(1, np.int32),
            request_inventory_R=np.zeros(1, np.int32),
            request_split_R=np.array([TEST], np.int8),
            relevant_offsets=np.zeros(2, np.int64),
            relevant_ads=np.zeros(0, np.int32),
            relevant_value_nanos=np.zeros(0, np.int64),
        )
