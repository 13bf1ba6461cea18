"""The rules that give the code its shape, checked on the source itself.

Import rules that a contract can state stand in pyproject.toml; here is what a contract cannot
say. Each test collects every offender, so that one run names them all.
"""

import ast
import builtins
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "service", "training")
LOADER = "service.engine_loader"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield the path relative to the root and the syntax tree of every module in `folders`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def imported_roots(tree: ast.Module) -> set[str]:
    """Name the top-level packages that a module imports absolutely, anywhere in it."""
    roots: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            roots.add(node.module.partition(".")[0])
    return roots


def contract(contract_id: str) -> dict[str, list[str]]:
    """Read one import contract from pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    found: dict[str, list[str]] = next(c for c in contracts if c["id"] == contract_id)
    return found


def test_import_contracts_hold() -> None:
    """Service and training import model, nothing goes the other way, the API is torch-free."""
    # In a process of its own: the linter configures logging, and silences every logger there is.
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    linter = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert linter.returncode == 0, linter.stdout + linter.stderr


def test_model_imports_only_what_it_may() -> None:
    """model/ needs torch, numpy, safetensors and the hub client; two files need one thing more."""
    allowed = {
        "model",
        "torch",
        "numpy",
        "safetensors",
        "huggingface_hub",
    } | sys.stdlib_module_names
    foreign = {path: imported_roots(tree) - allowed for path, tree in sources("model")}
    assert {
        "model/decode_attention.py": {"triton"},  # part of torch's CUDA builds
        "model/image_encoder.py": {"transformers"},
    } == {p: f for p, f in foreign.items() if f}


def service_modules() -> set[str]:
    """Name every module of service/ that is there to be imported, packages themselves aside."""
    paths = [path for path, _ in sources("service") if not Path(path).name.startswith("__")]
    return {path.removesuffix(".py").replace("/", ".") for path in paths}


def test_torch_free_contract_names_the_whole_service() -> None:
    """Of service/, only engine_loader and the subcommands, lazily, may reach torch."""
    modules = service_modules()
    torch_side = {m for m in modules if m.startswith("service.commands.")} | {LOADER}
    named = {m for m in contract("torch-free")["source_modules"] if m.startswith("service.")}
    assert modules - torch_side == named


def test_importing_the_service_never_loads_torch() -> None:
    """Every module of service/ but engine_loader can be imported without importing torch."""
    modules = ", ".join(sorted(service_modules() - {LOADER}))
    assert "False" == run_python(f"import sys, {modules}\nprint('torch' in sys.modules)")


def test_help_never_loads_torch() -> None:
    """`bar --help` prints its text without importing torch."""
    script = (
        "import sys, service.cli\n"
        "sys.argv = ['bar', '--help']\n"
        "try:\n    service.cli.main()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('torch' in sys.modules)"
    )
    *text, torch_loaded = run_python(script).splitlines()
    assert any("serve" in line for line in text)
    assert "False" == torch_loaded


def run_python(script: str) -> str:
    """Run `script` in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_files_stay_short() -> None:
    """No module is longer than 400 lines."""
    lengths = {
        path: len((ROOT / path).read_text("utf-8").splitlines()) for path, _ in sources(*PACKAGES)
    }
    assert {} == {path: n for path, n in lengths.items() if n > MAX_FILE_LINES}


def test_functions_stay_short() -> None:
    """No function is longer than 60 lines, its docstring included."""
    lengths = {
        f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in sources(*PACKAGES)
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert {} == {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}


def test_every_module_says_what_it_is() -> None:
    """Every module that holds anything, tests included, has a docstring."""
    modules = sources(*PACKAGES, "tests")
    assert [] == [path for path, tree in modules if tree.body and not ast.get_docstring(tree)]


def test_every_test_states_its_fact() -> None:
    """Every test function has a docstring."""
    assert [] == [
        f"{path}:{node.name}"
        for path, tree in sources("tests")
        for node in ast.walk(tree)
        if isinstance(node, Function) and node.name.startswith("test_")
        if not ast.get_docstring(node)
    ]


def test_environment_is_read_in_one_place() -> None:
    """Only service/settings.py reads environment variables."""
    readers = {
        path
        for path, tree in sources(*PACKAGES)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"})
        or (isinstance(node, ast.ImportFrom) and node.module == "os"
            and {alias.name for alias in node.names} & {"environ", "environb", "getenv"})
    }  # fmt: skip
    assert set() == readers - {"service/settings.py"}


def test_model_raises_only_its_own_errors() -> None:
    """Of Python's errors model/ raises ValueError and KeyError; its own root is CheckpointError."""
    nodes = [(path, node) for path, tree in sources("model") for node in ast.walk(tree)]
    raised = {
        (path, ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc))
        for path, node in nodes
        if isinstance(node, ast.Raise) and node.exc is not None
    }
    roots = {
        node.name
        for _, node in nodes
        if isinstance(node, ast.ClassDef) and "Exception" in map(ast.unparse, node.bases)
    }
    builtin = {(path, name) for path, name in raised if hasattr(builtins, name)}
    assert set() == {(p, name) for p, name in builtin if name not in {"ValueError", "KeyError"}}
    assert {"CheckpointError"} == roots


def test_no_drawer_for_odds_and_ends() -> None:
    """No module is called utils, common, helpers or misc: each has a noun of its own."""
    drawer = re.compile(r"(^|[/_])(utils?|common|helpers?|misc)(?=[/_.])")
    assert [] == [path for path, _ in sources(*PACKAGES, "tests") if drawer.search(path)]


def module_tree() -> dict[str, str]:
    """Read docs/tree.md: path relative to the root → what is said about it."""
    document = (ROOT / "docs" / "tree.md").read_text("utf-8")
    block = re.search(r"^```\w*\nbar-serve/[^\n]*\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert block, "docs/tree.md has no fenced block whose first line is bar-serve/"
    described: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name, _, text = line.strip().partition(" ")
        described["".join([*folders[:depth], name])] = text.strip()
        if name.endswith("/"):
            folders[depth:] = [name]
    return described


def test_module_tree_equals_the_disk() -> None:
    """docs/tree.md names every module, names nothing else, and says what each is."""
    described = module_tree()
    modules = {path for path, _ in sources(*PACKAGES) if not path.endswith("__init__.py")}
    assert [] == sorted(modules - set(described)), "on disk, not in docs/tree.md"
    assert [] == sorted(p for p in described if not (ROOT / p).exists()), "only in docs/tree.md"
    assert [] == sorted(p for p in modules if not described[p]), "named without a word about it"
