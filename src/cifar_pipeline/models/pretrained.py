"""Load pretrained weights into a network: those that a library publishes, a file's, or those of an earlier training.

`model.weights` names them. Files are read as tensors; no code in them is executed.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from cifar_pipeline.config.params import DEFAULT_WEIGHTS, MLFLOW_SCHEMES
from cifar_pipeline.models.default_weights import DefaultWeights
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import changed_message, has_changed
from cifar_pipeline.utils.paths import MLMODEL_FILE, WEIGHTS_FILE
from cifar_pipeline.utils.safe_io import parse_yaml, read_text
from cifar_pipeline.utils.text import compose_characters, list_names, one_line

# The number of tensors that a message lists.
WHITE = 255
# Parts of torch's and timm's messages about a pickle that holds more than tensors and plain values.
PYTHON_OBJECT_ERRORS = ("Unsupported global", "Unsupported operand", "pickle globals")

# Yields the folder of a model: address, revision in DVC, checkpoint.
ResolveModel = Callable[[str, str, str], AbstractContextManager[Path]]


@dataclass(frozen=True)
class PretrainedWeights:
    """The tensors of an earlier training, and what is known about it.

    Attributes:
        address: `model.weights`, for messages.
        title: what the weights are, such as `tf_efficientnet_lite0.in1k`.
        sha256: of the file.
        tensors: by the network's own names.
        mean, std: of the pixels, one for each channel, scaled to [0, 1]; None if unknown. Those of a file are taken to
            be those of the network's published weights.
        input_size: height and width in pixels; None if unknown.
        classes: names of a former training's classes; None for other weights.
        is_pretrained: see `NetworkInput`.
        maps_by_order: the tensors have the network's order, but maybe other names.
    """

    address: str
    title: str
    sha256: str
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: int | None = None
    classes: tuple[str, ...] | None = None
    is_pretrained: bool = True
    maps_by_order: bool = False

    def channels(self, net: nn.Module) -> int | None:
        """Return the color channels of the images that the weights of `net` were trained on; None if unknown."""
        stem = next((name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)), "")
        weight = self.tensors.get(f"{stem}.weight")
        if weight is None and self.maps_by_order:
            weight = next((value for value in self.tensors.values() if value.ndim == 4), None)
        return weight.shape[1] if weight is not None and weight.ndim == 4 else None

    def record(self) -> dict[str, str]:
        """Return what metadata and run say about the weights."""
        return {"address": self.address, "title": self.title, "sha256": self.sha256}


def default_weights(model: Mapping[str, Any]) -> DefaultWeights:
    """Return the published weights of the network that the configuration `model` names, without downloading them.

    Raises:
        UserError: the option has no published weights, or the network has none.
    """
    lookup = model.get("default_weights")
    if lookup is None:
        raise UserError(
            f"{model['_target_']} has no published weights: choose model=timm or model=torchvision, or write the path "
            "of a file or runs:/RUN/best as model.weights."
        )
    found: DefaultWeights = instantiate(lookup, name=model["name"])
    return found


def load_pretrained(model: DictConfig, resolve_model: ResolveModel) -> PretrainedWeights | None:
    """Read the weights that `model.weights` names; None for `null`.

    Args:
        model: the configuration of the network.
        resolve_model: opens the folder of a model of this project.

    Raises:
        UserError: there are no such weights, or the file is damaged or holds something else than tensors.
    """
    address = model.get("weights")
    if address is None:
        return None
    if address == DEFAULT_WEIGHTS:
        found = default_weights(model)
        path = found.fetch()
        weights = _read_file(path, address)
        # Files of safetensors list their tensors by name.
        maps_by_order = path.suffix != ".safetensors"
        return replace(weights, title=found.title, maps_by_order=maps_by_order, **_input_of(found))
    path = Path(address).expanduser()
    if address.startswith(MLFLOW_SCHEMES) or path.is_dir():
        with resolve_model(address, "", "best") as folder:
            return _read_own(folder, address)
    if not path.is_file():
        raise UserError(
            f"model.weights={address}: there is no such file or folder. Write default, a path, models:/NAME@ALIAS or "
            "runs:/RUN/best."
        )
    weights = _read_file(path, address)
    try:
        return replace(weights, **_input_of(default_weights(model)))
    except UserError:
        return weights  # the network has no published ones, so that nothing is known


def _input_of(found: DefaultWeights) -> dict[str, Any]:
    """Return mean, standard deviation and size of the images that published weights were trained on."""
    return {"mean": found.mean, "std": found.std, "input_size": found.input_size}


def _read_file(path: Path, address: str) -> PretrainedWeights:
    """Read a file of torch or safetensors that holds a state dict, maybe among other things."""
    from timm.models import load_state_dict

    try:
        content = load_state_dict(str(path), weights_only=True)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:  # every kind of damage has an exception of its own
        reason = one_line(error)[:150].rstrip(".")
        if any(sign in str(error) for sign in PYTHON_OBJECT_ERRORS):
            reason = "it holds Python objects, which could execute code, instead of tensors only"
        raise UserError(f"model.weights={address}: {path} can't be read as a file of weights ({reason}).") from None
    if not tensors:
        raise UserError(f"model.weights={address}: {path} holds no tensors.")
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"model.weights={address}: {name} has values that are not finite: choose other weights.")
    return PretrainedWeights(address, path.name, _sha256(path.read_bytes()), tensors)


def _read_own(folder: Path, address: str) -> PretrainedWeights:
    """Read the weights of a model that this project has made."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = (folder / WEIGHTS_FILE).read_bytes()
        tensors = load(content)
        metadata = parse_yaml(read_text(folder / MLMODEL_FILE))["metadata"]
        scale, shift = (tensors.pop(name).double() for name in ("scale", "shift"))
        classes = tuple(map(str, metadata["classes"]))
        network = NetworkInput.read(metadata, tuple(map(int, metadata["shape"])))  # type: ignore[arg-type]
        title = f"{address}, trained on {metadata['dataset']['name']}"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model.weights={address} is not a model of this project, or damaged ({one_line(error)[:100]})."
        ) from None
    if has_changed(folder / WEIGHTS_FILE):
        raise UserError(f"model.weights={address}: {changed_message(folder / WEIGHTS_FILE)}")
    std = 1 / (WHITE * scale)
    return PretrainedWeights(
        address,
        title,
        _sha256(content),
        {name.removeprefix("net."): value for name, value in tensors.items()},
        mean=tuple((-shift * std).tolist()),
        std=tuple(std.tolist()),
        input_size=network.size,
        classes=classes,
        is_pretrained=network.is_pretrained,
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def resolve_input(
    model: Mapping[str, Any], shape: tuple[int, int, int], weights: PretrainedWeights | None
) -> NetworkInput:
    """Return what the network is built for: `model.input_size`, or the size that suits weights and images.

    Without `model.input_size` it is the size at which the weights were trained, but at most `model.max_upscaling` times
    that of the images, and without weights that of the images. Of larger images it sees the central part,
    `model.crop_fraction` of their size or more.

    Args:
        model: the configuration of the network.
        shape: of the images, `(H, W, C)`.
        weights: those it starts from.
    """
    size, _, channels = shape
    seen = model.get("input_size") or (size if weights is None else _suitable_size(model, size, weights))
    crop = min(size, max(seen, round(size * model.get("crop_fraction", 1))))
    return NetworkInput(seen, channels, weights is not None and weights.is_pretrained, crop if crop < size else None)


def _suitable_size(model: Mapping[str, Any], size: int, weights: PretrainedWeights) -> int:
    """Return the size at which the weights were trained, but at most what images of `size` make sensible."""
    largest = max(round(size * model["max_upscaling"]), model["min_input_size"]) if "max_upscaling" in model else size
    return min(weights.input_size or size, largest)


def load_into(net: nn.Module, weights: PretrainedWeights, classes: tuple[str, ...], reset_classifier: bool) -> None:
    """Copy pretrained weights into `net`; its classifier becomes zero unless theirs has the same classes.

    Args:
        net: the network, without its normalization.
        weights: the weights.
        classes: names of the data's classes.
        reset_classifier: whether the classifier becomes zero in any case.

    Raises:
        UserError: a tensor other than the classifier's does not fit, or the classes are others than those of the former
            training.
    """
    state = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    tensors = {name: value for name, value in weights.tensors.items() if not name.endswith("num_batches_tracked")}
    if weights.maps_by_order and not set(state) & set(tensors) and len(state) == len(tensors):
        tensors = dict(zip(state, tensors.values(), strict=True))
    tensors = _library_filter(net, tensors)
    head = find_head(net, len(classes))
    head_names = {name for name in {*state, *tensors} if head and name.startswith(f"{head}.")}
    fits = all(name in state and name in tensors and state[name].shape == tensors[name].shape for name in head_names)
    has_others = not _are_same_names(weights.classes or classes, classes)
    if weights.classes is not None and has_others and not reset_classifier:
        raise UserError(
            f"model.weights={weights.address} has {_list_classes(weights.classes)}, but the data has "
            f"{_list_classes(classes)}: write model.reset_classifier=true to start with a new classifier."
        )
    keeps_head = fits and not reset_classifier
    skipped = set() if keeps_head else head_names
    _require_fit(net, weights, state, tensors, skipped)
    with torch.no_grad():
        for name in state.keys() - skipped:
            state[name].copy_(tensors[name])
        if head and not keeps_head:
            # As in A. Kolesnikov et al., "Big Transfer (BiT)", 2019: random logits would only have to be unlearned.
            for parameter in net.get_submodule(head).parameters():
                parameter.zero_()


def _are_same_names(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Return whether names are the same text in the same order; macOS decomposes `é` into two characters."""
    return list(map(compose_characters, names)) == list(map(compose_characters, others))


def _library_filter(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapt tensors to a network of timm as timm does, such as position embeddings to another image size."""
    filter_fn = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    return dict(filter_fn(tensors, net)) if filter_fn is not None and hasattr(net, "pretrained_cfg") else tensors


def _require_fit(
    net: nn.Module,
    weights: PretrainedWeights,
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    skipped: set[str],
) -> None:
    """Raise UserError with the names of the tensors that only one side has, or whose shapes differ."""
    problems = [
        f"{name} is {list(tensors[name].shape)} instead of {list(state[name].shape)}"
        for name in state
        if name in tensors and name not in skipped and state[name].shape != tensors[name].shape
    ]
    problems += [f"{name} is missing" for name in state if name not in tensors and name not in skipped]
    problems += [f"the network has no {name}" for name in tensors if name not in state and name not in skipped]
    if problems:
        raise UserError(
            f"model.weights={weights.address} ({weights.title}) does not fit this network: "
            f"{list_names(problems, '; ')}. Choose the network that the weights are of."
        )


def find_head(net: nn.Module, classes: int) -> str:
    """Return the name of the layer that computes the logits; empty if it is not one linear layer or 1x1 convolution.

    It is the classifier that timm names, or else the last layer with parameters.
    """
    modules = dict(net.named_modules())
    if hasattr(net, "get_classifier"):
        classifier: Any = net.get_classifier()  # type: ignore[operator]
        candidates: Iterable[str] = [name for name, module in modules.items() if module is classifier]
    else:
        candidates = [name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
    name = next(reversed([*candidates]), "")
    layer = modules.get(name)
    is_linear = isinstance(layer, nn.Linear) and layer.out_features == classes
    is_pointwise = isinstance(layer, nn.Conv2d) and layer.out_channels == classes and layer.kernel_size == (1, 1)
    return name if is_linear or is_pointwise else ""


def _list_classes(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({list_names(classes)})"
