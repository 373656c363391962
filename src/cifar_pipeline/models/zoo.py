"""Build networks of torchvision and timm by name, without their weights, with the stem adapted to small images.

The stems of these networks divide height and width by four, which suits images of 224 pixels but not of 32. For small
images the first convolution becomes 3x3 with stride 1 and the pooling after it is dropped, as in K. He et al., "Deep
Residual Learning for Image Recognition", 2015, section 4.2. A network for pretrained weights keeps its stem.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

# Largest height and width for which the stem is adapted.
SMALL_IMAGE = 64
# Patch size of a vision transformer for small images; ImageNet models use 14 or more.
SMALL_PATCH = 4
# Image sizes to try when a network does not accept the size of the dataset.
CANDIDATE_SIZES = (16, 32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 448)


def torchvision_network(channels: int, size: int, classes: int, name: str, is_pretrained: bool = False) -> nn.Module:
    """Build a network of torchvision: normalized images `[N, channels, size, size]` to logits `[N, classes]`.

    With `is_pretrained`, the stem is the library's own, for weights to be loaded.

    Raises:
        UserError: torchvision has no such network, or it accepts no images of this size; the message suggests one.
    """
    from torchvision import models

    require_known(name, models.list_models(module=models), "torchvision")
    return _build_or_suggest_size(
        partial(_build_torchvision, is_pretrained=is_pretrained), channels, size, classes, name
    )


def timm_network(channels: int, size: int, classes: int, name: str, is_pretrained: bool = False) -> nn.Module:
    """Build a network of timm: normalized images `[N, channels, size, size]` to logits `[N, classes]`.

    With `is_pretrained`, the stem is the library's own, for weights to be loaded.

    Raises:
        UserError: timm has no such network, or it does not accept images of this size; the message suggests one.
    """
    import timm

    require_known(name.partition(".")[0], timm.list_models(), "timm")
    build = partial(_build_timm, is_pretrained=is_pretrained)
    return _build_or_suggest_size(build, channels, size, classes, name)


def _build_torchvision(channels: int, size: int, classes: int, name: str, is_pretrained: bool) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if name.startswith("vit"):
        if size <= SMALL_IMAGE and not is_pretrained:
            return _vision_transformer(channels, size, classes, name)
        options = {"image_size": size}
    elif name in ("googlenet", "inception_v3"):
        # Given explicitly, because torchvision warns that the default of init_weights will change.
        options = {"aux_logits": False, "init_weights": True}
    net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if is_pretrained:
        return net
    if name == "inception_v3" and size <= SMALL_IMAGE:
        net.maxpool1, net.maxpool2 = nn.Identity(), nn.Identity()
    return _adapt_stem(net, channels, size)


def _build_timm(channels: int, size: int, classes: int, name: str, is_pretrained: bool) -> nn.Module:
    import timm

    published = timm.get_pretrained_cfg(name) if is_pretrained else None
    # Only networks with patches take, and need, the size.
    options: dict[str, Any] = {"img_size": size} if published is not None and published.fixed_input_size else {}
    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **options)
    return net if is_pretrained else _adapt_stem(net, channels, size)


def _adapt_stem(net: nn.Module, channels: int, size: int) -> nn.Module:
    """Replace the first convolution of `net` for `channels` and, for small images, for stride 1 without pooling."""
    stem, convolution = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    stride = convolution.stride
    if size <= SMALL_IMAGE and max(stride) > 1:
        net.set_submodule(stem, _convolution(convolution, channels, kernel=3, stride=1, padding=1))
        _drop_pooling(net, stem)
    elif convolution.in_channels != channels:
        kernel, padding = convolution.kernel_size, convolution.padding
        net.set_submodule(stem, _convolution(convolution, channels, kernel, stride, padding))
    return net


def _vision_transformer(channels: int, size: int, classes: int, name: str) -> nn.Module:
    """Build a vision transformer of torchvision with 4x4 patches, which its builders do not offer."""
    from torchvision import models

    patch_size = int(name.rpartition("_")[2])
    net: nn.Module = models.get_model(
        name, weights=None, num_classes=classes, image_size=size // SMALL_PATCH * patch_size
    )
    net.image_size, net.patch_size = size, SMALL_PATCH  # type: ignore[assignment]
    net.conv_proj = nn.Conv2d(channels, net.hidden_dim, SMALL_PATCH, SMALL_PATCH)  # type: ignore[arg-type]
    return net


def _convolution(original: nn.Conv2d, channels: int, kernel: Any, stride: Any, padding: Any) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, original.out_channels, kernel, stride, padding, bias=original.bias is not None)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _drop_pooling(net: nn.Module, stem: str) -> None:
    """Drop the max pooling between the convolution `stem` and the next convolution, if there is one."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d) and name != stem:
            return
        if isinstance(module, nn.MaxPool2d):
            net.set_submodule(name, nn.Identity())
            return


def _check_forward(net: nn.Module, channels: int, size: int, classes: int, name: str) -> nn.Module:
    """Return the network after a forward pass with images of this shape, whose errors propagate."""
    was_training = net.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = net.eval()(torch.zeros(2, channels, size, size))
    net.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        raise UserError(f"model.name={name} does not return one logit per class. Choose another network.")
    return net


def _build_or_suggest_size(
    build: Callable[..., nn.Module], channels: int, size: int, classes: int, name: str
) -> nn.Module:
    """Call `build`. Raises `UserError` with the nearest accepted size if the network does not accept such images."""

    def checked(candidate: int) -> nn.Module:
        return _check_forward(build(channels, candidate, classes, name), channels, candidate, classes, name)

    def accepts(candidate: int) -> bool:
        try:
            with torch.device("meta"):  # computes shapes only
                checked(candidate)
        except Exception:
            return False
        return True

    try:
        return checked(size)
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error)[:120].rstrip(".!")
        candidates = sorted(CANDIDATE_SIZES, key=lambda candidate: abs(candidate - size))
        accepted = next((candidate for candidate in candidates if accepts(candidate)), None)
        size_hint = f"It accepts {accepted}x{accepted}: set model.input_size={accepted} or choose another"
        hint = size_hint if accepted else "Choose another"
        raise UserError(
            f"model.name={name} does not accept images of {size}x{size} with {channels} channels ({reason}). "
            f"{hint} network."
        ) from error


def require_known(name: str, known: list[str], package: str) -> None:
    """Raise `UserError` with similar names if `name` is not among the networks of a package."""
    if name not in known:
        close = get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"model.name={name}: {package} has no classification network of this name.{hint}")
