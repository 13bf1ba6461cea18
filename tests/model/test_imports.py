"""What the model package needs to be imported, each time in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "model").glob("*.py") if path.stem != "__init__")


def run_python(script: str) -> str:
    """Run `script` at the root and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


def test_configurations_need_no_array_library() -> None:
    """Importing model.config loads neither torch nor numpy."""
    script = "import sys, model.config\nprint({'torch', 'numpy'} & set(sys.modules))"
    assert "set()" == run_python(script)


def test_every_module_imports_where_serving_and_training_are_missing() -> None:
    """All of model/ imports without transformers, and without any package of service or training;
    a decoding tokenizer of a published model is built there as well."""
    missing = ["transformers", "fastapi", "pydantic", "redis", "sklearn", "PIL", "matplotlib"]
    script = "\n".join(
        [
            "import sys, torch",
            f"for name in {missing}: sys.modules[name] = None",
            *(f"import model.{module}" for module in MODULES),
            "from model.config import PRESETS",
            "from model.tokenizer import Tokenizer",
            "with torch.device('meta'):",
            "    Tokenizer(PRESETS['bar-b'].tokenizer, with_encoder=False)",
            "print('imported')",
        ]
    )
    assert "imported" == run_python(script)
