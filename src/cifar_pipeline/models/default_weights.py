"""Find and download the weights that timm and torchvision publish for their networks (`model.weights=default`).

Finding them makes no connection. Files are downloaded to the caches that the libraries share with other programs: that
of the Hugging Face Hub (HF_HOME) and that of torch.hub (TORCH_HOME). A download ends within seconds if there is no
network or if the host stalls; the retries of huggingface_hub take up to minutes, torch.hub has no timeout at all.
"""

import hashlib
import importlib.metadata
import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cifar_pipeline.data.sources.base import SourceError
from cifar_pipeline.data.sources.download import describe_request_error, download
from cifar_pipeline.models.zoo import require_known
from cifar_pipeline.utils.atomic import exclusive_lock
from cifar_pipeline.utils.console import progress_bar
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import list_names

Result = TypeVar("Result")

# Seconds until a host must have sent its first answer, including name resolution and all of its addresses.
ANSWER_SECONDS = 5.0
# Timeout of that request's socket: longer, as it only ends a thread that is waited for no more.
SOCKET_SECONDS = 30.0
# Seconds without data after which a download is given up; huggingface_hub reconnects after 10.
SILENCE_SECONDS = 15.0
MAX_BYTES = 1 << 36
# Files of a repository of timm, in order of preference.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# The start of a file's SHA-256 in its name: `resnet18-f37072fd.pth`.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
# Packages whose errors mean that a transfer has failed. (hf_xet, which huggingface_hub uses, raises RuntimeError.)
TRANSFER_PACKAGES = ("httpx2", "huggingface_hub", "requests")


@dataclass(frozen=True)
class DefaultWeights:
    """Weights that a library publishes for a network.

    Attributes:
        title: their name, such as `tf_efficientnet_lite0.in1k` or `ResNet18_Weights.IMAGENET1K_V1`; for those of an
            installed package its name and version.
        input_size: height and width in pixels of the images that they were trained on.
        mean: mean per channel of pixels in [0, 1], subtracted from the input.
        std: standard deviation per channel, by which the input is divided.
        fetch: returns the path of the local file, which is downloaded first if it is not in the library's cache.
            Raises UserError if that fails.
    """

    title: str
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fetch: Callable[[], Path]


def timm_weights(name: str, packages: Mapping[str, str]) -> DefaultWeights:
    """Find the weights that timm publishes for a network.

    Args:
        name: a network of timm, with or without the tag of its weights: `resnet18`, `resnet18.a1_in1k`.
        packages: Python packages by network; one that is installed has the default weights of its network as
            `models/*.pth`, and these are used instead of a download.

    Raises:
        UserError: timm has no such network, or no weights for it; the message suggests others.
    """
    from huggingface_hub import constants

    config = _pretrained_config(name)
    network, tag = config.architecture, config.tag
    title = f"{network}.{tag}" if tag else network
    package = packages.get(network, "") if tag == _pretrained_config(network).tag else ""
    file = _packaged_file(package)
    if file:
        title = f"{package} {_version(package)}".strip()
        fetch: Callable[[], Path] = partial(Path, file)
    elif config.hf_hub_id:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
        fetch = partial(
            _fetch, title, constants.ENDPOINT, packages, partial(_fetch_from_hub, config.hf_hub_id, files, title)
        )
    else:
        fetch = partial(_fetch, title, config.url, packages, partial(_fetch_from_url, config.url))
    return DefaultWeights(title, config.input_size[-1], tuple(config.mean), tuple(config.std), fetch)


def torchvision_weights(name: str) -> DefaultWeights:
    """Find the weights that torchvision publishes for a network.

    Raises:
        UserError: torchvision has no such network; the message suggests others.
    """
    from torchvision import models

    require_known(name, models.list_models(module=models), "torchvision")
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    fetch = partial(_fetch, str(weights), weights.url, {}, partial(_fetch_from_url, weights.url))
    return DefaultWeights(str(weights), preset.crop_size[0], tuple(preset.mean), tuple(preset.std), fetch)


