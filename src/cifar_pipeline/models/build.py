"""Build a model: a network with input normalization, test-time augmentation and an output activation.

An output activation maps logits `[N, K]`, float32 or float64, to probabilities `[N, K]` of the same dtype whose rows
sum to 1. Each file of conf/loss/ names the activation that fits its loss.

Also builds the configured network, and saves and loads its weights. Imports no Lightning: `evaluate` needs none.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cifar_pipeline.config.validation import target_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.models.pretrained import WHITE, PretrainedWeights, load_into, resolve_input
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

# `normalization.mean` and `normalization.std`: those of the pretrained weights.
MODEL = "model"


class NormalizedModel(nn.Module):
    """Normalize raw images on the device, before the network: `[N, H, W, C] uint8` in, logits `[N, K]` out.

    Args:
        net: maps normalized images `[N, C, S, S] float` to logits.
        mean: subtracted from the pixels scaled to [0, 1]; one number, or one for each of the C channels.
        std: divisor after the subtraction; one number, or one for each channel.
        size: height and width of the raw images in pixels.
        network_input: size and channels of the images that the network sees; None: those of the raw images.

    Raises:
        UserError: a standard deviation is not positive, or mean and std have different numbers of channels.
    """

    scale: Tensor
    shift: Tensor
    resize: Tensor

    def __init__(
        self,
        net: nn.Module,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        size: int = 0,
        network_input: NetworkInput | None = None,
    ) -> None:
        super().__init__()
        channel_mean, channel_std = _per_channel(mean), _per_channel(std)
        if not bool((channel_std > 0).all()):
            raise UserError(
                f"normalization.std={std} must be positive in every channel. Write normalization=half or other values."
            )
        if 1 not in (len(channel_mean), len(channel_std)) and len(channel_mean) != len(channel_std):
            raise UserError(
                f"normalization.mean={mean} and normalization.std={std} must have the same number of values."
            )
        self.net = net
        self.network_input = network_input or NetworkInput(size, max(len(channel_mean), len(channel_std)), False)
        # (x / 255 - mean) / std as one multiplication and one addition, because overhead dominates at small batches.
        self.register_buffer("scale", (1 / (WHITE * channel_std)).to(torch.get_default_dtype()))
        self.register_buffer("shift", (-channel_mean / channel_std).to(torch.get_default_dtype()))
        self.size, self.crop = size, self.network_input.crop or size
        self.margin = (size - self.crop) // 2
        self.resizes = self.network_input.size != self.crop
        if self.resizes:
            # Of every checkpoint the same, hence not saved with the weights.
            self.register_buffer("resize", resize_matrix(self.crop, self.network_input.size), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize raw images `[N, H, W, C] uint8` to `[N, C, S, S] float`, channels_last in memory.

        Images that have the network's size already, as some augmentations make them, are neither cropped nor resized. A
        network that sees colors gets gray images with equal channels.
        """
        is_seen = images.shape[1] == self.network_input.size
        if self.margin and not is_seen:
            end = self.margin + self.crop
            images = images[:, self.margin : end, self.margin : end]
        # Before the permutation, while the channels are last, so that one number per channel broadcasts.
        pixels = torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
        pixels = pixels.permute(0, 3, 1, 2)
        if is_seen or not self.resizes:
            return pixels
        # In full precision, because bfloat16 has fewer bits than a pixel.
        with torch.autocast(pixels.device.type, enabled=False):
            resized = self.resize @ (pixels.contiguous() @ self.resize.T)
        return resized.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `[N, K]` of raw images `[N, H, W, C] uint8`."""
        logits: Tensor = self.net(self.normalize(images))
        return logits


def resize_matrix(size: int, new_size: int) -> Tensor:
    """Return the matrix `[new_size, size]` that resizes a column of pixels: bicubic, antialiased where it shrinks them.

    Resizing is linear and acts on each axis alone, so an image is resized by `matrix @ image @ matrix.T`. Products of
    matrices are exported to every format, and are as deterministic and differentiable on a GPU as on a CPU, which
    torch's own resizing is not.
    """
    identity = torch.eye(size, dtype=torch.float64).view(1, 1, size, size)
    options: dict[str, Any] = {"mode": "bicubic", "antialias": True, "align_corners": False}
    return nn.functional.interpolate(identity, (new_size, size), **options)[0, 0].to(torch.get_default_dtype())


def _per_channel(numbers: float | Sequence[float]) -> Tensor:
    # Double precision until mean and std are folded; with values also where a model is built for its shapes only.
    channels = [numbers] if isinstance(numbers, int | float) else list(numbers)
    return torch.tensor(channels, dtype=torch.float64, device="cpu")


class TestTimeAugmentation(nn.Module):
    """Average a network's logits over flipped and shifted copies: normalized `[N, C, H, W] float` to logits `[N, K]`.

    Args:
        net: maps normalized images to logits.
        flip: whether to add the horizontally flipped images.
        shift: pixels by which to add copies shifted up-left and down-right, with reflected borders; each of the two
            has half the weight of the unshifted images. 0: no shifted copies.
        size: the smaller of the images' height and width.

    Raises:
        UserError: the shift is not smaller than the images.
    """

    __test__ = False  # no test class, although its name begins with Test

    def __init__(self, net: nn.Module, flip: bool, shift: int, size: int) -> None:
        super().__init__()
        if shift >= size:
            raise UserError(f"tta.shift={shift} must be smaller than the image size, {size} pixels.")
        self.net, self.flip, self.shift = net, flip, shift

    def forward(self, images: Tensor) -> Tensor:
        """Compute the weighted mean of the logits `[N, K]` over the augmented copies of images `[N, C, H, W]`."""
        shifted, weights = zip(*self._shifted_copies(images), strict=True)
        copies, orientations = list(shifted), 1
        if self.flip:
            copies, orientations = [*shifted, *(copy.flip(3) for copy in shifted)], 2
        copy_weights = images.new_tensor([weight / orientations for weight in weights] * orientations)
        # In one batch, so that an exported graph contains the network once.
        logits: Tensor = self.net(torch.cat(copies))
        return (logits.reshape(len(copies), -1, logits.shape[1]) * copy_weights[:, None, None]).sum(0)

    def _shifted_copies(self, images: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield the images, their shifted copies, and the weight of each."""
        if not self.shift:
            yield images, 1.0
            return
        offset = 2 * self.shift
        padded = nn.functional.pad(images, [self.shift] * 4, mode="reflect")
        yield images, 0.5
        yield padded[:, :, offset:, offset:], 0.25
        yield padded[:, :, :-offset, :-offset], 0.25


