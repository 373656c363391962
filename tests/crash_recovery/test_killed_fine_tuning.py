"""A fine-tuning that is killed, within an epoch or where all layers begin to train, ends with the same bits."""

from pathlib import Path

import pytest
from torture import KILLED, MAX_REPEATED, SPECIAL, STEPS, Moment, Training, train

from helpers.tiny_networks import options, save_network, tiny_network
from helpers.workspace import Workspace

WEIGHTS = Path("pretrained/net.safetensors")
EPOCHS, UNFREEZE_AT = 3, 2
BASE = (
    *options(WEIGHTS),
    "model.input_size=32",
    "runtime.engine=eager",
    "augmentation=flip",
    f"trainer.max_epochs={EPOCHS}",
)
OPTIONS = {
    "gradual": ("finetune=gradual", f"finetune.unfreeze_backbone_at_epoch={UNFREEZE_AT}"),
    "full": ("finetune=full",),
    "head": ("finetune=head", "finetune.cache_features=false"),
    "head on features": ("finetune=head",),
}
# Of the event `step`: the steps of an epoch, and a batch of validation. Checkpoints are written after each step but the
# last one, which that of the epoch follows.
CALLS_PER_EPOCH = STEPS + 1
UNFREEZING = [Moment("step", UNFREEZE_AT * CALLS_PER_EPOCH + 1), Moment("half a checkpoint", 5)]
# Within an epoch, at its end, and in the first step of the epoch that follows the next one.
MOMENTS = [Moment("step", 8), Moment("half a checkpoint", STEPS - 7), Moment("step", 2 + CALLS_PER_EPOCH + 1)]


@pytest.fixture(autouse=True)
def trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, overrides in OPTIONS.items():
        monkeypatch.setitem(SPECIAL, name, (*BASE, *overrides))


@pytest.fixture
def with_weights(copy: Workspace) -> Workspace:
    save_network(tiny_network(), copy.root / WEIGHTS)
    return copy


def assert_same_bits(workspace: Workspace, folder: Path, name: str, moments: list[Moment]) -> Training:
    """Kill a training at each of the moments, and compare it with an undisturbed one."""
    undisturbed = workspace.copy(folder)
    training, expected = train(workspace, name, moments), train(undisturbed, name)
    assert [start.code for start in training.starts] == [KILLED] * len(moments) + [0], training.starts[-1].output
    assert not training.differences(expected), "\n".join(start.output for start in training.starts)
    assert max(training.repeated()) <= MAX_REPEATED
    assert len(expected.starts[0].steps) == EPOCHS * STEPS
    assert training.outcome()["status"] == "FINISHED"
    return training


@pytest.mark.long
def test_killed_around_the_epoch_from_which_all_layers_train(with_weights: Workspace, tmp_path: Path) -> None:
    training = assert_same_bits(with_weights, tmp_path / "undisturbed", "gradual", UNFREEZING)
    assert f" trained until epoch {UNFREEZE_AT}, 32 px" in training.starts[0].output
    first = f"{UNFREEZE_AT}:0"
    assert training.starts[0].steps[-1] == training.starts[1].steps[0] == first
    assert training.starts[1].steps[-1].startswith(f"{UNFREEZE_AT}:")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", OPTIONS)
def test_killed_at_any_moment(with_weights: Workspace, tmp_path: Path, name: str) -> None:
    training = assert_same_bits(with_weights, tmp_path / "undisturbed", name, MOMENTS)
    ends = [start.steps[-1] for start in training.starts]
    assert ends == ["0:7", f"0:{STEPS - 1}", f"{UNFREEZE_AT}:0", f"{EPOCHS - 1}:{STEPS - 1}"]


@pytest.mark.long
def test_killed_while_features_are_computed(with_weights: Workspace, tmp_path: Path) -> None:
    folder = with_weights.root / ".cache" / "features"
    # The first call tries the network, the second and the third compute features of the training images.
    killed = train(with_weights, "head on features", [Moment("features", 3)])
    assert [start.code for start in killed.starts] == [KILLED, 0]
    assert not killed.starts[0].steps
    expected = train(with_weights.copy(tmp_path / "other"), "head on features")
    assert len(list(folder.glob("[!.]*.npy"))) == 2 and not list(folder.glob(".*.part*"))
    assert not killed.differences(expected)
