"""The same application on Ray Serve, in as many replicas as one likes (extra `ray`).

    serve run mrad_service.ray:build bank=/banks/current replicas=4 gpus=1

Arguments are the settings of `mrad serve`, besides `replicas`, and `cpus` and `gpus` of each; MRAD_*
variables count as they do there. One memory has one writer, so replicas do not learn: teach a server
that does, export its memory, and deploy again. Every replica must find the bank under the same path.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from mrad.errors import MRADError
from mrad_service.app import create_app
from mrad_service.models.loading import EncoderOf
from mrad_service.settings import Settings

try:
    from ray import serve
except ImportError as error:
    raise MRADError(
        f"serving on Ray needs what is not installed ({error}): pip install 'mrad[ray,service]'"
    ) from error


class Scale(BaseModel):
    """How many replicas there are, and what each takes of the cluster."""

    model_config = ConfigDict(extra="ignore")

    replicas: int = Field(1, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)


def build(arguments: dict[str, Any]) -> serve.Application:
    """What `serve run` and a Serve config file call."""
    options = {key: arguments[key] for key in arguments.keys() - Scale.model_fields.keys()}
    if unknown := sorted(options.keys() - Settings.model_fields.keys()):
        raise MRADError(f"there is no setting {', '.join(unknown)}; mrad serve --help lists them")
    return deployment(Settings(**options), Scale(**arguments))


def deployment(
    settings: Settings, scale: Scale, encoder_of: EncoderOf | None = None
) -> serve.Application:
    """The application, not yet running. `encoder_of`: see `mrad_service.app.create_app`."""
    read_only = settings.model_copy(update={"writable": False})

    def make() -> FastAPI:
        return create_app(read_only, encoder_of=encoder_of)

    replica = serve.deployment(
        name="mrad",
        num_replicas=scale.replicas,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        # The application queues, batches and refuses by itself; it must see all requests to do so.
        max_ongoing_requests=settings.queue_images,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    return replica(serve.ingress(make)()).bind()
