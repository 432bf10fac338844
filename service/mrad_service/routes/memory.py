"""`/v1/memory`: teach, forget, look, take a copy. An answer means durable and retrievable."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Header, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from PIL import Image
from pydantic import AfterValidator
from starlette.background import BackgroundTask

from mrad.detector import Decoded, Detector
from mrad.encoder.stream import prepare_tile
from mrad.errors import LayoutError, MaskError, MRADError
from mrad.images.guard import refuse_doubtful
from mrad.images.masks import Mask, Orientation, read_mask
from mrad.memory.entry import Entry, Key
from mrad.memory.keys import keys_of, pieces_of
from mrad.memory.living import PROFILE
from mrad.types import ANOMALOUS, NORMAL, Sample
from mrad_service.errors import BodyTooLargeError, InvalidRequestError
from mrad_service.memory import DurableMemory, EntryNotFoundError
from mrad_service.middleware.access import known_query, no_body, require
from mrad_service.routes.lessons import Before, described, effect_of, note_of
from mrad_service.routes.score import runtime_of
from mrad_service.runtime import Runtime
from mrad_service.scheduler.lane import Work
from mrad_service.schemas.memory import (
    Label,
    MemoryAdded,
    MemoryEntry,
    MemoryPage,
    MemoryRemoved,
)

FIELDS = frozenset(
    ("image", "label", "mask", "mask_orientation", "source", "object_name", "defect", "tags")
)
THUMBNAIL = 192
"""Longest side, pixels."""
Text = Annotated[str, Form(max_length=500)]


def product_name(text: str) -> str:
    """Without blanks around it. Raises `ValueError` for one that no table and no request can hold."""
    if any(not character.isprintable() for character in text):
        raise ValueError("a product's name holds printable characters only, no line breaks or tabs")
    return text.strip()


Product = Annotated[str, Form(max_length=200), AfterValidator(product_name)]
BankName = Annotated[str | None, Query(description="the bank; the active one by default")]


def memory_router() -> APIRouter:
    """The routes, each with its scope."""
    router = APIRouter(
        prefix="/v1/memory", tags=["memory"], dependencies=[Depends(known_query), Depends(no_body)]
    )
    read, write, admin = ([Depends(require(scope))] for scope in ("score", "write", "admin"))
    entry, change = "/entries/{entry_id}", [*write, Depends(turn_to_change)]
    router.post("/entries", dependencies=[*change, Depends(known_fields)], status_code=201)(
        add_entry
    )
    router.get("/entries", dependencies=read)(list_entries)
    router.get(entry, dependencies=read)(get_entry)
    router.get(f"{entry}/thumbnail", dependencies=read, response_class=Response)(get_thumbnail)
    router.delete(entry, dependencies=change)(remove_entry)
    copy = [*admin, Depends(turn_to_copy)]
    router.get("/export", dependencies=copy, response_class=FileResponse)(export_memory)
    return router


def turn_to_change(request: Request) -> Iterator[None]:
    """Dependency of what changes the memory: one after the other, within their time and room."""
    runtime = runtime_of(request)
    deadline = runtime.deadline(request)
    with runtime.lessons.turn(deadline), Work(deadline, runtime.batcher.pixels) as work:
        request.state.work = work
        yield


def turn_to_copy(request: Request) -> Iterator[None]:
    """Dependency of what takes a copy."""
    runtime = runtime_of(request)
    with runtime.copies.turn(runtime.deadline(request)):
        yield


async def known_fields(request: Request) -> None:
    """Refuse a form with a field that nothing reads, or twice: it would be lost in silence."""
    given = [name for name, _ in (await request.form()).multi_items()]
    if twice := sorted({name for name in given if given.count(name) > 1} - {"tags"}):
        raise InvalidRequestError(f"{', '.join(twice)}: more than one; an entry is one image")
    unknown = sorted(set(given) - FIELDS)
    if unknown:
        raise InvalidRequestError(
            f"nothing reads {', '.join(unknown)}; an entry has {', '.join(sorted(FIELDS))}"
        )


def add_entry(
    request: Request,
    response: Response,
    image: Annotated[UploadFile, File()],
    label: Annotated[Label, Form()],
    mask: Annotated[
        UploadFile | None, File(description="which pixels are defective, at the image's size")
    ] = None,
    mask_orientation: Annotated[
        Orientation,
        Form(
            description="how the mask lies where the image has an orientation tag: as people see it "
            "(upright), as its pixels are stored, or found out by its size"
        ),
    ] = "auto",
    source: Text = "",
    object_name: Product = "",
    defect: Text = "",
    tags: Annotated[list[str] | None, Form()] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    bank: BankName = None,
) -> MemoryAdded:
    """Add a labelled image. 201 once it is on disk and scored with; 200 for a repeat.

    A defect without a mask teaches the image level only: nobody knows which patches are defective.
    Send an `Idempotency-Key` and retry freely; with another image, mask or label it is refused.
    """
    runtime = runtime_of(request)
    memory, detector = runtime.memory(bank), runtime.model(bank).detectors[0]
    pixels = _read(image, runtime)
    painted = _read(mask, runtime) if mask is not None else None
    work: Work = request.state.work
    work.reserve(pixels, painted)
    decoded = detector.decode(pixels, replace(detector.reading, name=image.filename or ""))
    anomalous = label == "anomalous"
    products = memory.bank.objects
    if not object_name and len(products) == 1 and all(e.object_name for e in memory.bank.entries):
        object_name = products[0]
    unnamed = len(products) > 1 and not object_name
    region, warnings = _region(painted, decoded, anomalous, mask_orientation, detector)
    if object_name and products and object_name not in products:
        held = ", ".join(repr(name) for name in products[:5])
        warnings = (
            *warnings,
            f"new_product: the memory has no product {object_name!r} yet, but {held}"
            f"{' and others' if len(products) > 5 else ''}: this image is the first of a new one. If the "
            "name is misspelt, remove the entry",
        )
    sample = Sample(
        decoded.image, anomalous, None, source or image.filename or "", object_name, defect,
        tuple(tags or ()),
    )  # fmt: skip
    entry = Entry.of(sample, decoded.size, getattr(request.state, "key_name", ""))
    before = None if anomalous else _before(runtime, bank, object_name, decoded)
    keys = _keys(runtime, work, detector, decoded, entry, region, before)
    if before is not None and (against := before.warning()):
        warnings = (*warnings, against)
    thumbnail, content = thumbnail_of(decoded.image), digest_of(pixels, painted)
    work.check()
    standing = memory.add(entry, keys, thumbnail, idempotency_key, content)
    repeated = standing.entry_id != entry.entry_id
    if not repeated:
        _widen(memory, decoded)
    request.state.audit = {"entry_id": standing.entry_id, "label": label, "repeated": repeated}
    response.status_code = 200 if repeated else 201
    return MemoryAdded(
        entry=described(request, memory, standing), repeated=repeated, entries=len(memory),
        note=note_of(detector, entry, keys, region, unnamed),
        warnings=list(warnings),
        effect=None if repeated else effect_of(request, memory, runtime.banks.renewal(bank)),
    )  # fmt: skip


def _before(runtime: Runtime, bank: str | None, product: str, decoded: Decoded) -> Before | None:
    """What judges such pictures now; None where it has no threshold."""
    model = runtime.model(bank)
    keeps = model.bank.keeps_local
    if product in model.bank.objects:  # a new product's pictures are judged by the whole memory
        try:
            model = runtime.objects.get(model, product)
        except MRADError:  # its requests are refused: there is no verdict to contradict
            return None
    return None if model.calibration is None else Before(model, decoded.places, keeps)


def _widen(memory: DurableMemory, decoded: Decoded) -> None:
    """A picture like this one is nothing unusual from now on."""
    if decoded.levels is None:
        return
    known = memory.bank.profile
    wider = known.widened(decoded.levels, decoded.size).as_json()
    if wider != known.as_json():
        memory.put(PROFILE, json.dumps(wider).encode())


def _region(
    painted: bytes | None,
    decoded: Decoded,
    anomalous: bool,
    orientation: Orientation,
    detector: Detector,
) -> tuple[Mask | None, tuple[str, ...]]:
    """The mask, and what there is to say of image and mask. Raises `MaskError`."""
    if painted is None:
        return None, decoded.warnings
    region = read_mask(
        painted, decoded.size, image_orientation=decoded.orientation, orientation=orientation
    )
    warnings = (*decoded.warnings, *region.warnings)
    if not anomalous:
        if region.anomalous.any():
            raise MaskError(
                "the label is normal, but the mask marks defective pixels: send it as anomalous, or "
                "leave the mask out"
            )
        return None, decoded.warnings
    if detector.reading.strict:
        refuse_doubtful(region.warnings, "the mask")
    return region, warnings


def _keys(
    runtime: Runtime,
    work: Work,
    detector: Detector,
    decoded: Decoded,
    entry: Entry,
    mask: Mask | None,
    before: Before | None = None,
) -> list[Key]:
    """The keys of all tiles, one tile at a time; `before`: judges each as it was until now.

    A lesson adds what an image of the build added, so that no image counts for more than another.
    """
    keys: list[Key] = []
    places = decoded.places
    if detector.layout.align is not None and decoded.move is None:
        raise LayoutError(f"nothing is learned: {'; '.join(decoded.warnings)}")
    if mask is not None and decoded.move is not None:
        mask = decoded.move.upright_mask(mask)
    for piece, tile in zip(pieces_of(places, entry.label == ANOMALOUS, mask), places.tiles):
        one = decoded
        if not places.whole:
            one = replace(decoded, pixels=prepare_tile(detector.encoder, decoded.looked_at, tile))
        work.check()
        features = runtime.encode(detector, one)
        if before is not None:
            before.draw(tile, features)
        keys += keys_of(detector.encoder, features, 0, entry, piece, detector.bank.patch_keys)
    return keys


def list_entries(
    request: Request,
    cursor: Annotated[str | None, Query(max_length=64, pattern=r"^-?\d+$")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    label: Label | None = None,
    bank: BankName = None,
) -> MemoryPage:
    """Entries, newest first. Pages neither skip nor repeat while others add and remove."""
    memory = runtime_of(request).memory(bank)
    wanted = None if label is None else ANOMALOUS if label == "anomalous" else NORMAL
    page = memory.list(cursor=cursor, limit=limit, label=wanted)
    entries = [described(request, memory, entry) for entry in page.entries]
    return MemoryPage(entries=entries, next_cursor=page.next_cursor, total=len(memory))


def get_entry(request: Request, entry_id: str, bank: BankName = None) -> MemoryEntry:
    """One entry."""
    memory = runtime_of(request).memory(bank)
    return described(request, memory, memory.get(entry_id))


def get_thumbnail(request: Request, entry_id: str, bank: BankName = None) -> Response:
    """The entry's thumbnail, JPEG."""
    memory = runtime_of(request).memory(bank)
    memory.get(entry_id)
    jpeg = memory.thumbnail(entry_id)
    if jpeg is None:
        raise EntryNotFoundError(f"entry {entry_id} has no thumbnail")
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


