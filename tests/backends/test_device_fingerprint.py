import json

import pytest
import torch

from backends.device_fingerprint import DeviceFingerprint, fingerprint


def here(**changes):
    options = {"runtime": "torch", "device": torch.device("cpu"), "threads": 1, "batch_size": 1, "versions": {"a": "1"}}
    return fingerprint(**{**options, **changes})


def test_the_same_settings_on_the_same_machine_are_the_same_device():
    assert here() == here()
    assert here().key == here().key
    assert here().differences(here()) == ""


@pytest.mark.parametrize("change", [{"threads": 2}, {"batch_size": 8}, {"runtime": "other"}, {"versions": {"a": "2"}}])
def test_any_other_setting_is_another_device_and_named(change):
    [(name, value)] = change.items()
    other = here(**change)
    assert other != here()
    assert other.key != here().key
    assert str(other) != str(here())
    assert here().differences(other) == f"{name} {getattr(here(), name)} / {value}"


def test_it_survives_json():
    again = DeviceFingerprint.from_json(json.loads(json.dumps(here().to_json())))
    assert again == here()


def test_what_is_none_is_refused():
    with pytest.raises(ValueError, match=r"a device fingerprint must have the fields"):
        DeviceFingerprint.from_json({"runtime": "torch"})
