"""The `gruppo` command: finds the subcommand, and turns the user's mistakes into one clean message.

Exit codes: 0 done, 1 `audit` found an ALERT (`check-reward` and `doctor` a problem), 2 a mistake of the user's, 130
stopped with Ctrl-C. Anything else is a bug and shows its traceback.
Nothing heavy is imported here: `gruppo --help` does not load torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from gruppo.errors import GruppoError

COMMANDS = {
    "train": "train a policy, as a TOML or YAML file and flags say",
    "plan": "say what such a run would do, and check all that can be known before weights load",
    "check-reward": "try a reward function on made-up answers; exit code 1 if it has a problem",
    "monitor": "look at runs in the browser, while they run or later",
    "audit": "run the health checks on a run's records; exit code 1 if one gives an ALERT",
    "report": "write a run as one HTML file that needs nothing else, and as a picture",
    "compare": "two runs side by side: settings that differ, reward, evaluations, lengths, step time",
    "export": "a run's metrics, completions, events and tokens as CSV, JSON Lines or Parquet",
    "demo": "train the built-in tiny policy on this machine's CPU",
    "doctor": "say what is installed and what this machine can do; exit code 1 if something clashes",
}
"""Subcommand -> what it does. Each is the module `gruppo.cli.<name>` (with _ for -) with `run(argv) -> int`."""

OK, USER_ERROR, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = [_at_home(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return OK if arguments else USER_ERROR
    if arguments[0] == "--version":
        print(f"gruppo {importlib.metadata.version('gruppo')}")
        return OK
    command, *rest = arguments
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"gruppo: there is no command {command!r}.{hint} See: gruppo --help", file=sys.stderr)
        return USER_ERROR
    return _run(command, rest)


def _run(command: str, arguments: list[str]) -> int:
    try:
        code: int = importlib.import_module(f"gruppo.cli.{command.replace('-', '_')}").run(arguments)
    except GruppoError as error:
        print(f"gruppo {command}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"gruppo {command}: stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough; nothing may be left to flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code


def _at_home(argument: str) -> str:
    """`--flag=~/x` with the home folder written out: shells do that only where `~` begins the word."""
    flag, _, value = argument.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if flag.startswith("--") and value.startswith("~/") else argument


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  gruppo {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "gruppo: GRPO post-training of language models",
            "",
            *lines,
            "",
            "gruppo COMMAND --help says more. As a library: from gruppo import GRPOConfig, GRPOTrainer",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
