"""What an epoch yields, in which order, in how many pieces, and after an interruption."""

import pytest
import torch

from cifar_pipeline.data import loader as module
from cifar_pipeline.data.loader import TensorLoader, rank_batch_size
from cifar_pipeline.data.transforms import Augmentation
from cifar_pipeline.utils.errors import UserError


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of a few batches, so that a hundred images meet their borders."""
    monkeypatch.setattr(module, "GATHER_SIZE", 16)


def make(count=103, batch_size=5, *, shuffle=True, seed=0, augment=None, **options) -> TensorLoader:
    options["augmentation"] = Augmentation.of(augment) if augment else None
    labels = torch.arange(count)
    images = (labels % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3).contiguous()
    return TensorLoader(images, labels, batch_size, seed=seed, shuffle=shuffle, **options)


def labels(batches: TensorLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


def flat(lists: list[list[int]]) -> list[int]:
    return [label for labels in lists for label in labels]


def noise(images, generator, turns):
    return torch.randint(0, 256, images.shape, generator=generator, device=images.device).to(torch.uint8)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 16, 17, 40, 103])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_each_image_once(batch_size, shuffle):
    batches = make(batch_size=batch_size, shuffle=shuffle)
    seen = labels(batches)
    assert sorted(flat(seen)) == list(range(103))
    assert (flat(seen) == list(range(103))) == (not shuffle)
    assert len(batches) == len(seen)
    assert [len(batch) for batch in seen[:-1]] == [batch_size] * (len(seen) - 1)
    assert len(seen[-1]) == 103 % batch_size or batch_size


def test_images_stay_with_their_labels_and_their_types():
    for images, found in make():
        assert images.dtype == torch.uint8
        assert found.dtype == torch.int64
        assert images.shape[1:] == (4, 4, 3)
        assert (images == found.to(torch.uint8).view(-1, 1, 1, 1)).all()


def test_seed_and_epoch_decide_the_order():
    one, two, other = make(), make(), make(seed=1)
    first = labels(one)
    assert labels(two) == first
    assert labels(one) == first
    assert labels(other) != first
    one.set_epoch(1)
    second = labels(one)
    assert second != first
    one.set_epoch(0)
    assert labels(one) == first
    assert one.sampler is one


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 10, 20, 21])
def test_an_epoch_resumes_exactly_where_it_was_interrupted(stop):
    batches, whole = make(augment=noise), make(augment=noise)
    for loader in (batches, whole):
        loader.set_epoch(3)
    iterator = iter(batches)
    for _ in range(stop):
        next(iterator)
    state = batches.state_dict()
    resumed = make(augment=noise)
    resumed.load_state_dict(state)
    resumed.set_epoch(3)
    expected, rest = list(whole)[stop:], list(resumed)
    assert len(rest) == len(expected) == 21 - stop
    for (images, found), (wanted_images, wanted) in zip(rest, expected, strict=True):
        assert torch.equal(found, wanted)
        assert torch.equal(images, wanted_images)
    assert len(list(resumed)) == 21


def test_an_epoch_that_was_complete_is_followed_by_the_next():
    batches = make()
    list(batches)
    resumed = make()
    resumed.load_state_dict(batches.state_dict())
    resumed.set_epoch(1)
    batches.set_epoch(1)
    assert labels(resumed) == labels(batches)


def test_augmentation_follows_from_seed_and_epoch():
    def pixels(seed, epoch):
        batches = make(seed=seed, augment=noise)
        batches.set_epoch(epoch)
        return torch.cat([images for images, _ in batches])

    assert torch.equal(pixels(0, 0), pixels(0, 0))
    assert not torch.equal(pixels(0, 0), pixels(0, 1))
    assert not torch.equal(pixels(0, 0), pixels(1, 0))
    first, second = pixels(0, 0)[:15], pixels(0, 0)[15:30]
    assert not torch.equal(first, second)


def test_augmentation_does_not_change_the_data():
    def blacken(images, generator, turns):
        return images.zero_()

    batches = make(augment=blacken, shuffle=False)
    list(batches)
    assert batches.images.max() == 102


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("count", [96, 97, 98, 99, 103, 5])
@pytest.mark.parametrize("augment", [None, noise])
def test_ranks_share_the_batches_of_a_single_process(world_size, count, augment):
    alone = list(make(count, 5, augment=augment))
    ranks = [make(count, 5, augment=augment, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for number, ((images, found), *shares) in enumerate(zip(alone, *ranks, strict=True)):
        assert ranks[0].global_batch_size(number) == len(found)
        for rank, (own_images, own) in enumerate(shares):
            mine = rank_batch_size(len(found), rank, world_size)
            assert torch.equal(own[:mine], found[rank::world_size])
            assert torch.equal(own_images[:mine], images[rank::world_size])
            assert len(own) == max(1, mine)  # one that counts for nothing, where there is none


def test_an_epoch_resumes_with_another_number_of_ranks():
    one = make(augment=noise)
    iterator = iter(one)
    for _ in range(7):
        next(iterator)
    two = [make(augment=noise, rank=rank, world_size=2) for rank in range(2)]
    for batches in two:
        batches.load_state_dict(one.state_dict())
    for (images, found), *shares in zip(iterator, *two, strict=True):
        for rank, (own_images, own) in enumerate(shares):
            assert torch.equal(own_images, images[rank::2])
            assert torch.equal(own, found[rank::2])


def test_an_empty_split_has_no_batches():
    batches = make(0, 4, shuffle=False)
    assert len(batches) == 0
    assert list(batches) == []


@pytest.mark.parametrize(
    ("batch_size", "options", "word"),
    [
        (0, {}, "batch_size=0"),
        (-1, {}, "batch_size=-1"),
        (104, {}, "103 images"),
        (1, {"world_size": 200}, "processes"),
    ],
)
def test_invalid_batch_sizes_are_refused(batch_size, options, word):
    with pytest.raises(UserError, match=word):
        make(batch_size=batch_size, **options)


def test_a_split_smaller_than_a_batch_is_one_batch():
    assert len(list(make(batch_size=1000, shuffle=False))) == 1


def test_the_flip_mask_alternates_for_each_image():
    def told(images, generator, turns):
        return images.flatten(1)[:, :1] * 2 + turns.view(-1, 1)  # the image's number, and whether it is its turn

    def turns_of(batches, epoch):
        batches.set_epoch(epoch)
        pairs = {int(value) // 2: int(value) % 2 for images, _ in batches for value in images.flatten()}
        return [pairs[number] for number in sorted(pairs)]

    images = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1)
    batches = TensorLoader(images, torch.zeros(100).long(), 8, seed=3, shuffle=True, augmentation=Augmentation.of(told))
    first = turns_of(batches, 0)
    assert 30 < sum(first) < 70
    assert turns_of(batches, 1) == [1 - turn for turn in first]
    assert turns_of(batches, 2) == first
    other = TensorLoader(images, torch.zeros(100).long(), 8, seed=4, shuffle=True, augmentation=Augmentation.of(told))
    assert turns_of(other, 0) != first
