"""What may import what, how many parameters a function may have, and what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sgool
from sgool.settings import ABOUT, DEFAULTS

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"errors", "region", "tiny", "checkpointing", "signals"},
    {"checks", "download", "samplers", "update", "result", "groups", "images", "pictures", "streams", "outputs"},
    {"weights", "backends", "lockstep", "phrase_sheet"},
    {"saliency", "guidance"},
    {"settings"},
    {"presets", "optimize", "pull", "needs", "cost", "phrases"},
    {"detect", "weak"},
    {"generate", "flags"},
    {"zoom"},
    {"job", "door"},
    {"cli"},
    {"lab", "webui"},
    {"__main__"},
)
"""The parts of the package, from the lowest: each imports only from layers below its own."""

WEBUI = {"modules", "modules_forge", "gradio", "launch", "k_diffusion", "backend", "ldm_patched", "k_diff"}
"""What only a WebUI has."""

MOST = 6
"""Parameters of a function."""


def sources(*places: str) -> list[Path]:
    """The Python files below these files and folders of the repository."""
    found = [ROOT / place for place in places]
    return sorted(file for path in found for file in ([path] if path.is_file() else path.rglob("*.py")))


SHIPPED = sources("sgool", "scripts", "install.py")
PACKAGE = [path for path in sources("sgool") if path != ROOT / "sgool" / "__init__.py"]


def name(path: Path) -> str:
    """`sgool/saliency/regions.py` -> `sgool.saliency.regions`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name(path) for path in sources("sgool")}


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, in its functions too; of others than sgool, any name will do."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has an import relative to its folder"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            # What the package itself offers stands for the part that it comes from.
            found |= {each if each in MODULES or node.module == "sgool" else node.module for each in within}
    return found - {"sgool.__version__"}


def own(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    return {module for module in imported(path) if module.startswith("sgool.")}


def part(module: str) -> str:
    return module.split(".")[1]


def outside(modules: set[str]) -> set[str]:
    """The packages that these modules belong to."""
    return {module.split(".")[0] for module in modules}


def test_every_part_of_the_package_has_its_layer() -> None:
    assert {part(name(path)) for path in PACKAGE} == set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS))


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_imports_go_down(path: Path) -> None:
    level = {each: number for number, layer in enumerate(LAYERS) for each in layer}
    here = part(name(path))
    beside = {module for module in own(path) if part(module) != here}
    above = {module for module in beside if level.get(part(module), len(LAYERS)) >= level[here]}
    assert not above


def test_imports_within_functions_count(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import json\ndef f():\n    from sgool import lab\n    from sgool.saliency.regions import find_regions\n"
    )
    assert imported(tmp_path / "a.py") == {"json", "sgool.lab", "sgool.saliency.regions"}


def test_only_the_command_knows_the_laboratory() -> None:
    users = {name(path) for path in SHIPPED if any(map(laboratory, own(path)))}
    assert {module for module in users if not laboratory(module)} == {"sgool.__main__"}


def laboratory(module: str) -> bool:
    return fnmatch(module, "sgool.lab") or fnmatch(module, "sgool.lab.*")


def test_only_the_extension_imports_the_webui() -> None:
    users = [path.relative_to(ROOT).parts for path in SHIPPED if outside(imported(path)) & WEBUI]
    assert users
    assert all(parts[:2] == ("sgool", "webui") or parts[0] in ("scripts", "install.py") for parts in users)
    assert {name(path) for path in PACKAGE if "ldm" in outside(imported(path))} == {"sgool.tiny.ldm"}


def test_only_one_backend_and_the_laboratory_import_diffusers() -> None:
    users = {name(path) for path in SHIPPED if "diffusers" in outside(imported(path))}
    assert {module for module in users if not laboratory(module)} == {"sgool.backends.diffusers"}
    users = {name(path) for path in PACKAGE if "sgool.backends.diffusers" in own(path)}
    assert {module for module in users if not laboratory(module)} == {"sgool.door", "sgool.job"}


def test_samplers_know_neither_images_nor_critics() -> None:
    for path in sources("sgool/samplers"):
        assert {part(module) for module in own(path)} <= {"samplers", "errors"}
        assert outside(imported(path)) <= {"sgool", "torch", *sys.stdlib_module_names}


