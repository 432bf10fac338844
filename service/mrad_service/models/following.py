"""A bank's thresholds follow its lessons: beside scoring, in force with the lesson, and on disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import structlog

from mrad.calibration import Calibration, Rule
from mrad.detector import Detector
from mrad.errors import CalibrationError, MRADError
from mrad.heads.tf import TFHead
from mrad.memory.living import CALIBRATION
from mrad.thresholds.calibrate import calibrate
from mrad.thresholds.follow import followed
from mrad.thresholds.objects import keeping_objects, with_object
from mrad.thresholds.own import anchored, memory_of, score_own
from mrad_service.errors import CalibratingError
from mrad_service.memory import DurableMemory
from mrad_service.models.loading import Model

log = structlog.get_logger(__name__)
WAIT = 10.0
"""Seconds that a lesson waits for its thresholds; then its answer says that they are still to come."""
ORIGIN = "origin/"
"""Names of values: a head's calibration as it was made, from which lessons are followed."""
NICE = 10
"""Scoring goes first."""


@dataclass
class Renewal:
    """What a lesson did to a bank's thresholds."""

    before: Calibration | None
    """In force before it."""
    model: Model
    """With the memory that learned."""
    after: Calibration | None = None
    why_not: str = ""
    """Why the thresholds stay as they were; empty where they follow."""
    computed: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)
    """On disk, or not to be."""

    @property
    def done(self) -> bool:
        """Whether it came to an end in time."""
        return self.settled.is_set()


@dataclass
class Calibrating:
    """A calibration on its way."""

    rule: Rule | None
    target_fpr: float
    product: str | None = None
    """Of whose images alone; None: of all."""
    state: Literal["none", "waiting", "running", "done", "failed"] = "waiting"
    done: int = 0
    images: int = 0
    """Of the memory, judged so far and in all; 0 before that is known."""
    why: str = ""
    """Why it failed; nothing was changed then."""
    calibration: Calibration | None = None

    @property
    def asked(self) -> tuple[Rule | None, float, str | None]:
        """What tells it from another."""
        return self.rule, self.target_fpr, self.product

    @property
    def words(self) -> str:
        """The same for people."""
        whose = "all products" if self.product is None else repr(self.product)
        return f"of {whose} (rule {self.rule or 'by the memory'}, target_fpr {self.target_fpr:g})"


