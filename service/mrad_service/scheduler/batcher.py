"""Threads decode, encode (one a lane of a device) and finish; none waits while an image is ready."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch

from mrad.encoder.device import Lanes
from mrad.encoder.encoder import Features
from mrad.errors import MRADError
from mrad.tiled import Canvas
from mrad_service.errors import DeviceLostError
from mrad_service.scheduler.batch import (
    BatchSize,
    Group,
    Limits,
    Observer,
    kind,
    least_laden,
    same_encoder,
    soon_finished,
    split,
)
from mrad_service.scheduler.cores import usable_cores
from mrad_service.scheduler.finishing import conclude, draw_tiles, finish_images, outcome_of
from mrad_service.scheduler.health import Health
from mrad_service.scheduler.inside import Inside
from mrad_service.scheduler.queue import BatchWait, Item, Source
from mrad_service.scheduler.retry import in_halves, once_more
from mrad_service.scheduler.threads import start_worker
from mrad_service.scheduler.tiles import OPEN, Cut, TileItem, is_cut

AHEAD = 2
"""Decoded images kept ready, and encoded batches kept waiting, for each device: in batches."""


class Batcher(Inside):
    """Takes jobs, settles them, once it was started. Thread-safe."""

    def __init__(self, devices: int, limits: Limits, observer: Observer) -> None:
        """No thread yet: a process may still fork (gunicorn's --preload) before `start`."""
        super().__init__(Health(devices), limits, observer)
        self._devices = devices
        self._decoding, self._busy = [0] * devices, [0] * devices
        self._gathering, self._lanes = [False] * devices, Lanes(1, 1)
        self._ready: deque[Item] = deque()
        self._encoded: deque[Group] = deque()
        self._groups = 0
        self._waits = [BatchWait(limits.batch_wait) for _ in range(devices)]
        self._sizes = [BatchSize(limits.max_batch) for _ in range(devices)]

    def start(self) -> None:
        """Start the threads, once."""
        if self._threads:
            return
        cores, limits, devices = usable_cores(), self.limits, self._devices
        share = max(1, cores // limits.finish_threads)
        for i in range(limits.decode_threads):
            self._thread(f"decode-{i}", self._decode_loop, 1)
        for i in range(limits.finish_threads):
            self._thread(f"finish-{i}", self._finish_loop, share)
        self._lanes = Lanes.of(limits.kind, cores // devices)
        for i, _ in product(range(devices), range(self._lanes.count)):
            # Last: what they set is what later threads take over.
            self._thread(f"device-{i}", partial(self._device_loop, i), self._lanes.cores)

    def _thread(self, name: str, loop: Callable[[], None], cores: int) -> None:
        self._threads.append(start_worker(name, loop, cores, self.health))

    # -- decoding -----------------------------------------------------------------------------

    def _decode_loop(self) -> None:
        while (item := self._next_to_decode()) is not None:
            if self._alive(item):
                self._decode(item)
            with self._lock:
                self._decoding[item.device] -= 1
                self._to_encode.notify_all()
                if self._queue:
                    self._to_decode.notify()

    def _next_to_decode(self) -> Item | None:
        room = AHEAD * self.limits.max_batch * self._devices * self._lanes.count
        with self._lock:
            while not self._closed:
                if len(self._ready) + sum(self._decoding) < room:
                    item = self._queue.pop(self._has_no_room)
                    if item is not None:
                        item.held = item.cost
                        if is_cut(item.job) and item.whole is item:
                            self._open.add(item)
                        usable = self.health.usable or range(self._devices)
                        item.device = least_laden(self._decoding, self._ready, usable, self._busy)
                        self._decoding[item.device] += 1
                        return item
                self._to_decode.wait(0.2 if self._queue else None)  # lessons hold pixels too
        return None

    def _has_no_room(self, source: Source) -> bool:
        """Whether the next image of a source has to wait; takes its room where not."""
        if len(self._open) >= OPEN and is_cut(source):
            return True
        return source.waiting > 0 and not self.pixels.try_take(source.cost, source)

    def _decode(self, item: Item) -> None:
        began = time.perf_counter()
        detector = item.job.model.detectors[item.device]
        decoded = once_more(lambda: item.prepare(detector), detector.encoder.device)
        if isinstance(decoded, MRADError):
            self._lost(item.device, decoded)
            self._settle(item, decoded)
            return
        item.decoded = decoded
        if item.whole is item:
            self._hold(item, min(item.held, item.kept))
            self._observer.stage("decode", time.perf_counter() - began, [item])
        if item.whole is item and not decoded.places.whole:
            self._cut(item, detector.first_look(decoded.places))
            return
        with self._lock:
            self._ready.append(item)  # the device is told when this thread is done with it

    def _cut(self, item: Item, canvas: Canvas) -> None:
        """Queue the tiles of an image; a coarse look is followed by a closer one (`_draw`)."""
        with self._lock:
            self._open.add(item)
            self._queue.push(Cut(item, canvas))
            self._to_decode.notify_all()

    # -- the device ---------------------------------------------------------------------------

    def _device_loop(self, device: int) -> None:
        while (batch := self._next_batch(device)) is not None:
            alive = [item for item in batch if self._alive(item)]
            # Those that want the same side by side: each group is a slice of the features.
            alive.sort(key=kind)
            if alive:
                lanes = self._lanes
                torch.set_num_threads(lanes.cores if self._alone(device) else lanes.share)
                self._encode(device, alive)
            with self._lock:
                self._busy[device] -= 1

    def _alone(self, device: int) -> bool:
        """Whether no other batch is encoded there, nor will soon be."""
        return self._busy[device] == 1 and not (self._ready or self._queue or any(self._decoding))

    def _next_batch(self, device: int) -> list[Item] | None:
        room = AHEAD * self._devices * self._lanes.count
        with self._lock:
            while not self._closed:
                has_room = len(self._encoded) < room
                if self._ready and not self._gathering[device] and has_room:
                    self._gathering[device] = True
                    batch = self._gather(device)
                    self._gathering[device] = False
                    if batch:
                        return batch
                self._to_encode.wait()
        return None

    def _gather(self, device: int) -> list[Item]:
        """A batch, full or closed by its wait. Called with the lock, which waiting lets go."""
        last = time.monotonic()
        closes = last + self.limits.batch_wait
        wait, widest, hoped = self._waits[device], None, False
        patience = wait.next()
        while True:
            own = same_encoder(device, self._ready, self.health.usable, self._busy)
            batch = own[: self._sizes[device].now]
            if not batch or len(batch) == self._sizes[device].now or self._closed:
                break
            if self._came > last:
                widest, last = max(widest or 0.0, self._came - last), self._came
            coming = any(self._decoding) or self._queue
            hoped = hoped or not coming
            ends = closes if coming else min(closes, last + patience)
            left = ends - time.monotonic()
            if left <= 0:
                break
            self._to_encode.wait(left)
        if hoped:
            wait.learn(widest)
        batch = batch[: self._lanes.part(len(own), self._busy[device])]
        chosen = set(map(id, batch))
        self._ready = deque(item for item in self._ready if id(item) not in chosen)
        self._busy[device] += bool(batch)
        if self._queue:  # there is room for decoded images
            self._to_decode.notify_all()
        if self._devices * self._lanes.count > 1:  # another one may take what waits for this one
            self._to_encode.notify_all()
        return batch

    def _lost(self, device: int, result: object) -> None:
        """Take note where a device failed for good."""
        if isinstance(result, DeviceLostError):
            self.health.lose(device, str(result))
            with self._lock:
                self._tell_all()

    def _encode(self, device: int, batch: list[Item]) -> None:
        began = time.perf_counter()
        self._observer.batch(len(batch))

        def run(items: Sequence[Item]) -> Features:
            detector = items[0].job.model.detectors[device]
            return detector.encode([item.decoded for item in items if item.decoded])

        where, finishing = batch[0].job.model.detectors[device].encoder.device, 0.0
        for items, result in in_halves(batch, run, where):
            self._lost(device, result)
            if len(items) < len(batch) and not isinstance(result, MRADError):
                self._sizes[device].shrink(len(items))
            if isinstance(result, MRADError):
                for item in items:
                    self._settle(item, result)
                continue
            groups = [Group(device, *part) for part in split(items, result)]
            with self._lock:
                more = self._queue or self._ready or self._encoded or any(self._decoding)
                here = not more and soon_finished(groups, where)
                if not here:
                    self._encoded.extend(groups)
                    self._to_finish.notify(len(groups))
            encoded = time.perf_counter()
            for group in groups if here else ():
                self._finish(group)
            finishing += time.perf_counter() - encoded  # is told as other stages
        self._sizes[device].recover()
        self._observer.stage("encode", time.perf_counter() - began - finishing, batch)

    # -- finishing ----------------------------------------------------------------------------

    def _finish_loop(self) -> None:
        while (group := self._next_to_finish()) is not None:
            self._finish(group)

    def _next_to_finish(self) -> Group | None:
        with self._lock:
            while not self._closed:
                if self._encoded:
                    self._to_encode.notify_all()
                    return self._encoded.popleft()
                self._to_finish.wait()
        return None

    def _finish(self, group: Group) -> None:
        alive = [row for row, item in enumerate(group.items) if self._alive(item)]
        if not alive:
            return
        if isinstance(group.items[alive[0]], TileItem):
            self._draw(group, alive)
            return
        asks = max((group.items[row] for row in alive), key=lambda item: item.job.wanted.evidence)
        began = time.perf_counter()
        for part, result in finish_images(group, alive, self._evidence(asks)):
            self._lost(group.device, result)
            self._observer.stage("retrieve", time.perf_counter() - began, part)
            for row, item in enumerate(part):
                self._render(item, result if isinstance(result, MRADError) else result[row])
            began = time.perf_counter()

    def _draw(self, group: Group, alive: Sequence[int]) -> None:
        """Judge tiles; whoever draws the last of an image concludes it."""
        began = time.perf_counter()
        for part, error in draw_tiles(group, alive):
            self._lost(group.device, error)
            self._observer.stage("retrieve", time.perf_counter() - began, part)
            for item in part:
                if error is not None:
                    self._settle(item, error)
                    continue
                with self._lock:
                    self._rate.done(time.monotonic())
                    last = item.canvas.count()
                if last and (closer := item.canvas.closer()) is not None:
                    self._cut(item.whole, closer)
                elif last:
                    self._render(item.whole, conclude(item, group.device, self._evidence(item)))
            began = time.perf_counter()

    def _evidence(self, item: Item) -> int:
        """Nearest keys to find for an item: what was asked for, else one now and then, for drift."""
        every = self.limits.nearest_every
        self._groups += 1
        return item.job.wanted.evidence or int(every > 0 and self._groups % every == 0)

    def _render(self, item: Item, prediction: object) -> None:
        if isinstance(prediction, MRADError):
            self._settle(item, prediction)
            return
        if not self._alive(item):
            return
        began = time.perf_counter()
        outcome = outcome_of(item, prediction)
        self._observer.stage("render", time.perf_counter() - began, [item])
        self._settle(item, outcome)
