"""What the stages say of archives and hosts that are no good: a sentence, and what was there before stays."""

import pickle
import tarfile
from collections.abc import Callable
from hashlib import md5
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cifar_pipeline.data.sources.cifar import FOLDER, unpickle
from download import download
from helpers.dir_snapshot import content_of
from helpers.tiny_cifar10 import pack
from preprocess import preprocess

BEFORE = {"digits/images.npy": b"what was there"}
REMEDY = "CIFAR-10 could not be fetched and data.fallback is null: set CIFAR10_SOURCE to "


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(f"{FOLDER}/{name}")
    made.type, made.size, made.linkname = kind, size, link
    return made


def published(project, files) -> None:
    """Let the project take these files for the published ones."""
    sums = "".join(f"  {name}: {md5(content).hexdigest()}\n" for name, content in files.items())
    path = "conf/data/source/cifar10.yaml"
    project.write(path, (project.folder / path).read_text() + f"checksums:\n{sums}")


def refused(project, stage, *words) -> str:
    """Exit code 2, no traceback, and data/ as it was; what was said."""
    for name, content in BEFORE.items():
        path = project.folder / "data" / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = content_of(project.folder / "data")
    ended = project.start(stage, "data.fallback=null", *words)
    assert ended.code == 2 and "Traceback" not in ended.err
    after = content_of(project.folder / "data")
    assert {name: there for name, there in after.items() if ".lock" not in name} == before
    said: str = ended.err
    return said


def archives(files) -> dict[str, tuple[bytes, str]]:
    """Archives of every bad kind, and what is said of each."""
    contents = {f"{FOLDER}/{name}": content for name, content in files.items()}
    lacking = {name: content for name, content in contents.items() if not name.endswith("data_batch_2")}
    foreign = contents | {f"{FOLDER}/data_batch_2": files["data_batch_1"]}
    return {
        "a missing member": (pack(lacking), "data_batch_2 is missing"),
        "a wrong MD5": (pack(foreign), "data_batch_2 is not the published file (MD5 "),
        "a path that climbs out": (pack({"../../planted": b"!"} | contents), "a path outside of the archive"),
        "a symlink": (pack(lacking, entry("data_batch_2", tarfile.SYMTYPE, link="/etc/passwd")), "is a link"),
        "a bomb": (
            pack(lacking, entry("data_batch_2", size=1 << 40)),
            "the archive is larger than expected",
        ),
        "half of it": (pack(contents)[:2000], "not a complete tar archive"),
        "nothing": (b"", "not a complete tar archive"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "a wrong MD5", "a path that climbs out",
        *(pytest.param(kind, marks=pytest.mark.long)
          for kind in ("a missing member", "a symlink", "a bomb", "half of it", "nothing")),
    ],
)  # fmt: skip
def test_a_bad_archive_is_named_with_its_reason(kind, project, files, tmp_path, monkeypatch):
    content, why = archives(files)[kind]
    path = tmp_path / "packed.tar.gz"
    path.write_bytes(content)
    monkeypatch.setenv("CIFAR10_SOURCE", str(path))
    published(project, files)
    said = refused(project, download, "data.mirrors=[]").splitlines()
    assert len(said) == 3 and said[1].startswith(f"  {path}: ") and why in said[1] and said[2].startswith(REMEDY)
    assert not (tmp_path / "planted").exists() and not (tmp_path.parent / "planted").exists()


def hosts(server) -> dict[str, tuple[Callable[[BaseHTTPRequestHandler], None], str]]:
    """Hosts of every bad kind, and what is said of each."""

    def page(request: BaseHTTPRequestHandler) -> None:
        server.content = b"<html>log in</html>"
        server.send(request, "text/html")

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", server.url)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def no_more(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True

    def half(request: BaseHTTPRequestHandler) -> None:
        server.answer = no_more
        server.send(request, only=len(server.content) // 2)

    return {
        "it hangs": (server.hang, "no data for 1 s"),
        "it sends half": (half, "connection closed by the host"),
        "it sends a page": (page, "received a web page instead of the file"),
        "it sends one elsewhere for ever": (elsewhere, "redirects"),
    }


@pytest.mark.parametrize("kind", ["it hangs", "it sends half", "it sends a page", "it sends one elsewhere for ever"])
def test_a_bad_host_is_named_with_its_reason(kind, project, files, server):
    server.answer, why = hosts(server)[kind]
    published(project, files)
    said = refused(project, download, f"data.mirrors=[{server.url}]", "data.timeout=1").splitlines()
    assert len(said) == 3 and said[1].startswith(f"  {server.url}: ") and why in said[1] and said[2].startswith(REMEDY)


def test_a_label_without_a_class_is_refused_by_preprocess(project, files):
    content = unpickle(files["data_batch_1"])
    content[b"labels"][7] = 2
    changed = files | {"data_batch_1": pickle.dumps(content, protocol=2)}
    published(project, changed)
    raw: Path = project.folder / "data" / "raw" / "cifar10"
    raw.mkdir(parents=True)
    for name, content in changed.items():
        (raw / name).write_bytes(content)
    said = refused(project, preprocess)
    assert "training labels range from 0 to 2" in said and said.count("\n") == 1
