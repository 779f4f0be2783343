"""Model server: the process that runs the language model. It generates objects for a user's current profile.

Workers send requests over a socket (`serve.ipc`), and `generate.engine` batches them. At a request's deadline the reply
has the best objects of its beams so far. If the queue is full, the reply is empty at once, so that the worker has time
for another source of candidates.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from leadre.artifact import Artifact
from leadre.clock import Clock, SystemClock
from leadre.data.histories import AD, CONTENT, Mask
from leadre.data.moment import LiveInventory, Moment, history_of
from leadre.errors import BusyError
from leadre.generate.engine import Engine
from leadre.lm.backbone import has_bfloat16
from leadre.lm.beam import BeamPolicy
from leadre.lm.decode import BeamSearcher
from leadre.lm.prefix import PrefixCache
from leadre.semid import codebook as codebooks
from leadre.semid.inventory import Inventory
from leadre.semid.trie import Trie, weighed
from leadre.serve.ipc.messages import MAX_ITEMS, GenerateReply, GenerateRequest, ModelInfoReply, ModelInfoRequest
from leadre.serve.processes.database_reader import DatabaseReader
from leadre.serve.processes.new_objects import NewAds, NewObjects, ObjectCoder
from leadre.store.contract import ProfileEvent
from leadre.tune import model as tuned_model
from leadre.tune.answers import search_of
from leadre.types import Ad

PREFIX_MB = 256
NO_PLACEMENT = -1  # profiles have none


class ModelServer:
    """A tuned model and the objects of its tables. Use it in a ``with``, which starts and stops its thread."""

    def __init__(
        self,
        tables: Artifact,
        codebook: Artifact,
        model: Artifact,
        *,
        beam: int,
        queue: int = 64,
        batch: int = 16,
        clock: Clock | None = None,
    ) -> None:
        ids = tuned_model.tuned_ids(codebooks.load(codebook), model)
        tuned = tuned_model.load(tables, ids, model, training=False)
        self.coder = ObjectCoder(ids, codebook.meta["config"]["encoder"])
        moments = tuned.threads.moments
        self.clock = clock or SystemClock()
        self.beam = beam
        self.live = tuned.live
        if self.live.learnt is not None:
            self.live.learnt.full.warm_up()
        self.prompter = tuned.threads.prompter
        self.objects = {object_id: row for row, object_id in enumerate(moments.logs.objects["object_id"].to_list())}
        self.users = {user_id: row for row, user_id in enumerate(moments.logs.users["user_id"].to_list())}
        self.profiles = moments.profiles
        self._new_ads = NewAds()
        self.instance = secrets.token_hex(8)
        self.object_ids = list(self.objects)  # those of the tables, then new ones
        self._version = f"{model.hash[:12]}-{beam}"  # the number of beams changes the results
        self.inventory = Inventory(self.live.codes_OL, self.live.sizes, self.live.rates_O)
        self.is_bfloat16 = has_bfloat16(tuned.backbone.device)
        searcher = BeamSearcher(tuned.backbone, prefix_cache=PrefixCache(capacity_mb=PREFIX_MB))
        self.engine = Engine(searcher, queue=queue, batch=batch)

    def __enter__(self) -> ModelServer:
        self.engine.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: object) -> None:
        self.engine.__exit__(kind, value, trace)

    @property
    def version(self) -> str:
        """Model, number of beams, and number of new objects: all change the results."""
        added = len(self.object_ids) - len(self.objects)
        return f"{self._version}+{added}" if added else self._version

    def add(self, new: NewObjects) -> None:
        """Let the model generate new objects, with the median response rate. No search may run in this thread."""
        if new.object_ids:
            rates_O = self.live.rates_O
            rates_N = None if rates_O is None else np.full(len(new.object_ids), np.median(rates_O))
            self.inventory.add(new.codes_NL, rates_N)
            self.object_ids += new.object_ids

    def add_ads(self, ads: Sequence[Ad]) -> None:
        """`add` the objects of ads made at the management API, in the order of the ads. Takes seconds."""
        ads = [ad for ad in ads if ad.created_at_us]
        while (new := self.coder.assign(ads)).object_ids:
            self.add(new)

    async def follow(self, reader: DatabaseReader) -> None:
        """`add` the objects of ads that were made or changed since the last call."""
        ads = await reader.read(self._new_ads.read)
        while ads and (new := await asyncio.to_thread(self.coder.assign, ads)).object_ids:
            self.add(new)

    async def answer(self, request: ModelInfoRequest | GenerateRequest) -> ModelInfoReply | GenerateReply:
        """Reply with the model's objects and version, or the best eligible objects of the beams at the deadline."""
        if isinstance(request, ModelInfoRequest):
            end = request.start + MAX_ITEMS
            part = self.object_ids[request.start : end]
            return ModelInfoReply(part, self.version, end if end < len(self.object_ids) else 0, self.instance)
        if self.clock.monotonic_s() >= request.until_s:
            return GenerateReply([], [], False)
        count = len(self.object_ids)
        eligible_O = np.unpackbits(np.frombuffer(request.eligible, np.uint8), count=count).astype(np.bool_)
        moment = self.moment(request.user_id, request.recent, request.now_us, eligible_O)
        inventory = self.inventory.restrict(allowed=eligible_O)
        if self.live.differs_by_user:
            assert isinstance(inventory, Trie), "allowed rows alone make a trie"
            inventory = weighed(inventory, self._weights(moment))
        ids, (beam_request,) = search_of(self.prompter, self.live, moment, inventory, np.arange(count))
        try:
            policy = BeamPolicy(self.beam, top=request.top)
            left_ms = max((request.until_s - self.clock.monotonic_s()) * 1000, 0.0)  # a large prior took a part
            future = self.engine.submit(ids, beam_request, policy, deadline_ms=left_ms)
        except BusyError:
            return GenerateReply([], [], False)
        result = await asyncio.wrap_future(future)
        return GenerateReply(result.rows.tolist(), result.log_p.tolist(), result.complete)

    def _weights(self, moment: Moment) -> NDArray[np.float64]:
        """The prior weight of each object for this user, zero if not eligible; the median if the tables lack it."""
        objects = moment.inventory.objects  # ascending, so those that the tables lack come last
        known = replace(moment.inventory, objects=objects[objects < len(self.objects)])
        weights = self.live.weights(replace(moment, inventory=known), known.objects)
        assert weights is not None, "a prior that differs by user has weights"
        weights_O = np.zeros(len(self.object_ids))
        weights_O[objects] = np.median(weights) if len(weights) else 1.0
        weights_O[known.objects] = weights
        return weights_O

    def moment(self, user_id: str, recent: Sequence[ProfileEvent], now_us: int, eligible_O: Mask) -> Moment:
        """A user at ``now_us``. Events of objects that the model's tables lack, also of new ones, are left out."""
        events = (
            (
                self.objects[event.object_id],
                event.at_us,
                AD if event.domain == "ad" else CONTENT,
                event.value_nanos,
                NO_PLACEMENT,
            )
            for event in recent
            if event.object_id in self.objects
        )
        user = self.users.get(user_id, -1)
        no_ads = np.zeros(0, np.int32)  # the model generates objects; the worker maps them to ads
        return Moment(
            user=user,
            profile={} if user < 0 else self.profiles[user],
            at_us=now_us,
            placement=0,  # requests do not name a placement: the first one of the log is assumed
            history=history_of(events, now_us),
            inventory=LiveInventory(objects=np.flatnonzero(eligible_O), ads=no_ads, ad_object=no_ads),
        )
