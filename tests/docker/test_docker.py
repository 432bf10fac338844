"""What can be checked of images and manifests without an engine: lint, schemas, and the steps."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import typer.main
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ["Dockerfile.cpu", "Dockerfile.gpu"]


def tool(name: str) -> str:
    """A program of the environment, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def check(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions(name: str) -> list[tuple[str, str]]:
    """Pairs of keyword and argument, continuation lines joined."""
    text = re.sub(r"\\\n", " ", (DOCKER / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]  # type: ignore[misc]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    check(tool("hadolint"), DOCKER / name)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(name: str) -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for keyword, argument in instructions(name):
        if keyword != "COPY" or argument.startswith("--from"):
            continue
        for source in shlex.split(argument)[:-1]:
            if "[" in source:  # may be absent: a pattern
                source = re.sub(r"\[(.)\]", r"\1", source)
            else:
                assert (ROOT / source).exists(), source
            assert source in allowed, f"{source} never reaches the build"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_run_unprivileged_offline_and_watched(name: str) -> None:
    found = instructions(name)
    keywords = dict(found)
    assert keywords["USER"] == "10001:10001"
    assert "HF_HUB_OFFLINE=1" in keywords["ENV"]
    assert "/health/live" in keywords["HEALTHCHECK"]
    assert json.loads(keywords["VOLUME"]) == ["/banks", "/weights"]
    last_from = max(i for i, (keyword, _) in enumerate(found) if keyword == "FROM")
    assert not any("install.sh" in argument for _, argument in found[last_from:])


def test_the_healthcheck_works_against_a_server_and_fails_without(tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    argument = dict(instructions("Dockerfile.cpu"))["HEALTHCHECK"]
    command = json.loads(argument[argument.index("CMD") + 3 :])
    command = [sys.executable, *command[1:]]
    here = [part.replace(":8000", f":{server.server_port}") for part in command]
    assert subprocess.run(here, capture_output=True).returncode == 0
    assert asked == ["/health/live"]
    server.shutdown()
    server.server_close()
    assert subprocess.run(here, capture_output=True).returncode != 0


def test_the_images_differ_only_where_they_must() -> None:
    cpu, gpu = (instructions(name) for name in DOCKERFILES)
    for keyword in ("USER", "HEALTHCHECK", "ENTRYPOINT", "CMD", "VOLUME", "STOPSIGNAL"):
        assert dict(cpu)[keyword] == dict(gpu)[keyword]
    for keyword in ("COPY", "FROM"):
        assert [a for k, a in cpu if k == keyword] == [a for k, a in gpu if k == keyword]
    runs = [[a for k, a in image if k == "RUN"] for image in (cpu, gpu)]
    assert [a.replace("gpu,service", "cpu,service") for a in runs[1]] == runs[0]


def test_install_script_parses_and_stops_at_the_first_failure(tmp_path: Path) -> None:
    check("bash", "-n", DOCKER / "install.sh")
    command = ["bash", DOCKER / "install.sh", "/proc/none", "cpu", str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.parametrize("name", DOCKERFILES)
def test_settings_of_the_image_are_the_servers(name: str) -> None:
    from mrad_indexer.cli.main import app
    from mrad_service.settings import Settings

    found = dict(instructions(name))
    assert json.loads(found["ENTRYPOINT"]) == ["mrad"]
    group = typer.main.get_command(app)
    command, *options = json.loads(found["CMD"])
    context = click.Context(group)
    serve = group.get_command(context, command)  # type: ignore[attr-defined]
    assert serve is not None
    serve.make_parser(click.Context(serve)).parse_args(list(options))
    variables = dict(pair.split("=", 1) for pair in shlex.split(found["ENV"]))
    ours = {key: value for key, value in variables.items() if key.startswith("MRAD_")}
    del ours["MRAD_WEIGHTS"]  # the library's: where weights are looked for
    fields = {key.removeprefix("MRAD_").lower(): value for key, value in ours.items()}
    assert fields.keys() <= Settings.model_fields.keys()
    port = options[options.index("--port") + 1]
    made = Settings(**fields, host=options[options.index("--host") + 1], port=int(port))
    assert made.auth == "keys"
    assert found["EXPOSE"] == str(made.port)


def test_dashboards_and_alerts_ask_for_metrics_that_the_server_gives() -> None:
    from mrad_service.telemetry.metrics import Metrics

    labels: dict[str, set[str]] = {}
    for collector in list(Metrics().registry._collector_to_names):
        for metric in collector.describe():
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
            for suffix in suffixes.get(metric.type, [""]):
                names = set(collector._labelnames) | ({"le"} if suffix == "_bucket" else set())
                labels[metric.name + suffix] = names
    text = (DOCKER / "grafana/dashboards/mrad.json").read_text()
    asked = json.loads(text)["panels"]
    queries = [target["expr"] for panel in asked for target in panel["targets"]]
    groups = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]
    queries += [rule["expr"] for group in groups for rule in group["rules"]]
    for query in queries:
        metrics = re.findall(r"\bmrad_\w+", query)
        assert set(metrics) <= labels.keys(), query
        known = set().union(*(labels[metric] for metric in metrics))
        grouped = re.findall(r"\bby \(([^)]*)\)", query)
        used = {name.strip() for part in grouped for name in part.split(",")}
        used |= set(re.findall(r"(?<=[{,])(\w+)(?==)", query))
        assert not metrics or used <= known, query


@pytest.mark.nightly
@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_run_line_runs_and_the_result_serves_as_its_user(name: str, tmp_path: Path) -> None:
    """Each RUN as it stands, in a throw-away copy of this machine's root; downloads torch. Then its
    user builds a bank there, makes a key and serves, on a root that is read-only as in the manifests.

    Copied files stand where COPY puts them. The machine is not the base image, and without a card CUDA
    is loaded but never asked.
    """
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("a throw-away root needs root's rights and unshare")
    upper, work, root, banks = (tmp_path / part for part in ("upper", "work", "root", "banks"))
    for folder in (upper, work, root, banks):
        folder.mkdir()
    os.chown(banks, 10001, 10001)
    lines = []
    for keyword, argument in instructions(name):
        if keyword == "COPY" and not argument.startswith("--from"):
            *patterns, target = shlex.split(argument)
            for source in (path for pattern in patterns for path in ROOT.glob(pattern)):
                into = upper / target.strip("/")
                into = into / source.name if target.endswith("/") else into
                into.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if source.is_dir() else shutil.copy
                copy(source, into)
        elif keyword == "RUN":
            lines.append(f"bash -euc {shlex.quote(argument)}")
    lines.append("chmod 755 /root")  # this machine's Python may lie there
    check("unshare", "-m", "bash", "-euc", THROW_AWAY.format(
        upper=upper, work=work, root=root, banks=banks,
        lines=shlex.quote("\n".join(["set -e", *lines])), use=shlex.quote(use_of(name)),
    ))  # fmt: skip
    assert (upper / "opt/mrad/bin/mrad").exists()
    assert (upper / "banks").stat().st_uid == 10001
    assert (banks / "current/bank.json").stat().st_uid == 10001


def use_of(name: str) -> str:
    """What a container of the image is asked to do, as its user and with its variables alone."""
    found = dict(instructions(name))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    user = f"setpriv --reuid 10001 --regid 10001 --clear-groups env -i {found['ENV']}"
    check = found["HEALTHCHECK"]
    healthy = json.loads(check[check.index("CMD") + 3 :].replace(":8000", f":{port}"))
    command = " ".join(json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"]))
    serve = command.replace("0.0.0.0", "127.0.0.1").replace("8000", port)
    gpu = name.endswith("gpu")
    right = f"import faiss, torch; assert hasattr(faiss, 'StandardGpuResources') is {gpu}"
    if gpu:  # FAISS and PyTorch on the CUDA libraries of one major version, in one process
        right += "; import pathlib; assert torch.version.cuda.startswith('13.')"
        right += "; maps = pathlib.Path('/proc/self/maps').read_text()"
        right += "; assert 'libcudart.so.13' in maps and 'libcudart.so.12' not in maps"
    boards = "/opt/mrad/lib/python3*/site-packages/mrad/demo/deep_pcb/memory"
    return f"""
        cd /tmp
        {user} python -c {shlex.quote(right)}
        if {user} touch /opt/mrad/x; then exit 9; fi
        {user} mrad build {boards} --out /banks/current
        {user} mrad keys add line --scope score
        {user} {serve} & server=$!
        until {user} {shlex.join(healthy)} 2>/dev/null; do kill -0 $server; sleep 1; done
        kill -TERM $server
        wait $server || test $? = 143  # drained, then ended by the signal
    """


THROW_AWAY = """
mount -t overlay overlay -o lowerdir=/,upperdir={upper},workdir={work} {root}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
chroot {root} env TORCH_INDEX_URL= bash -c {lines}
mount -t tmpfs tmpfs {root}/tmp
mount --bind {banks} {root}/banks
mount -o remount,ro {root}
chroot {root} bash -euc {use}
"""


def test_compose_follows_its_schema() -> None:
    check(
        tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml"
    )


def test_compose_mounts_files_that_exist_and_names_that_resolve() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).exists()
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).exists(), source
    targets = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"][0]
    host = targets["static_configs"][0]["targets"][0].split(":")[0]
    assert host in compose["services"]["mrad"]["networks"]["default"]["aliases"]


def test_compose_gives_the_gpu_profile_one_card_or_as_many_as_are_asked_for() -> None:
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["mrad-gpu"]
    assert service["profiles"] == ["gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert device["count"] == "${MRAD_GPUS:-1}"
    assert service["environment"] == {"MRAD_DEVICE": "${MRAD_DEVICE:-auto}"}


def test_prometheus_takes_its_configuration_and_rules() -> None:
    check(tool("promtool"), "check", "config", DOCKER / "prometheus.yml")


def test_alerts_fire_when_they_should() -> None:
    check(tool("promtool"), "test", "rules", Path(__file__).with_name("alerts.test.yml"))


@pytest.mark.parametrize("name", ["volumes.yaml", "server.yaml"])
def test_manifests_follow_their_schemas(name: str) -> None:
    check(tool("kubernetes-validate"), "--strict", DOCKER / "kubernetes" / name)


def manifest(name: str, kind: str) -> list[dict[str, Any]]:
    documents = yaml.safe_load_all((DOCKER / "kubernetes" / name).read_text())
    return [document for document in documents if document["kind"] == kind]


def test_the_pod_that_fills_the_volumes_and_the_server_share_them_and_their_user() -> None:
    claims = {
        claim["metadata"]["name"] for claim in manifest("volumes.yaml", "PersistentVolumeClaim")
    }
    filling = manifest("volumes.yaml", "Pod")[0]["spec"]
    serving = manifest("server.yaml", "Deployment")[0]["spec"]["template"]["spec"]
    places = []
    for pod in (filling, serving):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {v["persistentVolumeClaim"]["claimName"] for v in volumes.values()
                if "persistentVolumeClaim" in v} == claims  # fmt: skip
        mounts = pod["containers"][0]["volumeMounts"]
        places.append({
            volumes[mount["name"]]["persistentVolumeClaim"]["claimName"]: mount["mountPath"]
            for mount in mounts if "persistentVolumeClaim" in volumes[mount["name"]]
        })  # fmt: skip
    assert places[0] == places[1]
    assert filling["securityContext"] == serving["securityContext"]
    assert not any(mount.get("readOnly") for mount in filling["containers"][0]["volumeMounts"])


def test_the_pod_probes_what_the_server_serves_and_asks_for_a_gpu() -> None:
    pod = manifest("server.yaml", "Deployment")[0]["spec"]["template"]["spec"]
    server = pod["containers"][0]
    probes = {name: server[name]["httpGet"]["path"] for name in server if name.endswith("Probe")}
    assert probes["livenessProbe"] == "/health/live"
    assert probes["readinessProbe"] == probes["startupProbe"] == "/health/ready"
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsUser"] == 10001


def dashboard_source() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", DOCKER / "grafana" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dashboard_is_the_one_its_source_writes() -> None:
    source = dashboard_source()
    assert json.loads(source.TARGET.read_text()) == source.dashboard()