def softmax(logits: Tensor) -> Tensor:
    """Compute `p_k = exp(z_k) / sum_j exp(z_j)`, whose negative log-likelihood is cross-entropy."""
    return torch.softmax(logits, dim=1)


def normalized_sigmoid(logits: Tensor) -> Tensor:
    """Compute `p_k = s(z_k) / sum_j s(z_j)`, `s` the logistic sigmoid: for one-vs-rest losses."""
    # Computed from logarithms, because the quotient is 0 / 0 where every sigmoid underflows.
    return torch.softmax(logsigmoid(logits), dim=1)


def clipped_linear(logits: Tensor) -> Tensor:
    """Compute `p_k = max(z_k, 0) / sum_j max(z_j, 0)`, or 1/K if none is positive: for outputs near 0 or 1."""
    clipped = logits.clamp(min=0)
    total = clipped.sum(dim=1, keepdim=True)
    return torch.where(total > 0, clipped / total.where(total > 0, 1), 1 / logits.shape[1])


OUTPUT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    activation.__name__: activation for activation in (softmax, normalized_sigmoid, clipped_linear)
}


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the output activation of this name.

    Raises:
        UserError: there is none; the message lists the names and the closest match.
    """
    if name not in OUTPUT_ACTIVATIONS:
        close = get_close_matches(name, OUTPUT_ACTIVATIONS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"loss.output_activation={name} must be one of {', '.join(OUTPUT_ACTIVATIONS)}.{hint}")
    return OUTPUT_ACTIVATIONS[name]


def save_weights(net: nn.Module, path: Path) -> None:
    """Write the state dict of `net` (a `NormalizedModel`), as if without test-time augmentation, to `path`."""
    # Copies, because safetensors refuses tensors that share memory.
    save_file(
        {name: value.detach().cpu().clone().contiguous() for name, value in _named_tensors(net).items()}, str(path)
    )


def load_weights(net: nn.Module, content: bytes, path: Path) -> None:
    """Load weights that `save_weights` wrote into a network of the same configuration.

    `content` is that of the file at `path`, which the message names.

    Raises:
        UserError: the file is damaged, or contains another network's weights.
    """
    try:
        weights = load(content)
    except SafetensorError as error:
        reason = one_line(error)[:150]
        raise UserError(f"{path} can't be read ({reason}): run `dvc repro -f train` to recreate it.") from None
    tensors = _named_tensors(net)
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in tensors.items()}:
        raise UserError(
            f"{path} contains the weights of another network than the one of conf/ and params.yaml: run "
            "`dvc repro train` to train this one."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(weights[name])


def _named_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network by names that do not depend on test-time augmentation."""
    assert isinstance(net, NormalizedModel)
    inner = net.net.net if isinstance(net.net, TestTimeAugmentation) else net.net
    state: dict[str, Tensor] = {f"net.{name}": value for name, value in inner.state_dict().items()}
    return {"scale": net.scale, "shift": net.shift, **state}