def _pretrained_config(name: str) -> Any:
    """Return timm's description of a network's weights. Raises `UserError` if there are none."""
    import timm

    network, _, tag = name.partition(".")
    require_known(network, timm.list_models(), "timm")
    published = timm.list_pretrained()
    tags = [title for title in published if title.partition(".")[0] == network]
    if not tags:
        others = get_close_matches(network, sorted({title.partition(".")[0] for title in published}), n=3)
        choice = f"choose {' or '.join(others)}, which has weights" if others else "choose another network"
        raise UserError(f"model.name={name}: timm publishes none for it; {choice}, or set model.weights=null.")
    if tag and name not in tags:
        raise UserError(f"model.name={name}: timm publishes no weights of this name, but {list_names(tags)}.")
    return timm.get_pretrained_cfg(name)


def _packaged_file(package: str) -> Path | None:
    """Return the file with weights in an installed Python package; None if there is none."""
    found = importlib.util.find_spec(package) if package else None
    folders = (found and found.submodule_search_locations) or ()
    return next((file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))), None)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a folder that is on Python's path, but not installed by pip
        return ""


def _fetch(title: str, url: str, packages: Mapping[str, str], fetch: Callable[[], Path]) -> Path:
    """Call `fetch`. Raises `UserError` with the alternatives that need no network if it raises `SourceError`."""
    host = urlsplit(url).hostname or url
    try:
        return fetch()
    except SourceError as failure:
        installed = [network for network, package in packages.items() if _packaged_file(package)]
        packaged = f"model=timm model.name={' or '.join(installed)} (installed), " if installed else ""
        raise UserError(
            f"The weights {title} cannot be downloaded from {host} ({failure}): use {packaged}model.weights=PATH "
            "of a file, model.weights=runs:/RUN/best of an earlier training, or model.weights=null."
        ) from failure


