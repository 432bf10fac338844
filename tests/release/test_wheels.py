"""Both wheels: what is in them, and that they run where they are installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python"
PACKAGES = {
    "mrad": (ROOT, ["mrad", "indexer/mrad_indexer", "service/mrad_service"]),
    "mrad-client": (CLIENT, ["mrad_client"]),
}
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "dist")


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed")
    return found


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, built from copies so that no stale build folder gets in."""
    built = {}
    for name, (source, packages) in PACKAGES.items():
        copy = tmp_path_factory.mktemp(name)
        for package in packages:
            shutil.copytree(source / package, copy / package, ignore=IGNORED)
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(source / file, copy / file)
        out = copy / "out"
        options = ["--wheel", "--no-build-isolation", "--python", sys.executable]
        run(uv(), "build", *options, "--out-dir", out, copy)
        built[name] = next(out.glob("*.whl"))
    return built


def project_of(name: str) -> dict[str, Any]:
    return tomllib.loads((PACKAGES[name][0] / "pyproject.toml").read_text())["project"]


def version_of(name: str) -> str:
    return project_of(name)["version"]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_every_file_of_its_packages(name: str, wheels: dict[str, Path]) -> None:
    source, packages = PACKAGES[name]
    tracked = subprocess.run(
        ["git", "ls-files", *packages], cwd=source, capture_output=True, text=True
    ).stdout.splitlines()
    if not tracked:
        pytest.skip("not a git checkout: nobody knows which files belong to it")
    inside = set(zipfile.ZipFile(wheels[name]).namelist())
    outer = tuple(f"{Path(package).parent}/" for package in packages if "/" in package)
    expected = {path for path in tracked if (source / path).exists()}
    for prefix in outer:
        expected = {path.removeprefix(prefix) for path in expected}
    missing = expected - inside
    assert not missing
    strangers = {path.split("/")[0] for path in inside} - {Path(p).name for p in packages}
    assert all(path.endswith(".dist-info") for path in strangers), strangers


