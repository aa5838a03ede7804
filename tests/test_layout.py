"""The house rules of the code: layers that import only what is below them, no private names of
others, functions that fit on a page."""

import ast
from pathlib import Path

import pytest

import ddunet_keras

ROOT = Path(ddunet_keras.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 80
MAX_PARAMETERS = 10
NETWORK = "DDUNet.__init__"  # its length is the network's


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module):
    """ "litert", "deploy", "cli", or "core" for everything else."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ("litert", "deploy", "cli") else "core"


def imports_of(tree):
    """(module, name or None) of everything of this package that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def own_imports(path):
    for module, name in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
        if module.split(".")[0] == "ddunet_keras":
            whole = f"{module}.{name}"
            is_module = (ROOT.parent / Path(*whole.split("."))).with_suffix(".py").is_file()
            is_module |= (ROOT.parent / Path(*whole.split("."))).is_dir()
            yield (whole if is_module else module), name


def may_import(importer, imported):
    below = {
        "core": {"core"},
        "deploy": {"core", "deploy", "litert"},
        "litert": {"litert"},
        "cli": {"core", "deploy", "litert", "cli"},
    }
    if importer == "ddunet_keras":  # hands out the public names of all layers
        return layer_of(imported) != "cli"
    if importer == "ddunet_keras.__main__":
        return True
    if importer == "ddunet_keras.segmenter" and layer_of(imported) == "litert":
        return True
    return layer_of(imported) in below[layer_of(importer)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_what_is_below_it(path):
    importer = module_name(path)
    wrong = [module for module, _ in own_imports(path) if not may_import(importer, module)]
    assert not wrong


def test_the_rule_can_fail():
    assert not may_import("ddunet_keras.litert.model", "ddunet_keras.files")
    assert not may_import("ddunet_keras.litert.model", "ddunet_keras")
    assert not may_import("ddunet_keras.training", "ddunet_keras.deploy.convert")
    assert may_import("ddunet_keras.deploy.convert", "ddunet_keras.litert.model")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_private_name_of_another_module_is_used(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set()
    for module, name in own_imports(path):
        assert name is None or not name.startswith("_") or name == "__version__", name
        modules.add(name or module.rsplit(".", 1)[-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            assert not (private and node.value.id in modules), ast.unparse(node)


@pytest.mark.parametrize("package", ["deploy", "litert", "networks"])
def test_the_table_of_a_package_names_its_modules(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    table = ast.get_docstring(tree).split("====\n")[1]
    named = " ".join(line[:27].replace(",", " ") for line in table.splitlines()).split()
    modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert sorted(name for name in named if "=" not in name) == sorted(modules)


def functions(tree, prefix=""):
    """(qualified name, node) of all functions and methods."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
        inner = f"{prefix}{node.name}." if hasattr(node, "name") else prefix
        yield from functions(node, inner)


def code_lines(node):
    """Lines of a function without its docstring."""
    docstring = ast.get_docstring(node, clean=False)
    lines = node.end_lineno - node.body[0].lineno + 1
    return lines - (len(docstring.splitlines()) if docstring else 0)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_fit_on_a_page(path):
    for name, node in functions(ast.parse(path.read_text(encoding="utf-8"))):
        if name != NETWORK:
            assert code_lines(node) <= MAX_LINES, name
            arguments = node.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            assert count <= MAX_PARAMETERS, name
