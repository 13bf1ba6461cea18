"""Subcommands of `bar` that train and evaluate; each module has `main(argv) -> exit status`."""
