"""Facts of what is released: the same commit gives the same wheel, and the wheel serves."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service import __version__

ROOT = Path(__file__).parents[1]
UV = Path(sysconfig.get_path("scripts")) / "uv"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def git(*arguments: str) -> str:
    """Ask git about this checkout; skip without one."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a git checkout: {done.stderr.strip()}")
    return done.stdout.strip()


def run(*command: str | Path, **environ: str) -> str:
    """Run a command away from the checkout; return what it printed."""
    done = subprocess.run(
        command, cwd="/", env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, umask: int) -> Path:
    """Build both distributions of the commit as `make wheel` does; return their folder."""
    if not UV.exists():
        pytest.skip("needs uv: `pip install -c constraints.txt uv`")
    source = folder / "source"
    source.mkdir(parents=True)
    archive = folder / "commit.tar"
    git("archive", f"--output={archive}", "HEAD")
    shutil.unpack_archive(archive, source, filter="data")
    before = os.umask(umask)
    try:
        run(
            UV, "build", "--quiet", "--require-hashes", "--build-constraints",
            ROOT / "docker" / "requirements" / "build.lock", "--out-dir", folder / "dist", source,
            SOURCE_DATE_EPOCH=git("log", "-1", "--format=%ct"),
        )  # fmt: skip
    finally:
        os.umask(before)
    return folder / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build once."""
    return build(tmp_path_factory.mktemp("first"), 0o022)


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """Choose the wheel of the two."""
    (wheel,) = dist.glob("*.whl")
    return wheel


def digests(dist: Path) -> dict[str, str]:
    """Hash what was built."""
    files = [*dist.glob("*.whl"), *dist.glob("*.tar.gz")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_commit_gives_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    """Built elsewhere, later and by someone with other permissions, both files are identical."""
    first = digests(dist)
    assert {f"bar_serve-{__version__}-py3-none-any.whl", f"bar_serve-{__version__}.tar.gz"} == set(
        first
    )
    assert first == digests(build(tmp_path / "another folder", 0o077))


def test_the_wheel_has_what_serves_and_nothing_else(wheel: Path) -> None:
    """Three packages, with what they read at run time; no tests, no bytecode, no other weights."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = file.read(f"bar_serve-{__version__}.dist-info/METADATA").decode()
    info = f"bar_serve-{__version__}.dist-info"
    assert {"model", "service", "training", info} == {name.partition("/")[0] for name in names}
    kept = git("ls-files", "model", "service", "training").splitlines()
    assert set(kept) == {name for name in names if not name.startswith(info)}
    assert "Requires-Dist: torch" in metadata
    assert f"{info}/licenses/LICENSE" in names


@pytest.fixture(scope="module")
def bar(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into a new environment; its dependencies are those of this one."""
    environment = tmp_path_factory.mktemp("clean") / "environment"
    run(UV, "venv", "--quiet", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A path that a .pth file adds comes last, and the .pth files in it are not read: `service` is
    # the wheel's, whatever is installed beside torch.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    where = run(python, "-c", "import model, service; print(model.__file__, service.__file__)")
    assert all(path.startswith(str(environment)) for path in where.split())
    return environment / "bin" / "bar"


@contextmanager
def serving(bar: Path) -> Iterator[str]:
    """Serve with the digits at a free port; give the address, and end it as Docker would."""
    process = subprocess.Popen(
        [bar, "serve", "--port", "0"], cwd="/", stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()
        assert 0 == process.wait(60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_until_ready(client: httpx.Client) -> None:
    """Ask until it can draw: its address is printed before it listens, and weights take a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(httpx.ConnectError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the server was not ready within a minute")


def test_an_installed_wheel_serves(bar: Path, tmp_path: Path) -> None:
    """In a clean environment it answers the README's request, with the bytes of `bar generate`."""
    expected = tmp_path / "four.png"
    run(bar, "generate", "--class", "4", "--seed", "1", "--output", expected)
    request = {"class_id": 4, "seed": 1}
    with serving(bar) as url, httpx.Client(base_url=url, timeout=60) as client:
        wait_until_ready(client)
        answer = client.post("/v1/generations", json=request, headers={"accept": "image/png"})
        assert 200 == answer.status_code
        assert expected.read_bytes() == answer.content
        assert 200 == client.get("/docs").status_code
        assert __version__ == client.get("/version").json()["version"]


def test_a_tag_names_the_version() -> None:
    """A commit that is tagged as a release has that version, and the changelog tells of it."""
    tags = [tag for tag in git("tag", "--points-at", "HEAD").splitlines() if tag.startswith("v")]
    if not tags:
        pytest.skip("this commit is no release: it has no tag v…")
    assert [f"v{__version__}"] == tags
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