def _fetch_from_url(url: str) -> Path:
    """Return the file of a URL in torch.hub's cache, downloaded if it is missing. Raises `SourceError`."""
    from torch.hub import get_dir

    file = Path(get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if not file.is_file():
        with exclusive_lock(file):
            if not file.is_file():
                _require_answer(url)
                check = partial(_check_sha256, name=file.name)
                download(url, file.parent, SILENCE_SECONDS, check, MAX_BYTES).replace(file)
    return file


def _require_answer(url: str) -> None:
    """Raise `SourceError` if the host does not answer within `ANSWER_SECONDS`."""
    import requests

    head = partial(requests.head, url, timeout=SOCKET_SECONDS, allow_redirects=False)
    with _transfer_errors(ANSWER_SECONDS):
        _call_bounded(head, ANSWER_SECONDS, "no answer within")


def _check_sha256(file: Path, name: str) -> None:
    expected = HASH_IN_NAME.search(name)
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if expected and not actual.startswith(expected[1]):
        raise SourceError(f"the received file is not the published one, its SHA-256 is {actual[:12]}...")


def _fetch_from_hub(repository: str, files: Sequence[str], title: str) -> Path:
    """Return the first of `files` that a repository of the Hugging Face Hub has, downloaded if it is not in the cache.

    Raises `SourceError`.
    """
    from huggingface_hub import constants, is_offline_mode

    if cached := _cached_hub_file(repository, files):
        return cached
    if is_offline_mode():
        raise SourceError("HF_HUB_OFFLINE is set")
    folder = Path(constants.HF_HUB_CACHE, f"models--{repository.partition('@')[0].replace('/', '--')}")
    with exclusive_lock(folder.parent / ".locks" / folder.name):
        return _cached_hub_file(repository, files) or _download_from_hub(repository, files, title, folder)


def _cached_hub_file(repository: str, files: Sequence[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    found = (try_to_load_from_cache(name, file, revision=revision or None) for file in files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _download_from_hub(repository: str, files: Sequence[str], title: str, folder: Path) -> Path:
    """Download the first of `files` that exists to the repository's `folder` in the cache of the Hugging Face Hub."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    name, _, revision = repository.partition("@")
    for file in files:
        # One request without retries, because those of `hf_hub_download` take 23 seconds without a network.
        url = hf_hub_url(name, file, revision=revision or None)
        with _transfer_errors(ANSWER_SECONDS), suppress(RemoteEntryNotFoundError):
            ask = partial(get_hf_file_metadata, url, timeout=SOCKET_SECONDS)
            metadata = _call_bounded(ask, ANSWER_SECONDS, "no answer within")
            break
    else:
        raise SourceError(f"{name} has none of the files {', '.join(files)}")
    if not metadata.commit_hash:
        raise SourceError("the answer is not that of a Hugging Face Hub, but of a login page or a proxy")
    shown = 0.0
    with (
        _transfer_errors(SILENCE_SECONDS),
        _new_partial_files_removed(folder / "blobs"),
        progress_bar(f"Downloading {title}", metadata.size, is_bytes=True) as advance,
        _received_bytes() as (count, counter),
    ):

        def progress() -> float:
            nonlocal shown
            advance(count() - shown)
            shown = count()
            return shown

        fetch = partial(hf_hub_download, name, file, revision=revision or None, tqdm_class=counter)
        return Path(_call_bounded(fetch, SILENCE_SECONDS, "no progress for", progress))


@contextmanager
def _received_bytes() -> Iterator[tuple[Callable[[], float], Any]]:
    """Yield a function that counts what `hf_hub_download` has received of a file, and the `tqdm_class` that it needs.

    The bars of huggingface_hub grow by 10 MB, for which a slow connection needs longer than `SILENCE_SECONDS`; the
    bytes in between are those of the response. Only the protocol Xet, without a response, reports every byte.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils.tqdm import tqdm

    bars: list[Any] = []
    responses: list[tuple[Any, float]] = []  # with the position in the file at which each begins

    class Counter(tqdm):
        """Count without a bar on the terminal."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            bars.append(self)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0

    def in_bars() -> float:
        return float(max((bar.n for bar in bars), default=0))

    def note(response: Any) -> None:
        responses.append((response, in_bars() if response.status_code == 206 else 0.0))

    def count() -> float:
        response, start = responses[-1] if responses else (None, 0.0)
        return max(in_bars(), start + float(response.num_bytes_downloaded) if response is not None else 0.0)

    hooks = get_session().event_hooks["response"]
    hooks.append(note)
    try:
        yield count, Counter
    finally:
        hooks.remove(note)


def _call_bounded(
    call: Callable[[], Result], seconds: float, complaint: str, progress: Callable[[], float] = lambda: 0.0
) -> Result:
    """Return the result of `call`. Raises `SourceError` when `progress` has not grown for some seconds.

    The timeout of a socket bounds neither name resolution, nor several addresses of a host, nor retries. The call runs
    in a thread that is left behind in this case, and that does not keep the process from ending.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    done, since = 0.0, time.monotonic()
    while not wait([future], timeout=0.1).done:
        if (now := progress()) > done:
            done, since = now, time.monotonic()
        elif time.monotonic() - since > seconds:
            raise SourceError(f"{complaint} {seconds:g} s")
    progress()
    return future.result()


@contextmanager
def _transfer_errors(seconds: float) -> Iterator[None]:
    """Raise `SourceError` for errors of a transfer; others, such as a full disk, propagate."""
    try:
        yield
    except Exception as error:
        # For a file of another size than announced, huggingface_hub raises an OSError without errno.
        has_failed = isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None)
        if type(error).__module__.partition(".")[0] not in TRANSFER_PACKAGES and not has_failed:
            raise
        raise SourceError(_describe(error, seconds)) from error


def _describe(error: Exception, seconds: float) -> str:
    """Describe the error of a transfer in a few words: the status of HTTP, or what the operating system reports."""
    response = getattr(error, "response", None)
    if response is not None and response.is_error:
        return f"HTTP error {response.status_code} {response.reason_phrase}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror[0].lower() + cause.strerror[1:]
        cause = cause.__cause__ or cause.__context__
    return describe_request_error(error, seconds).rstrip(".")


@contextmanager
def _new_partial_files_removed(folder: Path) -> Iterator[None]:
    """Remove the files of an interrupted download, whose thread cannot be ended and which nothing would resume."""
    before = set(folder.glob("*.incomplete"))
    try:
        yield
    except BaseException:
        for file in set(folder.glob("*.incomplete")) - before:
            with suppress(OSError):  # Windows cannot remove open files
                file.unlink()
        raise
