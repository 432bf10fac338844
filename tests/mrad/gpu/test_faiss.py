"""Whether FAISS may be used on a card: read off real libraries, tried in a process that may die."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from mrad.retrieval import nearest as module
from mrad.retrieval import probe
from mrad.retrieval.exact import ExactRetriever
from mrad.retrieval.nearest import by_blocks, nearest, resources_of
from tests.mrad.gpu.coverage import MACHINE, PTX, Architectures, architectures, library_of

ROOT = Path(__file__).parents[3]
CARDS = {
    "T4": (7, 5), "A100": (8, 0), "A10": (8, 6), "L4": (8, 9), "H100, H200": (9, 0),
    "B200": (10, 0), "RTX 50": (12, 0),
}  # fmt: skip
"""What docs/gpu-host.md promises."""
SHIPPED = Architectures(frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)}), frozenset({(9, 0)}))
"""What the FAISS of the extra `gpu` holds, machine code and PTX."""


def test_a_real_library_says_what_its_maker_says():
    """PyTorch's own CUDA library, against the list that PyTorch was built with."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
    if not library.exists():
        pytest.skip("this PyTorch was built without CUDA")
    flags = torch._C._cuda_getArchFlags().split()
    wanted = {divmod(int(flag[3:]), 10) for flag in flags if flag.startswith("sm_")}
    held = architectures(library)
    assert held is not None
    assert held.machine == wanted


@pytest.mark.parametrize(
    ("machine", "ptx", "card", "covered"),
    [
        ({(8, 0)}, set(), (8, 0), True),
        ({(8, 0)}, set(), (8, 9), True),  # machine code runs on later minors of its major
        ({(8, 6)}, set(), (8, 0), False),
        ({(7, 0), (8, 0)}, set(), (9, 0), False),  # faiss-gpu-cu12 1.14.1 on an H100
        ({(8, 0)}, {(9, 0)}, (9, 0), True),
        ({(8, 0)}, {(9, 0)}, (12, 0), True),  # by the driver's compiler
        ({(8, 0)}, {(9, 0)}, (8, 9), True),
        (set(), {(9, 0)}, (8, 9), False),
    ],
)
def test_which_cards_are_covered(machine, ptx, card, covered):
    assert Architectures(frozenset(machine), frozenset(ptx)).cover(card) is covered


def elf(kernels: list[list[tuple[int, int]]]) -> bytes:
    """The smallest ELF file with a fat binary: for each kernel, (kind, architecture) of its code."""
    fat = b""
    for codes in kernels:
        files = b"".join(
            struct.pack("<HHIQIIHHI", kind, 0x101, 32, 16, 0, 0, 0, 0, arch) + bytes(16)
            for kind, arch in codes
        )
        fat += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(files)) + files
    names = b"\0.nv_fatbin\0.names\0"
    start = 64 + len(names)
    table = start + len(fat)
    headers = [(0, 0, 0), (1, start, len(fat)), (12, 64, len(names))]
    head = b"\x7fELF\x02\x01".ljust(40, b"\0") + struct.pack("<Q", table)
    head = head.ljust(58, b"\0") + struct.pack("<HHH", 64, 3, 2)
    rows = (struct.pack("<IIQQQQ", n, 1, 0, 0, o, size).ljust(64, b"\0") for n, o, size in headers)
    return head + names + fat + b"".join(rows)


def test_only_what_every_kernel_has_counts(tmp_path):
    library = tmp_path / "libfaiss.so"
    library.write_bytes(elf([[(MACHINE, 80), (MACHINE, 90), (PTX, 90)], [(MACHINE, 80)]]))
    assert architectures(library) == Architectures(frozenset({(8, 0)}), frozenset())


def test_what_is_no_library_says_nothing(tmp_path):
    for name, content in {"text": b"hello", "empty": b"", "plain": elf([])}.items():
        file = tmp_path / name
        file.write_bytes(content)
        assert architectures(file) is None
    assert architectures(Path(sys.executable)) is None
    assert library_of(Path(faiss.__file__).parent) is None  # FAISS for CPUs


def test_the_library_is_found_in_the_package_and_beside_it(tmp_path):
    package, beside = tmp_path / "faiss", tmp_path / "faiss_gpu_cu12.libs"
    for folder in (package, beside):
        folder.mkdir()
    (package / "_swigfaiss.so").write_bytes(b"no fat binary")
    (beside / "libfaiss-1.so").write_bytes(elf([[(MACHINE, 70), (MACHINE, 80)]]))
    assert library_of(package) == beside / "libfaiss-1.so"


