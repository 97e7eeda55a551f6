import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from backends import datasets
from backends.augmentation import RandomResizedCrop, ShiftFlip

SHIFT = ShiftFlip(padding=2, flip=True)


def make_digits(**changes):
    options = {
        "image_size": 32,
        "search_images": 200,
        "max_search_share": 0.2,
        "seed": 0,
        "normalise": "digits",
        "augmentation": ShiftFlip(padding=2, flip=False),
    }
    return datasets.digits(**{**options, **changes})


def make_folder(root: Path, test: str = "test", num_images: int = 12, size: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", test):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(num_images):
                pixels = rng.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def load_folder(root: Path, **changes):
    options = {
        "root": str(root),
        "image_size": 16,
        "crop_ratio": 0.875,
        "search_images": 5,
        "max_search_share": 0.5,
        "seed": 0,
        "normalise": "imagenet",
        "augmentation": SHIFT,
        "in_memory": None,
        "num_workers": 0,
    }
    return datasets.imagefolder(**{**options, **changes})


def all_images(split):
    return torch.cat([images for images, _ in split.batches(7)])


def rows(split) -> set[bytes]:
    return {image.numpy().tobytes() for image in all_images(split)}


def assert_one_line(error: pytest.ExceptionInfo[ValueError]) -> None:
    assert "\n" not in str(error.value)


class TestDigits:
    def test_it_has_every_image_in_one_split(self):
        splits = make_digits()
        assert (splits.train.num_images, splits.search.num_images, splits.test.num_images) == (1237, 200, 360)
        assert (splits.num_classes, splits.image_size, splits.class_names[3]) == (10, 32, "3")
        assert len(rows(splits.train) | rows(splits.search) | rows(splits.test)) == 1797  # no two digits are alike

    def test_the_test_split_does_not_depend_on_the_seed_and_the_search_split_does(self):
        first, second = make_digits(seed=0), make_digits(seed=1)
        assert torch.equal(all_images(first.test), all_images(second.test))
        assert torch.equal(first.test.labels, second.test.labels)
        assert rows(first.search) != rows(second.search)

    def test_classes_are_spread_evenly_over_the_test_split(self):
        assert set(torch.bincount(make_digits().test.labels).tolist()) <= {35, 36, 37}

    def test_images_are_grey_rgb_of_the_size_asked_for_with_mean_0_and_std_1(self):
        images = all_images(make_digits(image_size=24).train)
        assert images.shape[1:] == (3, 24, 24)
        assert torch.equal(images[:, 0], images[:, 2])
        assert abs(images.mean().item()) < 0.05
        assert abs(images.std().item() - 1) < 0.05


class TestCifar:
    @pytest.mark.parametrize(
        ("load", "base"), [(datasets.cifar10, "cifar-10-batches-py"), (datasets.cifar100, "cifar-100-python")]
    )
    def test_a_missing_folder_is_one_line_that_names_it_and_the_way_out(self, tmp_path, load, base):
        with pytest.raises(ValueError, match=r"dataset\.build\.download=true, or unpack cifar-10") as error:
            self.load(load, tmp_path)
        assert str(tmp_path / base) in str(error.value)
        assert_one_line(error)

    def test_a_failed_download_is_one_line(self, tmp_path, monkeypatch):
        def no_network(*args, **kwargs):
            raise OSError("Name or service not known")

        monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
        with pytest.raises(ValueError, match="Name or service not known; get the archive elsewhere") as error:
            self.load(datasets.cifar10, tmp_path, download=True)
        assert_one_line(error)

    def test_train_and_search_share_the_training_set_and_test_is_the_own_one(self, monkeypatch):
        class Fake(torchvision.datasets.CIFAR10):
            def __init__(self, root, train, download):
                rng = np.random.default_rng(int(train))
                self.data = rng.integers(0, 256, (50 if train else 20, 32, 32, 3), dtype=np.uint8)
                self.targets = list(np.arange(len(self.data)) % 10)
                self.classes = [str(index) for index in range(10)]

        monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
        splits = self.load(datasets.cifar10, Path("nowhere"))
        assert (splits.train.num_images, splits.search.num_images, splits.test.num_images) == (40, 10, 20)
        raw = Fake("nowhere", True, False)
        pixels = {image.tobytes() for image in raw.data.transpose(0, 3, 1, 2)}
        assert {image.numpy().tobytes() for image in splits.train.images} <= pixels
        assert {image.numpy().tobytes() for image in splits.search.images} <= pixels

    def load(self, load, root, **changes):
        options = {
            "root": str(root),
            "download": False,
            "image_size": 32,
            "search_images": 10,
            "max_search_share": 0.25,
            "seed": 0,
            "normalise": "cifar",
            "augmentation": ShiftFlip(padding=4, flip=True),
        }
        return load(**{**options, **changes})


class TestImageFolder:
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_in_memory_and_streamed_evaluation_batches_are_equal(self, tmp_path, num_workers):
        make_folder(tmp_path)
        memory = load_folder(tmp_path, in_memory=True)
        streamed = load_folder(tmp_path, in_memory=False, num_workers=num_workers)
        for name in ("train", "search", "test"):
            pairs = zip(getattr(memory, name).batches(7), getattr(streamed, name).batches(7), strict=True)
            for (images, labels), (streamed_images, streamed_labels) in pairs:
                assert torch.equal(images, streamed_images)
                assert torch.equal(labels, streamed_labels)

    @pytest.mark.parametrize("augmentation", [SHIFT, RandomResizedCrop(min_share=0.1)])
    def test_streamed_training_batches_do_not_depend_on_the_number_of_workers(self, tmp_path, augmentation):
        make_folder(tmp_path)

        def epoch(num_workers, seed):
            splits = load_folder(tmp_path, in_memory=False, num_workers=num_workers, augmentation=augmentation)
            batches = splits.train.training_batches(5, torch.Generator().manual_seed(seed))
            return torch.cat([images for images, _ in batches])

        assert torch.equal(epoch(0, seed=0), epoch(1, seed=0))
        assert not torch.equal(epoch(0, seed=0), epoch(0, seed=1))

    def test_streaming_leaves_the_global_generator_alone(self, tmp_path):
        splits = load_folder(make_folder(tmp_path), in_memory=False, augmentation=RandomResizedCrop(min_share=0.1))
        before = torch.get_rng_state()
        list(splits.train.training_batches(5, torch.Generator()))
        list(splits.test.batches(5))
        assert torch.equal(torch.get_rng_state(), before)

    def test_splits_are_disjoint_and_labels_are_sorted_class_names(self, tmp_path):
        splits = load_folder(make_folder(tmp_path))
        assert splits.class_names == ("cat", "dog")
        assert (splits.train.num_images, splits.search.num_images, splits.test.num_images) == (19, 5, 24)
        assert len(rows(splits.train) | rows(splits.search) | rows(splits.test)) == 48
        assert splits.test.labels.tolist() == [0] * 12 + [1] * 12

    def test_an_image_of_the_final_size_is_left_alone(self, tmp_path):
        make_folder(tmp_path, size=16)
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[3, 4] = (10, 20, 30)
        for path in (tmp_path / "test" / "cat").iterdir():
            Image.fromarray(pixels).save(path)
        splits = load_folder(tmp_path, crop_ratio=1.0, in_memory=True)
        assert np.array_equal(splits.test.images[0].permute(1, 2, 0).numpy(), pixels)

    def test_val_is_the_test_split_when_there_is_no_test_folder(self, tmp_path):
        assert load_folder(make_folder(tmp_path, test="val")).test.num_images == 24

    def test_imagenet_streams_train_and_val(self, tmp_path):
        make_folder(tmp_path, test="val")
        splits = datasets.imagenet(
            root=str(tmp_path),
            image_size=16,
            crop_ratio=0.875,
            search_images=5,
            max_search_share=0.5,
            seed=0,
            normalise="imagenet",
            augmentation=RandomResizedCrop(min_share=0.08),
            num_workers=0,
        )
        assert splits.test.num_images == 24
        assert all_images(splits.test).shape == (24, 3, 16, 16)

    def test_streamed_fingerprints_tell_files_apart(self, tmp_path):
        first = load_folder(make_folder(tmp_path / "a"), in_memory=False)
        second = load_folder(make_folder(tmp_path / "b"), in_memory=False)
        assert first.train.fingerprint == second.train.fingerprint != first.test.fingerprint
        Image.new("RGB", (20, 24)).save(tmp_path / "b" / "train" / "cat" / "0.png")
        third = load_folder(tmp_path / "b", in_memory=False)
        old, new = ({s.train.fingerprint, s.search.fingerprint} for s in (first, third))
        assert len(old & new) == 1  # of the split the changed file is in, and not of the other

    @pytest.mark.parametrize("missing", ["train", "test"])
    def test_a_missing_folder_is_named(self, tmp_path, missing):
        make_folder(tmp_path)
        (tmp_path / missing).rename(tmp_path / "elsewhere")
        with pytest.raises(
            ValueError, match=f"no folder {tmp_path}/{missing}; put the images there or set dataset.build.root$"
        ) as e:
            load_folder(tmp_path)
        assert_one_line(e)

    def test_a_folder_without_classes_is_named(self, tmp_path):
        make_folder(tmp_path)
        (tmp_path / "train").rename(tmp_path / "elsewhere")
        (tmp_path / "train").mkdir()
        with pytest.raises(ValueError, match=f"{tmp_path}/train must hold one folder per class, but it has none"):
            load_folder(tmp_path)

    def test_an_empty_class_is_named(self, tmp_path):
        make_folder(tmp_path)
        (tmp_path / "train" / "emu").mkdir()
        (tmp_path / "train" / "emu" / "notes.txt").write_text("no image")
        with pytest.raises(
            ValueError, match=f"but {tmp_path}/train/emu has none; fill it, or remove emu from train and"
        ) as error:
            load_folder(tmp_path)
        assert_one_line(error)

    @pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
    def test_a_class_known_to_one_split_only_is_named(self, tmp_path, split, other):
        make_folder(tmp_path)
        (tmp_path / split / "dog").rename(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=f"have the same classes, but {tmp_path}/{split} has no dog; add") as error:
            load_folder(tmp_path)
        assert_one_line(error)
        assert f"{tmp_path}/{other} has" not in str(error.value)

    def test_classes_under_two_names_are_both_named(self, tmp_path):
        make_folder(tmp_path)
        (tmp_path / "test" / "cat").rename(tmp_path / "test" / "emu")
        with pytest.raises(ValueError, match=f"{tmp_path}/train has no emu and {tmp_path}/test has no cat; add"):
            load_folder(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"not an image", "cut short"])
    @pytest.mark.parametrize("num_workers", [None, 0, 1])
    def test_a_corrupt_image_is_one_line_that_names_it(self, tmp_path, content, num_workers):
        make_folder(tmp_path)
        bad = tmp_path / "test" / "dog" / "3.png"
        bad.write_bytes(bad.read_bytes()[:400] if content == "cut short" else content)
        options = {"in_memory": True} if num_workers is None else {"in_memory": False, "num_workers": num_workers}
        with pytest.raises(ValueError, match=f"an image must decode, but {bad} does not .*replace or remove") as error:
            all_images(load_folder(tmp_path, **options).test)
        assert_one_line(error)
        assert "'it'" not in str(error.value)
        assert str(error.value).count(str(bad)) == 1

    def test_resized_crops_of_images_in_memory_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="in_memory=true must go with ShiftFlip"):
            load_folder(make_folder(tmp_path), in_memory=True, augmentation=RandomResizedCrop(min_share=0.1))

    def test_an_impossible_crop_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"0 < dataset\.build\.crop_ratio <= 1"):
            load_folder(make_folder(tmp_path), crop_ratio=1.2)


def test_the_real_cifar_subset_loads(tmp_path):
    archive = Path(__file__).parents[3] / "shared" / "data" / "cifar10-subset.tar"
    if not archive.exists():
        pytest.skip(f"needs real images: {archive} is absent")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    start = time.perf_counter()
    splits = load_folder(root, image_size=32, crop_ratio=1.0, search_images=1000)
    sys.stderr.write(f"loaded in {time.perf_counter() - start:.2f} s\n")
    assert (splits.train.num_images, splits.search.num_images, splits.test.num_images) == (4085, 1000, 1017)
    assert torch.bincount(splits.search.labels).min() > 90