def remove_entry(request: Request, entry_id: str, bank: BankName = None) -> MemoryRemoved:
    """Forget an entry. 200 once that is on disk and scored with."""
    runtime = runtime_of(request)
    memory = runtime.memory(bank)
    memory.remove(entry_id)
    effect = effect_of(request, memory, runtime.banks.renewal(bank))
    return MemoryRemoved(entry_id=entry_id, entries=len(memory), effect=effect)


def export_memory(request: Request, bank: BankName = None) -> FileResponse:
    """The memory as it is now: a tar of an ordinary bank folder."""
    memory = runtime_of(request).memory(bank)
    name = memory.folder.bank.name
    folder = Path(tempfile.mkdtemp(dir=memory.folder.temporary))
    try:
        memory.export(folder / name)
        with tarfile.open(folder / "bank.tar", "w") as archive:
            archive.add(folder / name, name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(
        folder / "bank.tar",
        media_type="application/x-tar",
        filename=f"{name}.tar",
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


def _read(file: UploadFile, runtime: Runtime) -> bytes:
    most = runtime.settings.max_file_bytes
    if (file.size or 0) > most:
        raise BodyTooLargeError(f"the file has more than {most} bytes")
    return file.file.read()


def digest_of(image: bytes, mask: bytes | None) -> str:
    """SHA-256 of an upload: its image and its mask."""
    parts = (hashlib.sha256(part).digest() for part in (image, mask) if part is not None)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def thumbnail_of(image: Image.Image) -> bytes:
    """A small JPEG of an upright image."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