STUB = """
import os, sys
import numpy as np
METRIC_INNER_PRODUCT = 0
class StandardGpuResources: pass
def knn_gpu(res, xq, xb, k, metric, device):
    kind = os.environ["KIND"]
    assert device == 1, device
    if kind == "abort":
        print("no kernel image is available for execution", file=sys.stderr, flush=True)
        os.abort()
    if kind == "raise":
        raise RuntimeError("CUDA out of memory")
    if kind == "hang":
        import time
        time.sleep(60)
    rows = np.argsort(-(xq @ xb.T), axis=1)[:, :k]
    return None, rows[:, ::-1] if kind == "wrong" else rows
"""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("right", ""),
        ("wrong", "not the nearest"),
        ("raise", "CUDA out of memory"),
        ("abort", "SIGABRT: no kernel image"),
        ("hang", "longer than 1 s"),
    ],
)
def test_a_trial_search_that_ends_its_process_does_not_end_this_one(
    kind, reason, tmp_path, monkeypatch
):
    (tmp_path / "faiss.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("KIND", kind)
    found = probe.why_not(1, seconds=1 if kind == "hang" else 60)
    assert (reason in found) if reason else found == ""


def test_a_card_that_faiss_cannot_use_is_searched_by_pytorch_and_the_log_says_why(
    monkeypatch, caplog
):
    """No card here: only what FAISS and PyTorch would say of one is put in."""
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    why = "ended by SIGABRT: no kernel image is available"
    monkeypatch.setattr(module.probe, "why_not", lambda device: why)
    resources_of.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert resources_of(torch.device("cuda", 1)) is None
    finally:
        resources_of.cache_clear()
    (line,) = caplog.messages  # once
    assert "cuda:1" in line
    assert why in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_faiss_without_gpus_says_so(caplog):
    resources_of.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resources_of(torch.device("cuda:0")) is None
    assert "the extra `gpu`" in caplog.text


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FAISS of the extra `gpu`, as constraints.txt pins it, unpacked and not installed."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (pin,) = (line.split()[0] for line in pins if line.startswith("faiss-gpu"))
    folder = tmp_path_factory.mktemp("faiss-gpu")
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists() or sys.platform != "linux":
        pytest.skip("the wheel is for Linux, and uv fetches it")
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--target", folder, pin]
    environment = os.environ | {"UV_HTTP_TIMEOUT": "60"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        pytest.skip(f"{pin} cannot be fetched: {done.stderr.strip()[-200:]}")
    return folder / "faiss"


def test_the_pinned_faiss_has_code_for_the_cards_that_the_page_promises(wheel):
    library = library_of(wheel)
    assert library is not None
    assert architectures(library) == SHIPPED
    page = (ROOT / "docs" / "gpu-host.md").read_text()
    for name, card in CARDS.items():
        assert SHIPPED.cover(card), name
        assert name in page
    assert not SHIPPED.cover((7, 0))
    assert str(SHIPPED) in page


def test_the_pinned_faiss_takes_what_the_search_gives_it(wheel):
    """Its own sources, read and not run: how it is called here is how it wants to be called."""
    for source in ("gpu_wrappers.py", "contrib/torch_utils.py"):
        tree = ast.parse((wheel / source).read_text())
        (function,) = (
            node for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.endswith("knn_gpu")
        )  # fmt: skip
        names = [argument.arg for argument in function.args.args]
        assert names[:4] == ["res", "xq", "xb", "k"]
        assert {"metric", "device"} <= set(names)
    calls = [
        node for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "faiss.knn_gpu"
    ]  # fmt: skip
    assert [len(call.args) for call in calls] == [4]
    assert {keyword.arg for call in calls for keyword in call.keywords} == {"metric", "device"}
    swig = (wheel / "swigfaiss.py").read_text()
    assert "def setTempMemory(self, size)" in swig
    assert "def get_num_gpus()" in swig


def test_one_cuda_in_the_image():
    """PyTorch and FAISS take the CUDA libraries of one major version, from one set of wheels."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if line.startswith(("nvidia-", "libcuvs"))]
    assert names
    assert not [name for name in names if "cu12" in name or "cu11" in name]
    assert torch.version.cuda is None or torch.version.cuda.startswith("13.")
    base = (ROOT / "docker" / "Dockerfile.gpu").read_text()
    assert "nvidia/cuda" not in base  # it would bring a second set


@pytest.mark.parametrize("d", [8, 33])
def test_nearest_keys_in_blocks_are_faisss(d: int):
    rng = np.random.default_rng(0)
    keys, asked = (torch.from_numpy(rng.normal(size=(n, d)).astype(np.float32)) for n in (50, 7))
    retriever = ExactRetriever(keys, np.zeros(50, np.uint8))
    for k in (1, 9, 50):
        wanted, rows = retriever.nearest(asked, k)
        for found, places in (by_blocks(asked, keys, k, block=11), nearest(asked, keys, k)):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(places.numpy(), rows)
