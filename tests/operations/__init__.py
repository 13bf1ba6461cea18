"""The parts of docs/operations.md that are made from the code: `python -m tests.operations`."""
