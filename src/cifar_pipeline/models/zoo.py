"""Networks of torchvision and timm by name, untrained, their first layers fitted to small images.

These networks are made for images of 224 pixels and bring them to a quarter in the first layers, which of an image of
32 leaves hardly anything. K. He et al. ("Deep Residual Learning for Image Recognition", 2015, section 4.2) begin with a
convolution of 3x3 and stride 1 there.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cifar_pipeline.utils.errors import UserError

# Up to this height and width the first layers keep the size.
SMALL_IMAGE = 64
# Height and width of a vision transformer's patches there; on ImageNet they have 14 or more.
SMALL_PATCH = 4
# Heights and widths among which a network that refuses one is asked for another.
CANDIDATE_SIZES = (16, 32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 448)


def torchvision_network(channels: int, size: int, classes: int, name: str) -> nn.Module:
    """A classification network of torchvision: normalised images `[N, channels, size, size]` to logits `[N, classes]`.

    Raises:
        Refusal: torchvision has none of this name, or it can't take such images; then it says of what size it can.
    """
    from torchvision import models

    _require_known(name, models.list_models(module=models), "torchvision")
    return _build_or_suggest_size(_of_torchvision, channels, size, classes, name)


def timm_network(channels: int, size: int, classes: int, name: str) -> nn.Module:
    """A network of timm: normalised images `[N, channels, size, size]` to logits `[N, classes]`.

    Raises:
        Refusal: timm has none of this name, or it can't take such images; then it says of what size it can.
    """
    import timm

    _require_known(name, timm.list_models(), "timm")
    return _build_or_suggest_size(_of_timm, channels, size, classes, name)


def _of_torchvision(channels: int, size: int, classes: int, name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if name.startswith("vit"):
        if size <= SMALL_IMAGE:
            return _check_forward(_vision_transformer(channels, size, classes, name), channels, size, classes, name)
        options = {"image_size": size}
    elif name in ("googlenet", "inception_v3"):
        # torchvision announces that the second of these will change.
        options = {"aux_logits": False, "init_weights": True}
    net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    if name == "inception_v3" and size <= SMALL_IMAGE:
        net.maxpool1, net.maxpool2 = nn.Identity(), nn.Identity()
    return _check_forward(_adapt_stem(net, channels, size), channels, size, classes, name)


def _of_timm(channels: int, size: int, classes: int, name: str) -> nn.Module:
    import timm

    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
    return _check_forward(_adapt_stem(net, channels, size), channels, size, classes, name)


def _adapt_stem(net: nn.Module, channels: int, size: int) -> nn.Module:
    """`net` for images of so many channels and, where they are small, with a stem that keeps their size."""
    first, convolution = next((at, module) for at, module in net.named_modules() if isinstance(module, nn.Conv2d))
    stride = convolution.stride
    if size <= SMALL_IMAGE and max(stride) > 1:
        net.set_submodule(first, _convolution(convolution, channels, kernel=3, stride=1, padding=1))
        _drop_pooling(net, first)
    elif convolution.in_channels != channels:
        kernel, padding = convolution.kernel_size, convolution.padding
        net.set_submodule(first, _convolution(convolution, channels, kernel, stride, padding))
    return net


def _vision_transformer(channels: int, size: int, classes: int, name: str) -> nn.Module:
    """One of torchvision's that cuts small images into patches of 4x4; its builders know those of ImageNet alone."""
    from torchvision import models

    its_patch = int(name.rpartition("_")[2])
    net: nn.Module = models.get_model(
        name, weights=None, num_classes=classes, image_size=size // SMALL_PATCH * its_patch
    )
    net.image_size, net.patch_size = size, SMALL_PATCH  # type: ignore[assignment]
    net.conv_proj = nn.Conv2d(channels, net.hidden_dim, SMALL_PATCH, SMALL_PATCH)  # type: ignore[arg-type]
    return net


def _convolution(like: nn.Conv2d, channels: int, kernel: Any, stride: Any, padding: Any) -> nn.Conv2d:
    made = nn.Conv2d(channels, like.out_channels, kernel, stride, padding, bias=like.bias is not None)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def _drop_pooling(net: nn.Module, first: str) -> None:
    """Leave out the pooling that belongs to the first layers: that before any other convolution."""
    for at, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d) and at != first:
            return
        if isinstance(module, nn.MaxPool2d):
            net.set_submodule(at, nn.Identity())
            return


def _check_forward(net: nn.Module, channels: int, size: int, classes: int, name: str) -> nn.Module:
    """The network, once it has answered for such images. Raises whatever it does where it can't."""
    trains = net.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = net.eval()(torch.zeros(2, channels, size, size))
    net.train(trains)
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        raise UserError(f"model.name={name} does not answer with a logit for each class: choose another.")
    return net


def _build_or_suggest_size(
    build: Callable[..., nn.Module], channels: int, size: int, classes: int, name: str
) -> nn.Module:
    """The network that `build` makes. Raises Refusal where it can't take such images, with the nearest size it can."""

    def takes(other: int) -> bool:
        try:
            with torch.device("meta"):  # shapes alone: in no time
                build(channels, other, classes, name)
        except Exception:
            return False
        return True

    try:
        return build(channels, size, classes, name)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120].rstrip(".!")
        fits = next(
            (other for other in sorted(CANDIDATE_SIZES, key=lambda other: abs(other - size)) if takes(other)), None
        )
        raise UserError(
            f"model.name={name} can't take {channels} channels of {size}x{size} ({reason}): "
            + (
                f"it takes {fits}x{fits}; choose data of this size, or another network."
                if fits
                else "choose another network."
            )
        ) from error


def _require_known(name: str, known: list[str], package: str) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        raise UserError(f"model.name={name}: {package} has no classification network of this name{hint}")
