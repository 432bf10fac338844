"""The whole: images -> predictions. The one place that wires encoder, memory, head and maps."""

from __future__ import annotations

import copy
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import Tensor

from mrad.encoder.device import side_by_side
from mrad.encoder.encoder import Encoder, Features
from mrad.encoder.stream import encode_tiles
from mrad.errors import MRADError
from mrad.evidence import Finder
from mrad.heads import Head, load_head
from mrad.heads.choose import AUTO, default_head, problem
from mrad.heads.levels import levels_by_place
from mrad.images.guard import refuse_doubtful
from mrad.images.layout import Layout, Places, Tile, cell_box
from mrad.images.options import ReadOptions
from mrad.images.reader import named
from mrad.maps import anomaly_map, fuse, resize_map, top_mean
from mrad.memory.bank import MemoryBank
from mrad.opening import Decoded, TiledImage, aligned, open_picture
from mrad.retrieval.base import Retriever
from mrad.retrieval.taught import TaughtPictures
from mrad.tiled import FULL, Canvas, Rules
from mrad.types import WHOLE, Evidence, ImageInput, Level, Place, Prediction

logger = logging.getLogger(__name__)


class Detector:
    """Judges images by what they retrieve.

    `predict` does everything, cutting images as the bank's layout says. `decode`, `encode` and `finish`
    are its stages for a server's threads; for tiles `decode`, `canvas`, `encode_tiles`, `draw`, `conclude`.
    """

    def __init__(
        self,
        encoder: Encoder,
        bank: MemoryBank,
        head: str | Head = AUTO,
        *,
        checkpoint: str | Path | None = None,
        fusion: float = 0.7,
        sigma: float = 4.0,
        top: float = 0.01,
        retrieval: str = "exact",
        reading: ReadOptions | None = None,
    ) -> None:
        """
        Args:
            head: `nn`, `combined`, `tf`, `ft`, `clip`, a plugin's name, or a built head; `auto`: what
                suits the memory (`mrad.heads.choose.default_head`).
            checkpoint: the head's safetensors, where it has one.
            fusion: weight of the image probability in the score; the paper uses 0.5 to 0.8.
            sigma: of the map's Gaussian, in pixels of the encoder's input.
            top: share of the map's pixels whose mean is the top score.
            retrieval: how the memory is asked (`mrad.retrieval.choose.make_retriever`).
            reading: how pictures are read; what they leave open is as in the memory's own.

        Raises what `MemoryBank.check` and `load_head` raise.
        """
        for name, value in (("fusion", fusion), ("top", top)):
            if not 0 <= value <= 1:
                raise MRADError(f"{name} must lie in [0, 1], not {value}")
        if not sigma >= 0:
            raise MRADError(f"sigma must not be negative, but is {sigma}")
        encoder.owner.check()  # a head may measure the whole memory now
        bank.check(encoder)
        if bank.precision not in (None, encoder.precision):
            text = "memory keys are in %s, queries in %s: scores and thresholds are a little off"
            logger.warning(text, bank.precision, encoder.precision)
        self.encoder, self.bank = encoder, bank
        self.fusion, self.sigma, self.top, self.retrieval = fusion, sigma, top, retrieval
        self._auto = head == AUTO and checkpoint is None
        if head == AUTO:
            head = default_head(bank, checkpoint).head
        self.head: Head = (
            load_head(head, encoder, checkpoint=checkpoint) if isinstance(head, str) else head
        )
        self.head.attach(bank, retrieval)
        self.reading = reading or ReadOptions()
        _ = bank.layout  # what cannot be read shows now
        self._taught = TaughtPictures.of(bank, encoder)
        self._layout: Layout | None = None
        self._finder = Finder(bank, self.head, retrieval, encoder)
        self._usual: dict[Place | None, float] | None = None

    def with_bank(self, bank: MemoryBank) -> Detector:
        """The same encoder and head on another memory; this detector goes on as it is."""
        self.encoder.owner.check()
        bank.check(self.encoder)
        other = copy.copy(self)
        other.bank, other.head, other._usual = bank, copy.copy(self.head), None
        other.head.attach(bank, self.retrieval)
        other._finder = Finder(bank, other.head, self.retrieval, self.encoder)
        other._taught = TaughtPictures.of(bank, self.encoder)
        return other

    def with_facts_of(self, bank: MemoryBank) -> Detector:
        """The same detector with a bank that holds the same keys, and other thresholds."""
        other = copy.copy(self)
        other.bank = bank
        return other

    def of_object(self, name: str) -> Detector:
        """The same on what the memory holds of one product: its good parts, its defects, their scale.

        A head chosen by `auto` that cannot serve this part gives way to one that can. Raises
        `UnknownObjectError`, and what `with_bank` raises.
        """
        bank = self.bank.of_object(name)
        if not self._auto or problem(bank, self.head.name) is None:
            return self.with_bank(bank)
        other = copy.copy(self)
        other.head = load_head(default_head(bank).head, self.encoder)
        return other.with_bank(bank)

    @property
    def layout(self) -> Layout:
        """How every image is looked at: as the bank says, or `with_layout`."""
        return self.bank.layout if self._layout is None else self._layout

    def with_layout(self, layout: Layout) -> Detector:
        """The same detector with another layout for its queries, as with a region of interest."""
        other = copy.copy(self)
        other._layout = layout
        return other

    def predict(
        self,
        images: Sequence[ImageInput],
        *,
        batch_size: int = 8,
        maps: bool = True,
        evidence: int = 0,
        map_pixels: int | None = FULL,
        layout: Layout | None = None,
    ) -> list[Prediction]:
        """Judge images of any size; one prediction each, in order.

        Args:
            images: files, bytes, PIL images or arrays.
            batch_size: images, or tiles, encoded at once.
            maps: whether to make anomaly maps.
            evidence: how many nearest keys to give for each level.
            map_pixels: pixels above which a map is scaled down to so many; None: never.
            layout: instead of the bank's, as with a region of interest of this request alone.

        Raises `ImageError` where an image cannot be read, or a region does not fit it.
        """
        found = self.predict_stream(
            images, batch_size=batch_size, maps=maps, evidence=evidence, map_pixels=map_pixels,
            layout=layout,
        )  # fmt: skip
        return list(found)

    def predict_stream(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = 8,
        maps: bool = True,
        evidence: int = 0,
        map_pixels: int | None = FULL,
        layout: Layout | None = None,
    ) -> Iterator[Prediction]:
        """As `predict`, one batch in memory at a time; an image that is cut, one at a time."""
        detector = self if layout is None else self.with_layout(layout)
        decoded = (detector.decode(image) for image in images)
        yield from detector.judge(
            decoded, batch_size=batch_size, maps=maps, evidence=evidence, map_pixels=map_pixels
        )

    def decode(
        self,
        image: ImageInput,
        options: ReadOptions | None = None,
        *,
        layout: Layout | None = None,
    ) -> Decoded:
        """Stage 1, any thread: decode; preprocess what is looked at whole.

        `options`: for this image alone, instead of the detector's. Raises `ImageError`, which is `DoubtfulImageError`
        for an image with warnings where `options.strict`, and `ForkedProcessError`.
        """
        layout = self.layout if layout is None else layout
        options = self.bank.profile.options(options or self.reading)
        if layout.tiling:
            options = replace(options, max_pixels=options.max_tiled_pixels)
        picture, shown, places = open_picture(image, options, layout)
        move, upright, doubts = aligned(picture.image, layout)
        side, own = self.encoder.image_size, self.bank.layout
        warnings = self.bank.profile.check(picture, side, own, places) + doubts
        if options.strict:
            refuse_doubtful(warnings, named(options, image).name)
        pixels = self.encoder.prepare(upright or picture.image) if places.whole else None
        known = warnings, picture.orientation, picture.levels
        return Decoded(pixels, shown, places, *known, upright, move)

    def judge(
        self,
        decoded: Iterable[Decoded],
        *,
        batch_size: int = 8,
        maps: bool = True,
        evidence: int = 0,
        exclude: Sequence[int] | None = None,
        map_pixels: int | None = FULL,
    ) -> Iterator[Prediction]:
        """Decoded images, cut or not, to predictions in order; tiles of several share batches.

        `exclude`: for each image the entry row that it must not retrieve, -1 for none.
        """
        if batch_size < 1:
            raise MRADError(f"batch_size must be at least 1, not {batch_size}")
        own = iter(exclude) if exclude is not None else repeat(-1)
        if self.layout.plain:
            wholes = partial(self._wholes, maps=maps, evidence=evidence)
            yield from side_by_side(self.encoder.device, wholes, zip(decoded, own), batch_size)
            return
        sheets = (self._sheet(item, next(own), batch_size) for item in decoded)
        with closing(self._drawn(sheets, batch_size)) as drawn:
            for sheet, tile in chain.from_iterable(drawn):
                if tile is sheet.places.tiles[-1]:  # tiles come in order
                    judged = self.conclude(sheet.canvas, maps, evidence, sheet.own, map_pixels)
                    yield sheet.decoded.finished(judged)

    def _wholes(
        self, batch: Sequence[tuple[Decoded, int]], maps: bool, evidence: int
    ) -> list[Prediction]:
        """Predictions of images that are looked at whole, each with the entry that it must not retrieve."""
        items, own = zip(*batch)
        exclude = None if max(own) < 0 else torch.tensor(own)
        sizes, features = [item.size for item in items], self.encode(items)
        found = self.finish(features, sizes, maps=maps, evidence=evidence, exclude=exclude)
        return [item.finished(prediction) for item, prediction in zip(items, found)]

    def _sheet(self, item: Decoded, own: int, batch_size: int) -> TiledImage:
        """Where an image's tiles are gathered; a coarse look, where there is to be one, is over."""
        look = TiledImage(item, self.first_look(item.places), own)
        if look.canvas.finer is not None:
            for _ in self._drawn([look], batch_size):
                pass
        return replace(look, canvas=look.canvas.closer() or look.canvas)

    def _drawn(
        self, sheets: Iterable[TiledImage], batch_size: int
    ) -> Generator[list[tuple[TiledImage, Tile]], None, None]:
        """Batches of tiles, each judged in a second thread while the next is encoded."""
        cores = partial(torch.set_num_threads, torch.get_num_threads())
        encoded = encode_tiles(self.encoder, sheets, batch_size)
        with ThreadPoolExecutor(1, "draw", cores) as pool, closing(encoded):
            before: list[tuple[TiledImage, Tile]] = []
            drawn: Future[None] | None = None
            for batch, features in encoded:
                own = [sheet.own for sheet, _ in batch]
                tiles = [(sheet.canvas, tile) for sheet, tile in batch]
                given = None if max(own) < 0 else own
                last, drawn = drawn, pool.submit(self.draw, tiles, features, given)
                if last is not None:
                    last.result()
                    yield before
                before = batch
            if drawn is not None:
                drawn.result()
                yield before

    def canvas(self, places: Places, finer: Places | None = None) -> Canvas:
        """Where the tiles of one image are gathered; `finer`: as for `Canvas`."""
        side, grid = self.encoder.image_size, self.encoder.grid
        return Canvas(places, Rules(grid, side, self.sigma, self.top, self.fusion), finer)

    def first_look(self, places: Places) -> Canvas:
        """The same for what is looked at first: all of it, or larger tiles (`Canvas.closer`)."""
        return self.canvas(places) if places.coarse is None else self.canvas(places.coarse, places)

    def encode(self, decoded: Sequence[Decoded]) -> Features:
        """Stage 2, the device's thread: encode one batch of images that are looked at whole."""
        return self.encoder.encode_prepared(
            [item.pixels for item in decoded if item.pixels is not None]
        )

    @torch.inference_mode()
    def draw(
        self,
        batch: Sequence[tuple[Canvas, Tile]],
        features: Features,
        exclude: Sequence[int] | None = None,
    ) -> None:
        """Judge one batch of tiles, each onto the canvas of its image. `exclude`: as in `judge`."""
        self.encoder.owner.check()
        own = None if exclude is None else torch.tensor(exclude, dtype=torch.int64)
        places = tuple(canvas.places.place_of(tile.number) for canvas, tile in batch)
        features = replace(features, places=places)
        output = self.head(features, own)
        patch, image = output.patch.float().cpu(), output.image.tolist()
        image = [self.tile_level(c.places, tile, v) for (c, tile), v in zip(batch, image)]
        queries = features.class_query(), self._finder.patch_query(features)
        shown = self._taught.find(features, exclude)
        for row, (canvas, tile) in enumerate(batch):
            canvas.add(tile, patch[row], image[row], (queries[0][row], queries[1][row]), shown[row])

    def tile_level(self, places: Places, tile: Tile, image: float) -> float:
        """A tile's image probability, less what is usual of good tiles where it lies."""
        if not places.several:
            return image
        if self._usual is None:  # measured at first use
            self._usual = levels_by_place(self.bank, self.head)
        usual = self._usual.get(places.place_of(tile.number), 0.0)
        return min(1.0, max(0.0, image - usual))

    @torch.inference_mode()
    def conclude(
        self,
        canvas: Canvas,
        maps: bool = True,
        evidence: int = 0,
        exclude: int = -1,
        map_pixels: int | None = FULL,
    ) -> Prediction:
        """The prediction of an image whose tiles are all drawn."""
        self.encoder.owner.check()
        parts = canvas.parts()
        worst = max(parts, key=lambda part: part.score)
        found: list[Evidence] = []
        whole, local = canvas.evidence_queries(worst.name)
        if evidence > 0:
            own = torch.tensor([exclude], dtype=torch.int64) if exclude >= 0 else None
            found += self._finder.nearest("image", [whole], evidence, own)[0]
            found += self._finder.nearest("patch", [local], evidence, own)[0]
        return Prediction(
            score=worst.score,
            class_score=worst.class_score,
            top_score=worst.top_score,
            size=canvas.places.size,
            anomaly_map=canvas.map(map_pixels) if maps else None,
            evidence=tuple(found),
            peak_box=local.box,
            parts=tuple(parts) if parts[0].name else (),
            tiles=canvas.tiles() if canvas.places.several else (),
            warnings=canvas.notes(),
            recognised=self._taught.recognised(canvas.taught(), canvas.places.boxes()),
        )

    @torch.inference_mode()
    def finish(
        self,
        features: Features,
        sizes: Sequence[tuple[int, int]],
        *,
        maps: bool = True,
        evidence: int = 0,
        exclude: Tensor | None = None,
    ) -> list[Prediction]:
        """Stage 3: retrieve, score and map one batch.

        `sizes`: width, height of each input. `exclude` int64 [B]: the entry row that an image must
        not retrieve (its own, when the bank's own images are scored), -1 for none. Raises
        `ForkedProcessError`.
        """
        self.encoder.owner.check()
        output = self.head(features, exclude)
        square = anomaly_map(output.patch, self.encoder.image_size, self.sigma)
        tops = top_mean(square, self.top)
        scores = fuse(tops, output.image, self.fusion)
        # One wait for the device instead of three for each image.
        peaks = output.patch.argmax(dim=1)
        numbers = torch.stack([scores, output.image, tops, peaks.float()], dim=1).tolist()
        grid = self.encoder.grid
        found = self._finder.of_images(features, output, sizes, evidence, exclude)
        taught = self._taught.find(features, exclude)
        return [
            Prediction(
                score=score,
                class_score=class_score,
                top_score=top_score,
                size=sizes[i],
                anomaly_map=resize_map(square[i], sizes[i]) if maps else None,
                evidence=found[i],
                peak_box=cell_box(divmod(int(peak), grid), grid, (0, 0, *sizes[i])),
                recognised=self._taught.recognised([taught[i]], {WHOLE: (0, 0, *sizes[i])}),
            )
            for i, (score, class_score, top_score, peak) in enumerate(numbers)
        ]

    def retriever(self, level: Level) -> Retriever:
        """What finds evidence: cosine similarity on the bank's own keys, whatever the head projects."""
        return self._finder.retriever(level)