class DatasetShape(Protocol):
    """Properties of a dataset that a network needs: `shape` is `(H, W, C)`; `mean`, `std` are of pixels in [0, 1]."""

    @property
    def title(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


def build_model(config: DictConfig, dataset: Dataset, weights: PretrainedWeights | None = None) -> NormalizedModel:
    """Build the network with new or pretrained weights, preceded by input normalization.

    If the network has a method `initialize`, call it with the first training images, normalized: `[N, C, H, W] float`.

    Args:
        config: the composed configuration.
        dataset: the processed dataset.
        weights: those to start from.

    Raises:
        UserError: see `build_bare_model` and `load_into`.
    """
    if weights is None and MODEL in (config.normalization.mean, config.normalization.std):
        raise UserError(
            "normalization=model means the mean and standard deviation of pretrained weights, but model.weights is "
            "null: write model.weights=default, or choose normalization=half or per_channel."
        )
    model = build_untrained_model(config, dataset, weights)
    if weights is not None:
        load_into(model.net, weights, dataset.classes, config.model.get("reset_classifier", False))
        return model
    initialize: Any = getattr(model.net, "initialize", None)
    if initialize is not None:
        images, _ = dataset.split("train")
        count = model.network_input.limit_batch(config.trainer.eval_batch_size)
        initialize(model.normalize(torch.from_numpy(images[:count])))
    return model


def build_untrained_model(
    config: DictConfig, dataset: DatasetShape, weights: PretrainedWeights | None
) -> NormalizedModel:
    """Build the network that fits `weights`, with random ones.

    Raises:
        UserError: what `build_bare_model` raises, or the images have other channels than those that the weights were
            trained on and are not gray.
    """
    network_input = resolve_input(config.model, dataset.shape, weights)
    model = build_bare_model(config, dataset, network_input, weights)
    channels = network_input.channels
    expected = (weights.channels(model.net) if weights is not None else None) or channels
    if weights is None or expected == channels:
        return model
    if channels != 1:
        raise UserError(
            f"model.weights={weights.address} were trained on images of {expected} channel{'s' * (expected != 1)}, but "
            f"these have {channels}: choose other weights or other data."
        )
    return build_bare_model(config, dataset, replace(network_input, channels=expected), weights)


def build_bare_model(
    config: DictConfig, dataset: DatasetShape, network_input: NetworkInput, weights: PretrainedWeights | None = None
) -> NormalizedModel:
    """Build the network preceded by input normalization, with random weights: for weights to be loaded.

    Args:
        config: the composed configuration.
        dataset: shape, classes and statistics of the images.
        network_input: what the network is built for.
        weights: those whose mean and standard deviation `normalization=model` means; None if a file of `save_weights`
            is loaded, which has both.

    Raises:
        UserError: the images are not square, or the normalization has another number of channels.
    """
    size, width, _ = dataset.shape
    if size != width:
        raise UserError(
            f"The images of {dataset.title} are {width} wide and {size} high, but the networks take square images. "
            "Let the data source yield images of equal height and width."
        )
    values = target_config(config.model, "model")
    if "is_pretrained" in inspect.signature(get_object(values["_target_"])).parameters:
        values["is_pretrained"] = network_input.is_pretrained
    net = instantiate(values, channels=network_input.channels, size=network_input.size, classes=len(dataset.classes))
    mean, std = (_statistics(config, dataset, name, network_input.channels, weights) for name in ("mean", "std"))
    return NormalizedModel(net, mean, std, size, network_input)


def _statistics(
    config: DictConfig, dataset: DatasetShape, name: str, channels: int, weights: PretrainedWeights | None
) -> float | Sequence[float]:
    """Return `mean` or `std` of conf/normalization, of the dataset where it is null, or of the weights."""
    configured = config.normalization[name]
    if configured is None:
        configured = getattr(dataset, name)
    elif configured == MODEL:
        known: Sequence[float] | None = getattr(weights, name) if weights is not None else (0.5,)
        if weights is not None and known is None:
            raise UserError(
                f"normalization=model: the mean and standard deviation of {weights.title} are unknown; choose "
                "normalization=per_channel, or write normalization.mean and normalization.std."
            )
        configured = known
    if not isinstance(configured, Sequence):
        return float(configured) if channels == dataset.shape[2] else [float(configured)] * channels
    if len(configured) not in {1, channels, dataset.shape[2]}:
        raise UserError(
            f"normalization.{name}={list(configured)} has {len(configured)} numbers, but the images of {dataset.title} "
            f"have {dataset.shape[2]} channels. Write one number or {dataset.shape[2]}."
        )
    expand = len(configured) == 1 and (channels != dataset.shape[2] or config.normalization[name] == MODEL)
    return list(configured) * channels if expand else configured


def build_inference_model(net: nn.Module, config: DictConfig) -> NormalizedModel:
    """Copy the trained network and add the test-time augmentation of conf/tta, as it is exported.

    The copy has single precision, also after a training whose weights have another one.
    """
    inference_model = copy.deepcopy(net).float()
    assert isinstance(inference_model, NormalizedModel)
    if config.tta.flip or config.tta.shift:
        size = inference_model.network_input.size
        inference_model.net = TestTimeAugmentation(inference_model.net, config.tta.flip, config.tta.shift, size)
    return inference_model
