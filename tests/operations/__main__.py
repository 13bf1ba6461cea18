"""`python -m tests.operations`: write the tables of docs/operations.md anew."""

from tests.operations.document import write

if __name__ == "__main__":
    write()
