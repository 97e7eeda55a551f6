"""The folders are the architecture: imports go one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compsearch", "searchers", "backends")
# The only modules that know Hydra; they compose the packages through conf/.
COMPOSERS = {"compsearch/cli.py", "compsearch/composition.py", "compsearch/multirun.py"}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_there_are_modules_to_check() -> None:
    assert len(modules()) > 20


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = set(PACKAGES) - {"compsearch", package}
    assert not imported(path) & forbidden


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_composers_know_hydra(path: Path) -> None:
    if str(path.relative_to(ROOT)) not in COMPOSERS:
        assert not imported(path) & {"hydra", "omegaconf"}


def test_a_searcher_module_has_its_card_and_its_configuration() -> None:
    targets = {path.stem: path.read_text() for path in (ROOT / "conf" / "searcher").glob("*.yaml")}
    for name, text in targets.items():
        module = text.split("_target_: searchers.")[1].split(".")[0]
        assert (ROOT / "searchers" / f"{module}.py").is_file(), name
        assert (ROOT / "searchers" / f"{module.upper()}.md").is_file(), name
