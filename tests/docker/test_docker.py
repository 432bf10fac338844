"""What can be checked of images and manifests without an engine: lint, schemas, and the steps."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
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
    assert [a for k, a in cpu if k == "COPY"] == [a for k, a in gpu if k == "COPY"]


def test_install_script_parses_and_stops_at_the_first_failure(tmp_path: Path) -> None:
    check("bash", "-n", DOCKER / "install.sh")
    command = ["bash", DOCKER / "install.sh", "/proc/none", "cpu", str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.nightly
def test_the_build_steps_run_in_a_clean_environment(tmp_path: Path) -> None:
    """What `RUN install.sh` does in the image, with the same copied files; downloads torch."""
    source = tmp_path / "src"
    source.mkdir()
    for keyword, argument in instructions("Dockerfile.cpu"):
        if keyword == "COPY" and not argument.startswith("--from"):
            *names, target = shlex.split(argument)
            for pattern in names:
                for path in ROOT.glob(pattern):
                    into = tmp_path / target.strip("/")
                    into = into / path.name if target.endswith("/") else into
                    into.parent.mkdir(parents=True, exist_ok=True)
                    copy = shutil.copytree if path.is_dir() else shutil.copy
                    copy(path, into)
    venv = tmp_path / "venv"
    check("bash", source / "docker" / "install.sh", venv, "cpu,service", source)
    check(venv / "bin" / "mrad", "serve", "--help")


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


def test_prometheus_takes_its_configuration_and_rules(tmp_path: Path) -> None:
    check(tool("promtool"), "check", "config", DOCKER / "prometheus.yml")


def test_manifests_follow_their_schemas() -> None:
    check(tool("kubernetes-validate"), "--strict", DOCKER / "kubernetes" / "server.yaml")


def test_the_pod_probes_what_the_server_serves_and_asks_for_a_gpu() -> None:
    documents = list(yaml.safe_load_all((DOCKER / "kubernetes" / "server.yaml").read_text()))
    pod = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]
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
