"""Everything an operator may set: `MRAD_<NAME>` in the environment, or options of `mrad serve`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mrad.images.options import DEFAULT_MAX_PIXELS, TILED_MAX_PIXELS, ReadOptions

MIB = 1 << 20
PREFIX = "MRAD_"
ELSEWHERE = {"API_KEY", "URL", "BANKS", "GPUS", "IMAGES", "WEIGHTS"}
"""Of the client, and of compose."""
NOT_OURS = ("BENCH_", "TEST_", "PORT_", "SERVICE_")
"""Of benchmarks and tests; what Kubernetes sets beside a service that is called mrad."""


class BankSpec(BaseModel):
    """A bank that may be activated by name, and the head that reads it."""

    path: Path
    head: str = "auto"
    checkpoint: Path | None = None


class Settings(BaseSettings):
    """See the fields. Lists and objects are given as JSON."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    bank: Path | None = Field(None, description="The bank folder that is active at the start.")
    bank_root: Path | None = Field(
        None, description="A folder of banks: each subfolder can be activated by its name."
    )
    bank_specs: dict[str, BankSpec] = Field(
        default_factory=dict,
        description='More banks by name: {"visa-ft": {"path": ..., "head": "ft", '
        '"checkpoint": ...}}.',
    )
    max_loaded: int = Field(
        2, ge=1, description="Banks kept in memory; the least recently active goes first."
    )
    writable: bool = Field(
        True, description="Whether new entries are accepted; false for replicas."
    )

    head: str = Field(
        "auto",
        description="The head that reads `bank` and those of `bank_root`; `auto`: what suits the memory.",
    )
    checkpoint: Path | None = Field(None, description="Its checkpoint, where it has one.")
    retrieval: str = Field("exact", description="How memories are asked: exact, approximate, auto.")
    fusion: float = Field(
        0.7, ge=0, le=1, description="Weight of the image probability, as calibrated."
    )
    pretrained: str | None = Field(
        None, description="Tag or file of the encoder's weights; what the bank says by default."
    )
    device: str = Field(
        "auto", description="A torch device, or several: `cuda:0,cuda:1`. `auto`: a GPU if any."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Of the encoder. `auto`: what each memory was built in."
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one.")
    root_path: str = Field(
        "",
        pattern=r"^(/[^/?#]+)*$",
        description="Prefix that a reverse proxy puts before addresses, stripped or not.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses and networks whose `X-Forwarded-For` and `-Proto` are believed."
    )

    max_connections: int = Field(1000, ge=1, description="Connections at once.")
    max_peer_connections: int = Field(
        200, ge=1, description="Of one address; trusted proxies have no such limit."
    )
    max_header_bytes: int = Field(32 << 10, ge=1 << 10, description="Headers of one request.")
    header_seconds: float = Field(
        10.0, gt=0, description="Longest time for headers to arrive, the first byte included."
    )
    keep_alive_seconds: float = Field(
        30.0, gt=0, description="An idle connection is closed after so long."
    )
    stall_seconds: float = Field(
        20.0, gt=0, description="A client that takes less than 16 KiB of its answer in it is cut."
    )
    answer_seconds: float = Field(300.0, gt=0, description="Longest time for an answer to be read.")

    max_batch: int = Field(8, ge=1, description="Most images in one device batch.")
    batch_wait: float = Field(
        0.02, ge=0, description="Longest wait, seconds, of an idle device for a fuller batch."
    )
    decode_threads: int = Field(2, ge=1, description="Threads before the device.")
    finish_threads: int = Field(2, ge=1, description="Threads after the device.")
    queue_images: int = Field(
        256, ge=1, description="Images waiting or being scored above which requests get 429."
    )
    queue_seconds: float = Field(
        10.0, gt=0, description="Expected wait, from the measured rate, above which 429 is said."
    )
    request_seconds: float = Field(
        60.0,
        gt=0,
        description="Longest time for one request; `X-Request-Timeout` may ask for less.",
    )
    upload_seconds: float = Field(60.0, gt=0, description="Longest time for a body to arrive.")
    drain_seconds: float = Field(
        30.0, gt=0, description="After SIGTERM: longest time for requests in flight."
    )
    notice_seconds: float = Field(
        0.0, ge=0, description="After SIGTERM: time of serving on with readiness off."
    )

    max_lessons: int = Field(
        8, ge=0, description="New entries that may wait, above which 429 is said."
    )
    max_images: int = Field(256, ge=1, description="Images in one request.")
    max_file_bytes: int = Field(32 * MIB, ge=1, description="Bytes of one image file.")
    max_body_bytes: int = Field(256 * MIB, ge=1, description="Bytes of one request.")
    max_inflight_bytes: int = Field(
        1024 * MIB, ge=1, description="Bytes of all requests that are in, and of their answers."
    )
    max_decoded_bytes: int = Field(
        2048 * MIB,
        ge=64 * MIB,
        description="Of all images while they are decoded, mapped or drawn on; one larger waits to be alone.",
    )
    max_response_bytes: int = Field(512 * MIB, ge=1, description="Bytes of maps in one answer.")
    max_pixels: int = Field(DEFAULT_MAX_PIXELS, ge=1, description="Pixels of one image.")
    max_tiled_pixels: int = Field(
        TILED_MAX_PIXELS, ge=1, description="Pixels of one image that the bank cuts into tiles."
    )
    bit_depth: int | None = Field(
        None,
        ge=1,
        le=32,
        description="Bits that count in images that do not state their depth; "
        "as in the memory's own by default.",
    )
    strict_input: bool = Field(
        False, description="Refuse images with warnings instead of scoring them."
    )
    allow_truncated: bool = Field(
        False, description="Take files that end early, with a warning, instead of refusing them."
    )

    auth: Literal["keys", "off"] = Field(
        "keys", description="`off` serves everyone, and then only on a loopback address."
    )
    api_keys_file: Path | None = Field(
        None, description="Hashed API keys with their scopes; made by `mrad keys add`."
    )
    cors_origins: tuple[str, ...] = Field((), description="Origins whose pages may call; none.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names answered to; with auth off, loopback names by default."
    )

    metrics: bool = Field(True, description="Whether /metrics answers (without a key).")
    log_format: Literal["json", "console"] = Field("json", description="`console`: for people.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning, error."
    )
    audit_file: Path | None = Field(
        None, description="Where writes are logged, as JSON lines; the log itself by default."
    )
    audit_closed: bool = Field(
        True, description="Whether writes are refused while the audit file cannot be written."
    )
    drift_window: int = Field(1000, ge=50, description="Images that the drift signal looks back.")
    drift_every: int = Field(
        4, ge=1, description="Of so many images, one is asked for its nearest key for drift."
    )
    tracing: bool = Field(False, description="OpenTelemetry (the extra `otel`); OTEL_* variables.")

    @property
    def reading(self) -> ReadOptions:
        """How images are read, where a request does not say otherwise."""
        return ReadOptions(
            max_pixels=self.max_pixels,
            max_tiled_pixels=self.max_tiled_pixels,
            bit_depth=self.bit_depth,
            allow_truncated=self.allow_truncated,
            strict=self.strict_input,
        )

    @field_validator("port", mode="before")
    @classmethod
    def _not_of_kubernetes(cls, value: object) -> object:
        """Beside a service that is called mrad Kubernetes sets MRAD_PORT to tcp://10.0.0.1:8000."""
        linked = isinstance(value, str) and value.startswith("tcp://")
        return cls.model_fields["port"].default if linked else value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            ip_network(name, strict=False)
        return value

    @model_validator(mode="after")
    def _loopback_without_keys(self) -> Self:
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(
                f"auth is off, so the server binds to loopback only, not to {self.host}; "
                "make keys with `mrad keys add` and set MRAD_API_KEYS_FILE"
            )
        if self.auth == "keys" and self.api_keys_file is None:
            raise ValueError(
                "no API keys: make some with `mrad keys add` and set MRAD_API_KEYS_FILE, or, on "
                "this machine alone, serve everyone with --no-auth (MRAD_AUTH=off)"
            )
        return self

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.queue_images < self.max_batch:
            raise ValueError("queue_images must be at least max_batch")
        return self


def mistyped(names: Iterable[str]) -> dict[str, str | None]:
    """Of environment variables those that look like settings and are none: name -> what may be meant."""
    known = [name.upper() for name in Settings.model_fields]
    found: dict[str, str | None] = {}
    for name in names:
        own = name.removeprefix(PREFIX)
        if own == name or own in known or own in ELSEWHERE or own.startswith(NOT_OURS):
            continue
        meant = get_close_matches(own.upper(), known, 1, 0.8)
        found[name] = PREFIX + meant[0] if meant else None
    return found


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
