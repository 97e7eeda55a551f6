import pickle

import pytest
import torch

from backends.checkpoint import load_plain, save_atomically


def test_what_is_saved_is_loaded_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "deep" / "state.pt"
    save_atomically({"a": torch.arange(3), "b": [1, "two"]}, path)
    loaded = load_plain(path)
    assert torch.equal(loaded["a"], torch.arange(3))
    assert loaded["b"] == [1, "two"]
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_atomically({"a": 1}, path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match="No space left on device; free some space") as error:
        save_atomically({"a": 2}, path)
    assert "\n" not in str(error.value)
    assert load_plain(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="must be writable and have room"):
        save_atomically({"a": 1}, tmp_path / "taken" / "state.pt")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"must exist, but got '.*none\.pt'"):
        load_plain(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"", b"text, no tensors", "cut short"])
def test_an_unreadable_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "state.pt"
    torch.save({"a": torch.rand(100)}, path)
    path.write_bytes(path.read_bytes()[:300] if content == "cut short" else content)
    with pytest.raises(ValueError, match=r"a weights file must .*state\.pt") as error:
        load_plain(path)
    assert "\n" not in str(error.value)


class Payload:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, capsys, zipped):
    path = tmp_path / "state.pt"
    if zipped:
        torch.save({"a": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(ValueError, match="tensors and plain values only"):
        load_plain(path)
    assert "executed" not in capsys.readouterr().out
