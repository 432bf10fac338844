"""What `/v1/score` and `/v1/bank` take and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mrad_service.problems import Problem
from mrad_service.telemetry.drift import DriftReport

FIELDS = (
    "score",
    "calibrated_score",
    "class_score",
    "verdict",
    "threshold",
    "probability",
    "p_value",
    "map",
    "regions",
    "evidence",
    "peak_box",
    "recognised",
    "parts",
    "tiles",
    "warnings",
)
MAX_EVIDENCE = 50
MAX_PARTS = 100

MapFormat = Literal["none", "png16", "npy", "overlay", "rle", "polygons"]


class ShapeBody(BaseModel):
    """A named part of an image: a box, or polygons less holes."""

    model_config = ConfigDict(extra="forbid")

    box: tuple[float, float, float, float] | None = Field(
        None, description="[x_min, y_min, x_max, y_max)"
    )
    polygons: list[list[tuple[float, float]]] | None = Field(None, description="points x, y")
    holes: list[list[tuple[float, float]]] = Field(default_factory=list)


class AreaBody(ShapeBody):
    """A region of an image: a box, or polygons less holes."""

    size: tuple[int, int] = Field(description="width, height of the image it was drawn on, pixels")


class PartsBody(BaseModel):
    """Named parts of an image, as in `parts.json`."""

    model_config = ConfigDict(extra="forbid")

    size: tuple[int, int] = Field(
        description="width, height of the image they were drawn on, pixels"
    )
    parts: dict[str, ShapeBody] = Field(min_length=1, max_length=MAX_PARTS)
    align: bool = Field(
        False,
        description="whether images are aligned with the bank's reference picture before parts are cut out",
    )


class ScoreOptions(BaseModel):
    """What may be said about a scoring request: form fields, or members of the JSON body."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        None,
        description="Raw score, 0 to 1, at or above which an image is anomalous; the bank's by default.",
    )
    target_fpr: float | None = Field(
        None, ge=0, le=1, description="Instead: share of good images that may be flagged."
    )
    pixel_threshold: float | None = Field(
        None, description="Map value at or above which a pixel belongs to a region."
    )
    map: MapFormat = Field("none", description="How maps come back, at the size of the input.")
    evidence: int = Field(
        0, ge=0, le=MAX_EVIDENCE, description="Nearest memory keys to name, for each level."
    )
    fields: list[str] | None = Field(
        None,
        max_length=4 * len(FIELDS),
        description=f"Only these parts of a result: {', '.join(FIELDS)}. In a form: comma-separated.",
    )
    bank: str | None = Field(None, description="A loaded bank; the active one by default.")
    object: str | None = Field(
        None,
        max_length=200,
        description="Product: judged by what the memory holds of it alone; by all of it by default.",
    )
    roi: AreaBody | None = Field(
        None,
        description="Region of interest: outside nothing is judged. Instead of the bank's own region "
        "or parts. In a form: JSON.",
    )
    parts: PartsBody | None = Field(
        None,
        description="Named parts, each with a score and a verdict of its own; the image's score is that "
        "of the worst. Instead of the bank's own parts. In a form: JSON.",
    )
    tile_closely: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Where the bank cuts images: look at all of one coarsely, then closely at this share "
        "of its tiles, the most anomalous ones; as the bank says by default. Nothing is judged in the "
        "others, and `warnings` says how many they are.",
    )
    full_map: bool = Field(
        False,
        description="Maps of images above 32 megapixels at full size, instead of scaled down to that.",
    )
    bit_depth: int | None = Field(
        None,
        ge=1,
        le=32,
        description="Bits that count in images that do not state their depth (12 of a 16-bit PNG).",
    )
    strict_input: bool | None = Field(
        None, description="Refuse images with warnings; as the server is set by default."
    )

    @field_validator(
        "threshold", "target_fpr", "pixel_threshold", "evidence", "tile_closely", "bit_depth",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _number(cls, value: object) -> object:
        """`true` would be 1 in silence."""
        if isinstance(value, bool):
            raise ValueError("a number is wanted, not true or false")
        return value


class EncodedImage(BaseModel):
    """An image file inside JSON."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="the file, base64")
    name: str = ""


class ScoreBody(ScoreOptions):
    """The JSON body."""

    images: list[EncodedImage | str] = Field(
        min_length=1, fail_fast=True, description="files, base64"
    )


class Region(BaseModel):
    """A connected part of the map at or above the pixel threshold; pixels of the input image."""

    box: tuple[int, int, int, int] = Field(description="[x_min, y_min, x_max, y_max)")
    area: int
    peak: float
    peak_at: tuple[int, int]
    polygon: list[tuple[float, float]]


class Evidence(BaseModel):
    """A remembered region that the image resembles."""

    level: Literal["image", "patch"]
    similarity: float
    label: Literal["normal", "anomalous"]
    entry_id: str
    source: str
    region: str
    defect: str
    query_box: tuple[int, int, int, int] | None = Field(
        None, description="what of the submitted image asked: the most anomalous patch; its pixels"
    )
    tile: tuple[int, int, int, int] | None = Field(
        None,
        description="where in the source image the remembered tile lies; null: it is all of it",
    )
    box: tuple[int, int, int, int] | None = Field(
        None,
        description="where in the source image the remembered patch lies, pixels; null where the key is "
        "no single patch",
    )
    size: tuple[int, int] | None = Field(
        None, description="width, height of the source image, which `tile` and `box` refer to"
    )
    thumbnail: str | None = Field(None, description="JPEG, base64")


class Recognised(BaseModel):
    """A picture that the memory was taught, shown again: its label decides the verdict."""

    entry_id: str
    label: Literal["normal", "anomalous"]
    source: str
    similarity: float = Field(description="mean cosine of patches at the same place")
    contradicts: list[str] = Field(
        description="entries that show the same picture with the other label, and were taught before"
    )


class Map(BaseModel):
    """A map: base64 of a file (png16, npy, overlay), or what stands above the pixel threshold."""

    format: MapFormat
    data: Any
    size: tuple[int, int] = Field(
        description="width, height; less than the image's only above 32 megapixels"
    )


class Part(BaseModel):
    """A named part of the image, of the request's or the bank's, with a judgement of its own."""

    name: str
    box: tuple[int, int, int, int]
    score: float
    class_score: float
    calibrated_score: float | None = None
    verdict: Literal["normal", "anomalous"] | None = None
    probability: float | None = None


class Tile(BaseModel):
    """A tile of an image that was cut."""

    box: tuple[int, int, int, int]
    class_score: float
    peak: float = Field(description="its largest patch probability")
    closely: bool = Field(
        True,
        description="false: it was looked at coarsely only, its numbers are 0 (`tile_closely`)",
    )


class Result(BaseModel):
    """One image's judgement, or its problem."""

    index: int
    name: str
    status: Literal["ok", "error"]
    score: float | None = Field(None, description="raw, in [0, 1]: its order counts")
    calibrated_score: float | None = Field(
        None,
        description="0 to 100: the threshold in force is 50, the median good part about 10; null "
        "without a calibration",
    )
    class_score: float | None = None
    verdict: Literal["normal", "anomalous"] | None = None
    threshold: float | None = None
    probability: float | None = Field(
        None,
        description="of a defect, where as many images are defective as in the calibration: it may differ "
        "from the verdict; null where the calibration knew good images alone",
    )
    p_value: float | None = Field(
        None,
        description="share of good parts that look as unusual, or more; no probability of a defect",
    )
    map: Map | None = None
    regions: list[Region] | None = None
    evidence: list[Evidence] | None = None
    peak_box: tuple[int, int, int, int] | None = Field(
        None, description="the patch that is most anomalous; pixels of the input image"
    )
    recognised: Recognised | None = Field(
        None,
        description="the taught picture that this one is: score, verdict and map are on the side of its "
        "label; null where it is none",
    )
    parts: list[Part] | None = Field(None, description="where the request or the bank names parts")
    tiles: list[Tile] | None = Field(
        None, description="of an image that was cut, where `fields` asks for them"
    )
    warnings: list[str] | None = Field(
        None,
        description="`code: text` for what was assumed, is odd about the image, or cannot be promised: "
        "its verdict may be worth nothing. Given whatever `fields` says.",
    )
    problem: Problem | None = None


class Scores(BaseModel):
    """A result for each image, in the order submitted."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "bank": "visa",
                    "results": [
                        {
                            "index": 0,
                            "name": "board.png",
                            "status": "ok",
                            "score": 0.5132,
                            "calibrated_score": 88.4,
                            "class_score": 0.5107,
                            "verdict": "anomalous",
                            "threshold": 0.5114,
                            "probability": 0.93,
                            "p_value": 0.012,
                            "regions": [
                                {
                                    "box": [10, 20, 42, 61],
                                    "area": 890,
                                    "peak": 0.5391,
                                    "peak_at": [30, 40],
                                    "polygon": [[10.5, 20], [42, 20.5], [41.5, 61]],
                                }
                            ],
                        },
                        {
                            "index": 1,
                            "name": "notes.txt",
                            "status": "error",
                            "problem": {
                                "type": "urn:mrad:problem:invalid_image",
                                "title": "Unprocessable Content",
                                "status": 422,
                                "code": "invalid_image",
                                "detail": "the image is not an image in a known format",
                            },
                        },
                    ],
                }
            ]
        }
    )

    results: list[Result]
    bank: str


class Keys(BaseModel):
    """Keys of one level."""

    keys: int
    normal: int
    anomalous: int


class Bank(BaseModel):
    """A bank in memory."""

    name: str
    active: bool
    head: str
    digest: str | None = Field(description="SHA-256 of bank.json; null once it has learned")
    encoder: dict[str, Any]
    entries: int
    objects: list[str] = Field(description="products, by name; what a request may name as `object`")
    image: Keys
    patch: Keys
    writable: bool
    threshold: float | None
    pixel_threshold: float | None
    calibration: str = Field(description="how scores were calibrated, or why there is none")
    weakness: str = Field(
        "",
        description="why verdicts deserve no trust, with the interval; empty where nothing says so",
    )
    map_range: tuple[float, float] | None = Field(
        None, description="map values of the coldest and the hottest colour, for every image alike"
    )
    score_range: Annotated[
        tuple[float, float] | None, Field(description="lowest and highest calibrated score")
    ] = None
    drift: DriftReport | None = Field(
        None, description="what lately came in against the calibration; null without one"
    )


class CalibrationJob(BaseModel):
    """A calibration on the memory's own images, on its way or done."""

    bank: str
    object: str | None = Field(description="product that it is of; null: all")
    state: Literal["none", "waiting", "running", "done", "failed"]
    done: int = Field(description="images judged so far")
    images: int = Field(description="in all; 0 before that is known")
    why: str = Field(description="why it failed; nothing was changed then")
    threshold: float | None
    pixel_threshold: float | None


class BankList(BaseModel):
    """Every bank that can be activated."""

    active: str | None
    loaded: list[str]
    known: list[str]
