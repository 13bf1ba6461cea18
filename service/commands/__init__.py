"""The subcommands of `bar`, one module each; `service.cli` names them."""
