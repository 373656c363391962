"""Several looks at a picture, for a network that is trained already: the mean of its logits over all of them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cifar_pipeline.console import Refusal


class Views(nn.Module):
    """A network that answers for several views of a picture: normalised `[N, C, H, W] float` to logits `[N, K]`.

    Args:
        net: what answers for one view.
        flip: whether the mirror image is looked at too.
        shift: by how many pixels the picture is moved up and left and, once more, down and right, with the rim
            reflected; both together count as much as the unmoved one. 0: it is not moved.
        size: the smaller of the pictures' height and width.

    Raises:
        Refusal: the shift is not smaller than the pictures.
    """

    def __init__(self, net: nn.Module, flip: bool, shift: int, size: int) -> None:
        super().__init__()
        if shift >= size:
            raise Refusal(f"views.shift={shift} must be smaller than the images, which have {size} pixels.")
        self.net, self.flip, self.shift = net, flip, shift

    def forward(self, images: Tensor) -> Tensor:
        """The mean of the logits `[N, K]` over the views of `[N, C, H, W]`."""
        moved, weights = zip(*self._moved(images), strict=True)
        views, mirrors = list(moved), 1
        if self.flip:
            views, mirrors = [*moved, *(view.flip(3) for view in moved)], 2
        shares = images.new_tensor([weight / mirrors for weight in weights] * mirrors)
        # In one batch, so that an exported graph holds the network once.
        logits: Tensor = self.net(torch.cat(views))
        return (logits.reshape(len(views), -1, logits.shape[1]) * shares[:, None, None]).sum(0)

    def _moved(self, images: Tensor) -> Iterator[tuple[Tensor, float]]:
        """The views before any is mirrored, each with its weight."""
        if not self.shift:
            yield images, 1.0
            return
        far = 2 * self.shift
        padded = nn.functional.pad(images, [self.shift] * 4, mode="reflect")
        yield images, 0.5
        yield padded[:, :, far:, far:], 0.25
        yield padded[:, :, :-far, :-far], 0.25
