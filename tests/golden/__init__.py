"""Parity with the published BAR: golden numbers, and the checks that reproduce them.

`python -m tests.golden DIR` runs every golden file in DIR; `tests/test_golden.py` runs those in
`tests/golden/data`. Weights are not stored: `weights.py` derives each parameter from its published
name. A file's architecture is read from the file, so files of other sizes work as well.
"""
