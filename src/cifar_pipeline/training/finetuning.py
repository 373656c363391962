"""Fine-tune a pretrained network: which layers train in an epoch, and their learning rates.

Which layers train is a pure function of the epoch, so that a resumed training trains the same ones. Lightning's
BackboneFinetuning keeps it as a state of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_pipeline.models.build import MODEL, NormalizedModel
from cifar_pipeline.models.pretrained import PretrainedWeights, find_head
from cifar_pipeline.utils.errors import UserError

# The method by which a network of timm names its layers.
GROUP_MATCHER = "group_matcher"


@dataclass(frozen=True)
class FineTuning:
    """Which layers of a network train, and how fast.

    Args:
        head: name of the layer that computes the logits, in the network; empty if there is none.
        unfreeze_at: the epoch, counted from 0, from which all layers train; None: only the head ever does.
        layer_decay: factor between the learning rates of a layer and the one before it.
        freezes_batch_norm: whether batch norm normalizes by its running statistics and keeps them, in every layer.
        caches_features: whether the features of a frozen network are computed once.
    """

    head: str = ""
    unfreeze_at: int | None = 0
    layer_decay: float = 1.0
    freezes_batch_norm: bool = False
    caches_features: bool = False

    @staticmethod
    def of(options: Mapping[str, Any], model: NormalizedModel, classes: int, name: str) -> "FineTuning":
        """Read conf/finetune for a model, whose configuration has the name `name` in messages.

        Raises:
            UserError: only the classifier is to train, and the network has no layer that is one.
        """
        unfreeze_at, layer_decay = options["unfreeze_backbone_at_epoch"], options["layer_decay"]
        head = find_head(model.net, classes)
        if not head and unfreeze_at != 0:
            raise UserError(
                f"finetune: {name} has no single linear layer as its classifier, which could train alone: choose "
                "finetune=full or another network."
            )
        if not head and layer_decay != 1 and not hasattr(model.net, GROUP_MATCHER):
            raise UserError(
                f"finetune.layer_decay={layer_decay:g}: {name} has no single linear layer as its classifier, before "
                "which layers could be counted; set finetune.layer_decay=1 or choose another network."
            )
        return FineTuning(head, unfreeze_at, layer_decay, options["freeze_batch_norm"], options["cache_features"])

    @property
    def is_partial(self) -> bool:
        """Whether some layers are frozen in some epoch."""
        return self.unfreeze_at != 0

    @property
    def is_head_only(self) -> bool:
        """Whether only the head ever trains."""
        return self.unfreeze_at is None

    def is_frozen(self, epoch: int) -> bool:
        """Return whether only the head trains in an epoch, counted from 0."""
        return self.unfreeze_at is None or epoch < self.unfreeze_at

    def apply(self, model: nn.Module, epoch: int) -> None:
        """Freeze the layers that do not train in this epoch, and let all others train.

        Frozen layers are in evaluation mode: without dropout, and with the running statistics of batch norm, which
        would otherwise change.
        """
        if self.is_partial:
            head, is_frozen = head_of(model, self.head), self.is_frozen(epoch)
            model.requires_grad_(not is_frozen).train(not is_frozen)
            head.requires_grad_(True).train()
        if self.freezes_batch_norm:
            for layer in model.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def head_parameters(self, model: nn.Module) -> int:
        """Return the number of the head's parameters."""
        return sum(parameter.numel() for parameter in head_of(model, self.head).parameters())

    def parameters(self, model: nn.Module, weight_decay: float | None) -> list[Any]:
        """Return the parameters that train in some epoch: a list, or with a layer decay groups of an optimizer.

        A group's `lr_scale` is the factor of its learning rate. Biases, the parameters of normalizations and those that
        a network of timm names, such as position embeddings, have no weight decay in a group.
        Source: H. Bao et al., "BEiT: BERT Pre-Training of Image Transformers", 2021.
        """
        if self.is_head_only:
            return list(head_of(model, self.head).parameters())
        if self.layer_decay == 1:
            return [parameter for parameter in model.parameters() if parameter.requires_grad]
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

        net: Any = getattr(model, "net", model)
        layers: Any = net if hasattr(net, GROUP_MATCHER) else CountedLayers(net, self.head)
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            layers,
            weight_decay=weight_decay or 0.0,
            no_weight_decay_list=net.no_weight_decay() if hasattr(net, "no_weight_decay") else (),
            layer_decay=self.layer_decay,
        )
        if weight_decay is None:
            groups = [{key: value for key, value in group.items() if key != "weight_decay"} for group in groups]
        return groups


class CountedLayers:
    """A network that is not timm's, as timm.optim groups its layers: several in a row are one, the head is the last.

    Args:
        net: the network.
        head: name of its classifier.
    """

    def __init__(self, net: nn.Module, head: str) -> None:
        self.named_parameters = net.named_parameters
        self.pretrained_cfg = {"classifier": f"{head}."}


def head_of(model: nn.Module, head: str) -> nn.Module:
    """Return the layer of a model that computes the logits."""
    assert isinstance(model, NormalizedModel)
    return model.net.get_submodule(head)


def network_name(model: Mapping[str, Any]) -> str:
    """Return a network's name for messages: that in its library, or that of its class."""
    return str(model.get("name") or str(model["_target_"]).rpartition(".")[2])


def describe_model(
    model: nn.Module, fine_tuning: FineTuning, config: DictConfig, weights: PretrainedWeights | None
) -> str:
    """Return the line about the network at the start of a training.

    Args:
        model: the network.
        fine_tuning: which layers train.
        config: the composed configuration.
        weights: those that the training starts from.
    """
    assert isinstance(model, NormalizedModel)
    total = sum(parameter.numel() for parameter in model.parameters())
    start = f"weights {weights.title}" if weights else "random weights"
    parts = [network_name(config.model), start, f"{format_count(total)} parameters"]
    if fine_tuning.is_frozen(0):
        until = f" until epoch {fine_tuning.unfreeze_at}" if fine_tuning.unfreeze_at else ""
        parts.append(f"{fine_tuning.head_parameters(model):,} trained{until}")
    resized = f" from {model.crop}" if model.resizes else ""
    center = f", the center of {model.size}" if model.margin else ""
    parts.append(f"{model.network_input.size} px{resized}{center}")
    if config.normalization.mean == MODEL:
        parts.append("normalization of the weights")
    return ", ".join(parts)


def format_count(count: int) -> str:
    """Format a number of parameters: 62,006, or 4.7 M."""
    return f"{count / 1e6:.1f} M" if count >= 1_000_000 else f"{count:,}"