def test_the_core_never_imports_the_extension_and_the_extension_no_other_door() -> None:
    for path in PACKAGE:
        parts = {part(module) for module in own(path)}
        if part(name(path)) == "webui":
            assert not parts & {"cli", "door", "job", "lab"}
        else:
            assert "webui" not in parts


def fresh(statement: str) -> set[str]:
    """The modules that a new interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_package_costs_nothing_to_import() -> None:
    loaded = fresh("import sgool; sgool.__version__")
    assert not {"torch", "numpy", "open_clip", "diffusers"} & loaded
    assert {module for module in loaded if module.startswith("sgool")} == {"sgool"}


def test_pictures_are_drawn_without_any_network() -> None:
    loaded = fresh("import sgool.pictures")
    assert {module for module in loaded if module.startswith("sgool.")} == {
        "sgool.pictures",
        "sgool.errors",
        "sgool.region",
    }
    assert not {"open_clip", "transformers", "diffusers"} & loaded


def test_the_webuis_model_needs_no_diffusers() -> None:
    """What runs in the WebUI besides its own files."""
    loaded = fresh("import sgool.generate, sgool.presets, sgool.pictures")
    assert "diffusers" not in loaded and "sgool.backends.diffusers" not in loaded


def test_every_public_name_is_there() -> None:
    assert sorted(sgool.__all__) == sorted(each for names in sgool._HOMES.values() for each in names)
    for each in sgool.__all__:
        assert getattr(sgool, each).__name__ == each
    with pytest.raises(AttributeError, match="nothing"):
        sgool.nothing  # noqa: B018


def functions(tree: ast.AST, method: bool = False) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Every function with the number of its parameters; *args, **kwargs and a method's own object do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args
            static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in node.decorator_list)
            count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            yield node, count - (method and not static)
        yield from functions(node, isinstance(node, ast.ClassDef))


def test_parameters_are_counted() -> None:
    tree = ast.parse(
        "def f(a, /, b, *args, c=1, **options):\n    def g(self): ...\n"
        "class A:\n    def h(self, a): ...\n"
        "    @staticmethod\n    def i(a): ...\n    @classmethod\n    def j(cls): ...\n"
    )
    assert {node.name: count for node, count in functions(tree)} == {"f": 3, "g": 1, "h": 1, "i": 1, "j": 0}


def test_no_function_has_more_than_six_parameters() -> None:
    """Except in the stand-in for the WebUI, whose functions have the WebUI's."""
    files = [path for path in sources("sgool", "scripts", "install.py", "tests") if "fake_webui" not in path.parts]
    assert not [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {count}"
        for path in files
        for node, count in functions(ast.parse(path.read_text(encoding="utf-8")))
        if count > MOST
    ]


def test_every_setting_is_described_once() -> None:
    assert list(ABOUT) == list(DEFAULTS)
    labels = [about.label for about in ABOUT.values()]
    assert len({label.lower() for label in labels}) == len(labels)
    for about in ABOUT.values():
        # The keys of the WebUI's infotexts.
        assert re.fullmatch(r"\w[\w \-/]+", about.label) and about.label == about.label.strip()
        assert about.help and not about.help.endswith(".")


def test_a_wheel_holds_the_embedded_model_and_no_laboratory() -> None:
    tomllib = pytest.importorskip("tomllib")
    setuptools = pytest.importorskip("setuptools")
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = set(setuptools.find_packages(str(ROOT), **told["packages"]["find"]))
    folders = {name(path) for path in sources("sgool") if path.name == "__init__.py"}
    assert packages == {folder for folder in folders if not laboratory(folder)}
    patterns = told["package-data"]["sgool"]
    held = {path.relative_to(ROOT / "sgool").as_posix() for each in patterns for path in (ROOT / "sgool").glob(each)}
    data = {path for path in (ROOT / "sgool" / "tiny").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT / "sgool").as_posix() for path in data if path.suffix != ".py"} <= held
    assert "py.typed" in held and not any(path.startswith("lab") for path in held)