def test_versions_agree_with_each_other_and_the_changelog() -> None:
    version = version_of("mrad")
    assert version == version_of("mrad-client")
    assert f"mrad-client=={version}" in project_of("mrad")["dependencies"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_client_and_server_speak_one_version_of_the_api() -> None:
    from mrad_client._call import API_VERSION, VERSION_HEADER
    from mrad_service.middleware import observability

    assert int(observability.API_VERSION) == API_VERSION
    assert VERSION_HEADER in observability.__dict__["HEADERS"]
    assert f"`/v{API_VERSION}`" in (ROOT / "CHANGELOG.md").read_text()


def test_the_client_needs_four_packages_and_never_torch() -> None:
    needs = project_of("mrad-client")["dependencies"]
    names = {re.match(r"[\w-]+", need).group() for need in needs}  # type: ignore[union-attr]
    assert names == {"httpx", "numpy", "pillow", "pydantic"}


def test_folders_called_service_and_indexer_do_not_shadow_it(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """People have such folders; the packages of the wheel are called otherwise."""
    packages, work = tmp_path / "packages", tmp_path / "work"
    for name in ("service", "indexer"):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    run(uv(), "pip", "install", "-q", "--no-deps", "--target", packages, "--python", sys.executable, wheels["mrad"])  # fmt: skip
    script = "from mrad_indexer.cli.main import app; app(['serve', '--help'], prog_name='mrad')"
    environment = {"PYTHONPATH": f"{work}:{packages}"}
    said = run(sys.executable, "-c", script, cwd=work, env=environment)
    assert "--bank" in said


@pytest.mark.parametrize(("name", "module"), [("mrad", "mrad"), ("mrad-client", "mrad_client")])
def test_an_installed_wheel_imports_from_where_it_is(
    name: str, module: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Quick: only the wheel is installed, its dependencies are this environment's."""
    run(uv(), "pip", "install", "-q", "--no-deps", "--target", tmp_path, "--python", sys.executable, wheels[name])  # fmt: skip
    heavy = "{'torch', 'pyarrow', 'typer', 'mrad'}"  # rich: httpx itself loads it where it is
    code = f"import sys, {module}; print({module}.__file__, sorted({heavy} & set(sys.modules)))"
    said = run(sys.executable, "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert said.startswith(str(tmp_path))
    if name == "mrad-client":
        assert said.endswith(" []\n"), "importing the client must not load what it does not need"


def fresh(
    folder: Path,
    *requirements: str,
    python: str = sys.executable,
    constraints: Path = ROOT / "constraints.txt",
) -> Path:
    """The bin folder of a new environment with these, at the versions of the constraints file.

    What the suite's own environment was installed from lies in uv's cache, so this takes seconds.
    """
    run(uv(), "venv", "-q", "--python", python, folder)
    into = folder / "bin" / "python"
    run(uv(), "pip", "install", "-q", "--python", into, "-c", constraints, *requirements)
    return folder / "bin"


def test_the_client_in_a_fresh_environment(wheels: dict[str, Path], tmp_path: Path) -> None:
    wheel = wheels["mrad-client"]
    bare = fresh(tmp_path / "bare", str(wheel))
    code = "import mrad_client; c = mrad_client.Client('http://127.0.0.1:9'); print(c.__class__)"
    run(bare / "python", "-c", code, cwd=tmp_path)
    done = subprocess.run([bare / "mrad-client"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "./clients/python[batch]" in done.stderr
    full = fresh(tmp_path / "full", f"mrad-client[batch] @ {wheel.as_uri()}")
    assert "--overlays" in run(full / "mrad-client", "score", "--help", cwd=tmp_path)


def test_the_server_in_a_fresh_environment(wheels: dict[str, Path], tmp_path: Path) -> None:
    """The demo, whose images and encoder are inside the wheel, and a server on its memory."""
    try_out(fresh(tmp_path / "venv", *both(wheels)), tmp_path)


@pytest.mark.nightly
def test_the_lowest_versions_that_are_declared_work(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Every direct dependency at its floor at once; what those need in turn is the newest that fits."""
    pins = tmp_path / "floors.txt"
    highest: dict[str, str] = {}
    for pin in floors("mrad", "cpu", "service") | floors("mrad-client", "batch"):
        name, at = pin.split("==")
        if name not in highest or Version(at) > Version(highest[name]):
            highest[name] = at  # both need it: the higher of two floors
    pins.write_text("\n".join(f"{name}=={at}" for name, at in highest.items()))
    bin_ = fresh(tmp_path / "venv", *both(wheels), constraints=pins)
    try_out(bin_, tmp_path)
    for name in ("demo", "build", "calibrate", "score", "watch", "bank", "data", "eval", "train"):
        assert "Usage" in run(bin_ / "mrad", name, "--help", cwd=tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_newer_pythons(version: str, wheels: dict[str, Path], tmp_path: Path) -> None:
    found = subprocess.run([uv(), "python", "find", version], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no Python {version} on this machine: uv python install {version}")
    try_out(fresh(tmp_path / "venv", *both(wheels), python=version), tmp_path)


def both(wheels: dict[str, Path]) -> tuple[str, str]:
    """The two wheels as requirements, with what serving and batches need."""
    mrad, client = wheels["mrad"].as_uri(), wheels["mrad-client"].as_uri()
    return f"mrad[cpu,service] @ {mrad}", f"mrad-client[batch] @ {client}"


def floors(name: str, *extras: str) -> set[str]:
    """A distribution's direct dependencies, pinned to the lowest version that it declares."""
    project = project_of(name)
    needs = [*project["dependencies"]]
    for extra in extras:
        needs += project["optional-dependencies"][extra]
    return {need.replace(">=", "==") for need in needs if ">=" in need}


def try_out(bin_: Path, folder: Path) -> None:
    """What a newcomer does: the demo, a look at its memory, a server on it, scores of both kinds."""
    environment = {"PATH": f"{bin_}:/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def here(program: str, *arguments: str | Path) -> str:
        return run(bin_ / program, *arguments, cwd=folder, env=environment)

    here("mrad", "demo", "--out", "demo")
    assert "every digest holds" in here("mrad", "bank", "inspect", "demo/bank")
    image = next((folder / "demo").rglob("*.png"))
    asked = ("score", image, "--bank", "demo/bank", "--format", "jsonl", "--out")
    assert "1 image:" in here("mrad", *asked, "there")
    run(Path(sys.executable).with_name("mrad"), *asked, "here", cwd=folder)
    theirs, ours = (
        json.loads((folder / out / "results.jsonl").read_text())["score"]
        for out in ("there", "here")
    )
    assert theirs == pytest.approx(ours, abs=1e-4)  # whatever the versions of what lies below
    command = [bin_ / "mrad", "serve", "--bank", "demo/bank", "--no-auth", "--port", "0"]
    log = (folder / "log").open("w+")
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=log, stdout=log) as server:
        try:
            url = listening(server, folder / "log")
            code = (
                "import sys, mrad_client as m\n"
                "print(m.Client(sys.argv[1]).score_image(sys.argv[2]).score)"
            )
            assert 0 < float(here("python", "-c", code, url, image)) < 1
            here("mrad-client", "score", image, "--out", "r.csv", "--server", url)
            assert ",ok," in (folder / "r.csv").read_text()
        finally:
            server.terminate()


def listening(server: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the server logs once it takes requests."""
    end = time.monotonic() + 180
    while time.monotonic() < end and server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text())
        if found:
            return found.group()
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])