class Following:
    """Thresholds of one loaded bank. One thread for all banks does the work."""

    def __init__(
        self,
        memory: DurableMemory,
        workers: ThreadPoolExecutor,
        current: Callable[[], Model],
        publish: Callable[[Model, Calibration], None],
    ) -> None:
        """`current`: what judges now; `publish`: puts thresholds of a model's memory into force."""
        self._memory, self._workers = memory, workers
        self._current, self._publish = current, publish
        self.job: Calibrating | None = None
        self._beginning = threading.Lock()
        self._origin: Calibration | None = None
        self._last: Detector | None = None
        self.latest: Renewal | None = None

    def begin(self, model: Model) -> Renewal:
        """Measure the memory's own images, so that the first lesson need not; mend what a crash left."""
        return self.follow(model, model.calibration)

    def follow(self, model: Model, before: Calibration | None) -> Renewal:
        """The memory has changed: `model` has it, with the thresholds of `before`."""
        renewal = Renewal(before, model)
        self.latest = renewal
        try:
            self._workers.submit(self._renew, renewal).add_done_callback(_give_back)
        except RuntimeError:  # the server stops: the next start goes on from here
            self._end(renewal, "the server is stopping")
        return renewal

    def calibrate(self, rule: Rule | None, target_fpr: float, product: str | None) -> Calibrating:
        """Begin to calibrate on the memory's own images; the job that runs where it was asked the same.

        Raises `UnknownObjectError`; `CalibratingError` where one that was asked otherwise runs.
        """
        bank = self._current().bank
        if product is not None and product not in bank.objects:
            bank.of_object(product)  # raises, and names those that are held
        job = Calibrating(rule, target_fpr, product)
        with self._beginning:
            if self.job is not None and self.job.state not in ("done", "failed"):
                if self.job.asked != job.asked:
                    raise CalibratingError(
                        f"a calibration runs already, {self.job.words}, and this one is {job.words}: "
                        "ask again when it is done"
                    )
                return self.job
            self.job = job
        try:
            self._workers.submit(self._calibrate, job).add_done_callback(_give_back)
        except RuntimeError:
            job.state, job.why = "failed", "the server is stopping"
        return job

    def _calibrate(self, job: Calibrating) -> None:
        def progress(done: int, images: int) -> None:
            job.done, job.images = done, images

        job.state, model = "running", self._current()
        try:
            detector, whole = model.detectors[0], model.calibration
            if job.product is None:
                detector = self._resumed(detector)
            elif whole is None:
                raise CalibrationError(
                    "thresholds of one product are kept beside those of all: calibrate without object first"
                )
            else:
                detector = detector.of_object(job.product)
            scored = score_own(detector, thorough=True, progress=progress)
            checkpoint = model.spec.checkpoint.name if model.spec.checkpoint else ""
            own = calibrate(
                detector,
                scored,
                rule=job.rule,
                target_fpr=job.target_fpr,
                source="the memory itself",
                checkpoint=checkpoint,
            )
            if job.product is None:
                made = keeping_objects(anchored(own, detector.bank, scored), whole)
                self._origin = made
            else:
                assert whole is not None
                made = with_object(whole, job.product, own, detector)
            self._memory.put(CALIBRATION + made.head, made.model_dump_json().encode())
            self._publish(model, made)
            job.calibration, job.state = own, "done"
        except MRADError as error:
            job.state, job.why = "failed", str(error)
        except Exception as error:
            log.exception("calibrating failed", bank=model.name)
            job.state, job.why = "failed", repr(error)

    def _end(self, renewal: Renewal, why: str = "") -> None:
        renewal.why_not = why
        renewal.computed.set()
        renewal.settled.set()

    def _renew(self, renewal: Renewal) -> None:
        if self.latest is not renewal:  # a later lesson waits, and will say what became of both
            self._end(renewal, "a later lesson renews them")
            return
        try:
            renewal.after = self._followed(renewal)
        except MRADError as error:
            self._end(renewal, str(error))
            return
        except Exception as error:
            log.exception("thresholds do not follow", bank=renewal.model.name)
            self._end(renewal, f"they could not be renewed: {error!r}")
            return
        renewal.computed.set()
        try:
            self._publish(renewal.model, renewal.after)
            self._store(renewal)
        except MRADError as error:
            log.warning("thresholds are not on disk", bank=renewal.model.name, why=str(error))
            renewal.why_not = f"they are in force, but not on disk: {error}"
        renewal.settled.set()

    def _followed(self, renewal: Renewal) -> Calibration:
        model = renewal.model
        held, detector = self._current().calibration, model.detectors[0]
        if held is None:
            raise MRADError(model.why_uncalibrated)
        origin = self._origin_of(held, detector)
        if renewal.before is not None and renewal.before.own is None:
            renewal.before = origin
        scored = score_own(self._resumed(detector))
        found = followed(origin, detector, scored)
        return found.model_copy(
            update={"objects": held.objects}
        )  # some may be younger than its origin

    def _origin_of(self, held: Calibration, detector: Detector) -> Calibration:
        """The calibration as it was made, with the scores of the memory's own images of then."""
        known = self._origin
        if known is not None and _same(known, held):
            return known
        origin, stored = held, self._memory.values.get(ORIGIN + held.head)
        if held.origin and stored is not None:
            found = Calibration.model_validate_json(stored)
            origin = found if _same(found, held) else held
        if origin.own is None:
            built, base = self._memory.built, detector
            of_built = CALIBRATION + held.head not in self._memory.values
            if of_built and memory_of(built) != memory_of(detector.bank):
                base = detector.with_bank(built)
            origin = anchored(origin, base.bank, score_own(self._resumed(base)))
        self._origin = origin
        return origin

    def _resumed(self, detector: Detector) -> Detector:
        """With what the last one measured, where it began from an earlier state."""
        if isinstance(detector.head, TFHead) and self._last is not None:
            assert isinstance(self._last.head, TFHead)
            detector.head.resume(self._last.head)
        self._last = detector
        return detector

    def _store(self, renewal: Renewal) -> None:
        """First where it comes from: a crash between the two leaves thresholds that are renewed again."""
        found, origin = renewal.after, self._origin
        assert found is not None
        assert origin is not None
        if found.follows == origin.follows and renewal.model.bank.changes is None:
            return  # as it was made, and nothing was learned: nothing to keep
        head = found.head
        text = origin.model_dump_json().encode()
        if self._memory.values.get(ORIGIN + head) != text:
            self._memory.put(ORIGIN + head, text)
        text = found.model_dump_json().encode()
        if self._memory.values.get(CALIBRATION + head) != text:
            self._memory.put(CALIBRATION + head, text)


def _give_back(_: object) -> None:
    """Hand what was freed back to the system: glibc keeps it, for each thread, and a memory that learns
    is copied with every lesson."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _same(origin: Calibration, held: Calibration) -> bool:
    """Whether `held` is this calibration as it was made, or follows lessons from it."""
    if held.origin:
        return held.origin == (origin.origin or origin.made_at)
    bare = {"own": None, "follows": "", "objects": {}}
    return origin.model_copy(update=bare) == held.model_copy(update=bare)


def workers() -> ThreadPoolExecutor:
    """The thread that renews thresholds, one bank after the other, behind whatever scores."""

    def behind() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)

    return ThreadPoolExecutor(1, "thresholds", behind)
