"""The `bar` command: a table of subcommands, each a module that is imported when it is called.

A subcommand's module has `main(argv) -> exit status` and parses its own arguments, so that
`bar --help` waits for neither torch nor a web framework. Modules are named here, not imported: the
training commands live in a package that the service does not depend on.
"""

import importlib
import sys
from collections.abc import Sequence

from model.errors import CheckpointError
from service import __version__
from service.errors import BarError

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("service.commands.serve", "serve a model over HTTP"),
    "worker": ("service.commands.worker", "make the images of a queue on a Redis server"),
    "queue": ("service.commands.queue", "look into such a queue; stop and retry its jobs"),
    "generate": ("service.commands.generate", "make images without a server"),
    "reproduce": ("service.commands.reproduce", "make an image again, and compare every pixel"),
    "models": ("service.commands.models", "list the models, and which are on this machine"),
    "download": ("service.commands.download", "fetch a published model"),
    "health": ("service.commands.health", "ask a process on this machine whether it is well"),
    "keys": ("service.commands.keys", "make and revoke API keys"),
    "bench": ("service.commands.bench", "measure the engine, or a running service"),
    "train": (
        "training.commands.train",
        "train a tokenizer or a generator; digits: the bundled model",
    ),
    "pretokenize": ("training.commands.pretokenize", "turn pictures into a generator's tokens"),
    "finetune": ("training.commands.finetune", "new classes, or a new decoder, for a model"),
    "sample": ("training.commands.sample", "draw a grid of images, or thousands for an evaluator"),
    "export": ("training.commands.export", "make a model directory from a run"),
    "push": ("training.commands.push", "upload a model directory to the hub"),
    "evaluate": ("training.commands.evaluate", "measure a model or a tokenizer: FID and its kin"),
    "sweep": ("training.commands.sweep", "find a model's best sampling settings"),
}
NO_TORCH = (
    "torch is not installed here, as in the image of the API: use the image of a worker, or "
    "install torch; `bar serve --redis-url` answers beside workers and needs none"
)
EXIT_INTERRUPTED = 130  # what shells report after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status: 0, 1 after an error, 2 after wrong usage."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"bar-serve {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"bar: no command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _run(name: str, arguments: Sequence[str]) -> int:
    try:
        command = importlib.import_module(COMMANDS[name][0])
        return int(command.main(arguments))
    except (BarError, CheckpointError) as error:
        print(f"bar {name}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(f"bar {name}: {NO_TORCH}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _help() -> str:
    commands = "\n".join(f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items())
    return f"""\
bar-serve {__version__}: class ids in, images out, with the masked Bit AutoRegressive generator BAR.

usage: bar COMMAND [OPTIONS]

commands:
{commands}

`bar COMMAND --help` explains one. To begin:

  bar serve                                       then open the address that it prints
  bar generate --class 7 --output seven.png       the same without a server"""
