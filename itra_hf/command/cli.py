"""The command `itra-hf`: train, or compare Trainer with ITRATrainer, without writing a script."""

import sys

from itra_hf.command.help_texts import COMMANDS, HELP, options_help
from itra_hf.command.launching import launch
from itra_hf.version import __version__


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<9} {told}" for name, told in COMMANDS.items())))
        return
    if argv[0] == "--version":
        print(__version__)
        return
    command, *rest = argv
    if command not in COMMANDS:
        sys.exit(f"itra-hf: {command!r} is no command; choose one of {', '.join(COMMANDS)}")
    rest, shows_traceback = _without_debug(rest)
    try:
        launch(argv, "itra_hf.command.cli")
        run(command, rest)
    except (ValueError, OSError, ImportError) as error:  # what a user can mend; the others are faults of ours
        if shows_traceback:
            raise
        sys.exit(f"itra-hf {command}: {_one_line(error)}")
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where it stopped" if command == "compare" else ""
        print(f"\nitra-hf {command}: interrupted{goes_on}", file=sys.stderr)
        sys.exit(130)


def run(command: str, argv: list[str]) -> None:
    """Run a command, or print its options; what takes seconds to import is imported here."""
    from itra_hf.command import commands

    if {"-h", "--help"} & set(argv):
        groups = commands.OPTIONS.get(command)
        print(options_help(command, COMMANDS[command], groups) if groups else COMMANDS[command])
    else:
        getattr(commands, f"{command}_command")(argv)


def _one_line(error: Exception) -> str:
    """The message; a worker of the data loader puts a traceback before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[-1 if "Original Traceback" in str(error) else 0 :]).strip()


def _without_debug(argv: list[str]) -> tuple[list[str], bool]:
    """The words without the flag --debug, and whether it was there; with a value, it is an option of Trainer."""
    flags = [n for n, word in enumerate(argv) if word == "--debug" and (argv[n + 1 : n + 2] or ["--"])[0][:2] == "--"]
    return [word for n, word in enumerate(argv) if n not in flags], bool(flags)


if __name__ == "__main__":
    main()
