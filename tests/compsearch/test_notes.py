import pytest

from compsearch.notes import _finetuning_notes
from compsearch.summary import NetworkRow


def rows(before: float, after: float | None) -> list[NetworkRow]:
    found = [NetworkRow("dense", 2.0, 2, 0.9, 0.9), NetworkRow("compressed", 1.0, 1, before, 0.5)]
    return found if after is None else [*found, NetworkRow("fine-tuned", 1.0, 1, after, 0.99)]


def test_fine_tuning_that_lowered_search_accuracy_is_said_with_the_way_out() -> None:
    [note] = _finetuning_notes(rows(0.9, 0.3))
    assert "from 90.00% to 30.00%" in note
    assert "finetune.lr" in note


@pytest.mark.parametrize("after", [0.95, 0.9, None])
def test_fine_tuning_that_did_no_harm_or_was_not_done_is_no_note(after: float | None) -> None:
    assert _finetuning_notes(rows(0.9, after)) == []
