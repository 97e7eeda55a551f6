import pytest
import torch

from backends.augmentation import ShiftFlip
from backends.data import Normalisation, TensorSplit, carve_search, shuffled_batches, stratified_indices, subset

NORMALISATION = Normalisation.of("imagenet")


def make_split(num_images: int = 103, num_classes: int = 4) -> TensorSplit:
    """Every image has its own index in its first pixel."""
    rng = torch.Generator().manual_seed(3)
    images = torch.randint(256, (num_images, 3, 6, 6), dtype=torch.uint8, generator=rng)
    images[:, 0, 0, 0] = torch.arange(num_images, dtype=torch.uint8)
    labels = torch.randint(num_classes, (num_images,), generator=rng)
    return TensorSplit(
        name="train",
        images=images,
        labels=labels,
        normalisation=NORMALISATION,
        augmentation=ShiftFlip(padding=2, flip=True),
    )


def ids(split: TensorSplit) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_normalisation_is_that_of_the_papers():
    image = torch.tensor([255, 0, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225])
    torch.testing.assert_close(NORMALISATION(image).flatten(), expected)


def test_normalisation_comes_from_lists_too():
    assert Normalisation.of({"mean": [0, 0, 0], "std": [1, 1, 1]}) == Normalisation((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("choice", ["mnist", {"mean": [0.5], "std": [0.5]}, {"mean": [0, 0, 0], "std": [1, 0, 1]}])
def test_an_unknown_normalisation_is_refused(choice):
    with pytest.raises(ValueError, match=r"dataset\.build\.normalise must"):
        Normalisation.of(choice)


def test_batches_are_normalised_in_order_and_never_augmented():
    split = make_split()
    batches = list(split.batches(25))
    assert [len(labels) for _, labels in batches] == [25, 25, 25, 25, 3]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    assert torch.equal(images, NORMALISATION(split.images))
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


def test_training_batches_are_shuffled_and_augmented_from_the_generator_alone():
    split = make_split()

    def epoch(seed):
        return torch.cat([images for images, _ in split.training_batches(20, torch.Generator().manual_seed(seed))])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    plain = {image.numpy().tobytes() for image in NORMALISATION(split.images)}
    kept = sum(image.numpy().tobytes() in plain for image in epoch(0))
    assert kept < 10  # one in fifty stays where it was


def test_an_epoch_shows_every_image_once_with_its_own_label():
    split = make_split()
    split.augmentation = None
    images, labels = (torch.cat(part) for part in zip(*split.training_batches(20, torch.Generator()), strict=True))
    order = torch.tensor([int(torch.nonzero((NORMALISATION(split.images) == x).all((1, 2, 3)))) for x in images])
    assert sorted(order.tolist()) == list(range(103))
    assert order.tolist() != list(range(103))
    assert torch.equal(labels, split.labels[order])


@pytest.mark.parametrize(
    ("num_images", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (8, [4, 4]), (1, [1]), (3, [3]), (5, [4])]
)
def test_only_a_last_batch_of_one_image_is_dropped(num_images, sizes):
    assert [len(batch) for batch in shuffled_batches(num_images, 4, torch.Generator())] == sizes


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    split = make_split()
    train, search = carve_search(split, search_images=20, max_search_share=0.5, seed=0)
    list(train.training_batches(8, torch.Generator()))
    list(search.batches(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_search_is_carved_out_of_train_and_the_two_are_disjoint():
    split = make_split()
    train, search = carve_search(split, search_images=20, max_search_share=0.5, seed=0)
    assert (train.name, search.name, search.num_images) == ("train", "search", 20)
    assert sorted(ids(train) + ids(search)) == list(range(103))


def test_the_search_split_follows_from_its_seed():
    first, again, other = (
        ids(carve_search(make_split(), search_images=20, max_search_share=0.5, seed=seed)[1]) for seed in (0, 0, 1)
    )
    assert first == again
    assert set(first) != set(other)


def test_the_search_split_keeps_every_class_share_to_within_one_image():
    split = make_split()
    _, search = carve_search(split, search_images=20, max_search_share=0.5, seed=0)
    exact = torch.bincount(split.labels, minlength=4) * 20 / 103
    assert ((torch.bincount(search.labels, minlength=4) - exact).abs() < 1).all()


def test_a_small_set_gives_no_more_than_its_share_and_says_so(caplog):
    with caplog.at_level("INFO"):
        _, search = carve_search(make_split(), search_images=5000, max_search_share=0.2, seed=0)
    assert search.num_images == 20
    assert "search split: 20 images, not 5000" in caplog.text


@pytest.mark.parametrize(("images", "share"), [(0, 0.5), (5, 0.0), (5, 1.0)])
def test_an_impossible_search_split_is_refused(images, share):
    with pytest.raises(ValueError, match=r"search_images >= 1"):
        carve_search(make_split(), search_images=images, max_search_share=share, seed=0)


def test_a_share_that_leaves_no_search_image_is_refused():
    with pytest.raises(ValueError, match=r"raise dataset\.build\.max_search_share"):
        carve_search(make_split(5), search_images=3, max_search_share=0.1, seed=0)


def test_stratified_indices_are_distinct_and_not_sorted_by_class():
    labels = torch.arange(5).repeat_interleave(40)
    indices = stratified_indices(labels, 50, seed=0)
    assert len(set(indices.tolist())) == 50
    assert torch.bincount(labels[indices]).tolist() == [10] * 5
    assert labels[indices].diff().lt(0).any()


def test_a_subset_is_seeded_named_and_clipped_to_the_split():
    split = make_split()
    calibration = subset(split, 30, 0, "calibration")
    assert (calibration.name, calibration.num_images) == ("calibration", 30)
    assert ids(calibration) == ids(subset(split, 30, 0, "calibration")) != ids(subset(split, 30, 1, "calibration"))
    assert sorted(ids(subset(split, 1000, 0, "all"))) == list(range(103))


def test_fingerprints_tell_splits_apart():
    split, same = make_split(), make_split()
    changed = make_split()
    changed.images[0, 0, 0, 0] += 1
    relabelled = make_split()
    relabelled.labels[0] = (relabelled.labels[0] + 1) % 4
    unaugmented = make_split()
    unaugmented.augmentation = None
    assert split.fingerprint == same.fingerprint
    assert len({s.fingerprint for s in (split, changed, relabelled, unaugmented)}) == 4


def test_float_images_pass_as_they_are():
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator())
    split = TensorSplit(name="own", images=images, labels=torch.zeros(5), normalisation=None, augmentation=None)
    ((batch, labels),) = split.batches(8)
    assert torch.equal(batch, images)
    assert labels.dtype == torch.int64


def test_bytes_without_a_normalisation_are_refused():
    images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="must be uint8 with a normalisation or float without one"):
        TensorSplit(name="own", images=images, labels=torch.zeros(5), normalisation=None, augmentation=None)


@pytest.mark.parametrize(("num_images", "num_labels"), [(0, 0), (3, 2)])
def test_an_empty_or_mislabelled_split_is_refused(num_images, num_labels):
    with pytest.raises(ValueError, match="as many images as labels and at least one"):
        TensorSplit(
            name="own",
            images=torch.zeros(num_images, 3, 4, 4),
            labels=torch.zeros(num_labels),
            normalisation=None,
            augmentation=None,
        )


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"batch_size >= 1"):
        next(make_split().batches(0))
