"""The package is a list of rooms, in the order of docs/design.md: a file imports only what stands above it, in no circle."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "universal_neurons"
SECTION = re.search(r"\n## Layout\n(.*?)\n## ", (ROOT / "docs/design.md").read_text(encoding="utf-8"), re.DOTALL)[1]
LISTED = re.findall(r"^    ((?:\w+, )*\w+,?|\w+/)(?:$|  )", SECTION, re.MULTILINE)
ORDER = [name for line in LISTED for name in re.findall(r"\w+", line)]
ROOMS = [name for name in ORDER if (PACKAGE / name / "__init__.py").exists()]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    """`models.loading` of src/universal_neurons/models/loading.py; a face is its package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_face(path: Path) -> bool:
    return path.name == "__init__.py" and path.parent.parent == PACKAGE


MODULES = {module_of(path): path for path in FILES}


def names_of(face: Path) -> dict[str, str]:
    """The names that a face gives, and the modules that they are in, as its imports for type checkers say."""
    block = next((node for node in ast.parse(face.read_text(encoding="utf-8")).body if isinstance(node, ast.If)), None)
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)] if block else []
    return {alias.name: node.module.partition(".")[2] for node in imports for alias in node.names}


FACES = {room: names_of(PACKAGE / room / "__init__.py") for room in ROOMS}


def imports_of(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of whatever a file takes of the package, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            package, _, module = (node.module or "").partition(".")
            if package == PACKAGE.name:
                for alias in node.names:
                    below = f"{module}.{alias.name}".lstrip(".")
                    yield (node.lineno, below, "") if below in MODULES else (node.lineno, module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package, _, module = alias.name.partition(".")
                if package == PACKAGE.name:
                    yield node.lineno, module, ""


def place(module: str) -> int:
    return ORDER.index(module.partition(".")[0])


def test_every_room_and_file_at_the_top_is_listed_once_in_the_design():
    here = {module.partition(".")[0] for module in MODULES}
    assert here <= set(ORDER), f"not in docs/design.md, Layout: {sorted(here - set(ORDER))}"
    assert len(ORDER) == len(set(ORDER))
    assert len(ROOMS) > 10


def test_imports_lead_up_the_list():
    wrong = []
    for path in FILES:
        here = module_of(path)
        for line, module, name in imports_of(path):
            if module == "":
                if name != "__version__":
                    wrong.append(
                        f"{path.relative_to(ROOT)}:{line}: {name} comes from its own room, not from the package"
                    )
            elif place(module) > place(here):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {module}, which stands below it")
    assert not wrong, "\n".join(wrong)


def test_other_rooms_are_entered_by_their_face():
    """Or by a whole file, whose name then stands before whatever is taken of it."""
    wrong = []
    for path in FILES:
        room = module_of(path).partition(".")[0]
        for line, module, name in imports_of(path):
            other, _, file = module.partition(".")
            if other in ROOMS and other != room and name and (file or name not in FACES[other]):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name} is not named by {other}/__init__.py")
            if other in ROOMS and other == room and not file:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name} comes from its file: this is its own room")
    assert not wrong, "\n".join(wrong)


def test_no_circle():
    """Of files: a face leads to the file that has the name."""
    leads: dict[str, set[str]] = {}
    for path in FILES:
        if not is_face(path):
            taken = ((FACES.get(module, {}).get(name, module)) for _, module, name in imports_of(path))
            leads[module_of(path)] = {module for module in taken if module}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "a circle: " + " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in sorted(leads.get(module, ())):
                walk(other, (*way, module))
            done.add(module)

    for module in leads:
        walk(module, ())


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_gives_what_it_says_and_tells_what_each_file_holds(room):
    face = import_module(f"universal_neurons.{room}")
    files = {module.split(".")[1] for module in MODULES if module.startswith(f"{room}.")}
    assert dir(face) == sorted(FACES[room]) or not FACES[room]
    assert not files & FACES[room].keys(), "a name of the face would hide a file"
    for name, module in FACES[room].items():
        assert getattr(face, name) is getattr(import_module(f"universal_neurons.{module}"), name), name
    for file in files:
        assert re.search(rf"^ *{file}/? ", face.__doc__, re.MULTILINE), f"{room}/__init__.py does not tell of {file}"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = face.nothing if FACES[room] else getattr(face, "nothing")  # noqa: B009


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("models", "Model load_model load_weights load_tokenizer verify DTYPES"),
        ("labels", "Label LabelSet LabelSource build_labels partner_rows token_test_masks unigram_masks"),
        ("interventions", "Edit FinalNorm final_residual frozen_norm intervene repeated"),
        ("study", "run_study"),
        ("dynamics", "Dynamics run_dynamics step_folder"),
        ("report", "study_figures write_report write_dynamics_report write_joint_report summary_html"),
        ("cli", "app main"),
    ],
)
def test_what_a_module_of_the_same_name_gave_its_room_gives(module, names):
    assert set(names.split()) <= FACES[module].keys()
