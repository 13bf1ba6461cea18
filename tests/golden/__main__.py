"""`python -m tests.golden DIR`: run every golden file in DIR, exit 1 if any check fails."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.golden.check import Check
from tests.golden.generator_checks import generator_checks
from tests.golden.state_dict_checks import state_dict_checks
from tests.golden.tokenizer_checks import full_decoder_checks, tokenizer_checks

DATA = Path(__file__).parent / "data"
SUITES: dict[str, Callable[[Path], Iterator[Check]]] = {
    "bar_tiny_*.npz": generator_checks,
    "tokenizer_tiny*.npz": tokenizer_checks,
    "decode_full_*.npz": full_decoder_checks,
    "*.state_dict.json": state_dict_checks,
    "state_dicts/*.json": state_dict_checks,
}


def golden_files(directory: Path) -> Iterator[tuple[Path, Callable[[Path], Iterator[Check]]]]:
    """Yield each golden file in `directory` with the suite that checks it."""
    for pattern, suite in SUITES.items():
        for path in sorted(directory.glob(pattern)):
            yield path, suite


def main() -> int:
    """Print every check of every golden file and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=DATA)
    directory = parser.parse_args().directory
    passed = failed = 0
    for path, suite in golden_files(directory):
        print(path.relative_to(directory))
        for check in suite(path):
            print(f"  {check}", flush=True)
            passed, failed = passed + check.passed, failed + (not check.passed)
    if not passed + failed:
        print(f"no golden files in {directory}: expected {', '.join(SUITES)}")
        return 1
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
