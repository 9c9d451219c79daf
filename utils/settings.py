"""What the command lines of main.py and rw_eval.py share."""

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from types import FrameType, NoneType, TracebackType, UnionType
from typing import Any, ClassVar, get_args, get_origin

try:
    import yaml
except ModuleNotFoundError as error:  # the first package that is needed
    raise SystemExit(
        f"error: {error}: run `source .venv/bin/activate`, or `pip install -r requirements.txt`"
    ) from error


class InputError(Exception):
    """Something the user gave cannot be used: the message says what was found and what mends it.

    main.py and rw_eval.py print the message and exit with code 2.
    """


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C ends the program.

    Attributes:
        exit_code: 128 + the signal's number.
        saved: a sentence on what was written before; "" if nothing was.
    """

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code, self.saved = exit_code, ""


def stop_on_signals() -> None:
    """Let SIGTERM and Ctrl-C raise Stopped.

    A program that does not catch it, since it is still being loaded, ends with a line.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers repeat it
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once
        raise Stopped(128 + number)

    def end(kind: type, error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, Stopped):
            sys.__excepthook__(kind, error, trace)
            return
        if os.environ.get("RANK", "0") == "0":
            print("stopped while it was loading; nothing was done", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sys.excepthook = end


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show, and N for a whole number, X for any."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        return {int: "N", float: "X"}.get(action.type, action.dest.rsplit("_")[-1].upper())


def user_path(text: str) -> str:
    """The type of flags that take a path or a name of the hub: a leading ~ is the home folder.

    Raises:
        argparse.ArgumentTypeError: no file can be called so, or there is no such user.
    """
    path = os.path.expanduser(text)
    if "\0" in path:
        raise argparse.ArgumentTypeError(f"{text!r} has a NUL byte, which no path has")
    if path.startswith("~") and not os.path.lexists(path):
        raise argparse.ArgumentTypeError(
            f"{text} begins with ~, but there is no such user; expected ~/... for the home "
            "folder, or ./~... for a name that begins so"
        )
    return path


# What another value of a flag means to a run that goes on from a training state. REFUSED: it would
# be another run. SIZE: what the sizes make together is compared, a step. FREE: nothing that trains
# depends on it, but for rounding. Any other sentence is printed, and the run goes on.
REFUSED, SIZE, FREE = "refused", "size", "free"


def flag(
    default: Any,
    help: str,
    *,
    resume: str = REFUSED,
    least: float | None = 0,
    also: Mapping[str, tuple[Any, str]] | None = None,
    exclusive: bool = False,
    **options: Any,
) -> Any:
    """A field of a class of settings, which is also the flag of that name.

    Its type is the field's: a bool makes a switch, `bool | None` a switch with --no-FLAG, a list
    takes several words. A field whose default None is filled in before anything asks for it, is of
    the type that it then has.

    Args:
        default: the value without the flag; `dataclasses.MISSING` if the flag must be given.
        help: what it means, in the words of --help.
        resume: what another value means to a run that goes on, as above.
        least: the smallest number that it takes; None: any.
        also: switches that stand for one of its values, each with that value and its help.
        exclusive: of all fields of the class that are, one alone may be given.
        options: of `add_argument`: choices, metavar, nargs, const, type, action.
    """
    metadata: dict[str, Any] = {
        "resume": resume,
        "least": least,
        "also": also or {},
        "exclusive": exclusive,
    }
    metadata["options"] = {"help": help, **options}
    if isinstance(default, list):
        return field(default_factory=partial(list, default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags that belong together, and what can be checked in them alone.

    A subclass with a title is a group of the help; its `_check` refuses what contradicts. A whole
    command line is the class that has all its groups as bases, or as bases of its bases: it can be
    given to any function that takes one of them.

    Raises:
        InputError: a value cannot be meant; the message names its flag.
    """

    title: ClassVar[str]
    about: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least = getattr(self, entry.name), entry.metadata["least"]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and least is not None and not value >= least:  # also if it is NaN
                raise InputError(f"--{entry.name} is {value}; it must be at least {least}")

        for group in type(self).__mro__:
            if check := vars(group).get("_check"):
                check(self)

    def check_files(self) -> None:
        """Refuse files that flags name, once, as the command line is read; InputError says why."""

    @classmethod
    def groups(cls) -> list[type["Settings"]]:
        """The groups of a command line, in the order of the help."""
        return [group for group in cls.__mro__ if "title" in vars(group)]

    def flags(self, *meanings: str) -> dict[str, Any]:
        """Values by the names of their flags, in the order of the help.

        Args:
            meanings: only flags of which another value means one of these to a run that goes on.
        """
        entries = [entry for group in self.groups() for entry in fields(group)]
        return {
            entry.name: getattr(self, entry.name)
            for entry in entries
            if not meanings or entry.metadata["resume"] in meanings
        }


def _add_group(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    group = parser.add_argument_group(settings.title, settings.about)
    exclusive = None

    for entry in fields(settings):
        add = group.add_argument
        if entry.metadata["exclusive"]:
            exclusive = exclusive or group.add_mutually_exclusive_group()
            add = exclusive.add_argument
        add(f"--{entry.name}", **_argument(entry))
        for name, (value, text) in entry.metadata["also"].items():
            add(name, dest=entry.name, action="store_const", const=value, help=text)


def _argument(entry: Field) -> dict[str, Any]:
    """What `add_argument` takes for a field."""
    options: dict[str, Any] = {}
    kind, default = entry.type, entry.default
    if isinstance(kind, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is list:
        kind, options["nargs"] = get_args(kind)[0], "+"

    if kind is bool:
        optional = argparse.BooleanOptionalAction
        options["action"] = optional if default is None else "store_true"
    elif kind is not str:
        options["type"] = kind

    if entry.default_factory is not MISSING:
        default = entry.default_factory()
    if default is MISSING:
        options["required"] = True
    else:
        options["default"] = default
    return options | entry.metadata["options"]


class FlagParser(argparse.ArgumentParser):
    """Reads flags from the command line and, where --config names one, from a file before it.

    The words that stand for the file come first, so a flag of the command line wins over the file,
    and both are checked in the same way.

    Args:
        settings: class of the whole command line.
        prog, usage, description: as of an ArgumentParser.
        config: what --config can be, for the help.
        removed: flags that there were once, perhaps with a value, and what to do instead.
    """

    def __init__(
        self,
        settings: type[Settings],
        *,
        prog: str,
        usage: str,
        description: str,
        config: str,
        removed: Mapping[str, str] | None = None,
    ):
        self.settings = settings
        self.removed = removed or {}
        # A shortened flag is taken for a mistyped one, since later versions may make it ambiguous.
        super().__init__(
            prog, usage, description, formatter_class=HelpFormatter, allow_abbrev=False
        )
        self.add_argument(
            "--config",
            type=user_path,
            metavar="FILE",
            help=f"YAML or JSON file with flags, {config}; flags given here win over the file, "
            "the file over defaults",
        )
        for group in settings.groups():
            _add_group(self, group)

    def parse(self, argv: list[str] | None) -> Any:
        """The settings of a command line (None: the process's); exits with code 2 on bad words."""
        try:
            settings = self.settings(**vars(self._parse_words(argv)))
            settings.check_files()
        except InputError as error:
            self.error(str(error))
        return settings

    def _parse_words(self, argv: list[str] | None) -> argparse.Namespace:
        given = sys.argv[1:] if argv is None else argv
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", type=user_path)
        path = finder.parse_known_args(given)[0].config
        words = self._read_config(path) if path else []
        self._refuse_removed(words + given)

        args, unknown = self.parse_known_args(words + given)
        if unknown:
            hint = _nearest(unknown[0].split("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        del args.config
        return args

    def _refuse_removed(self, words: list[str]) -> None:
        parts = [p for w in words for p in (w.split("=", 1) if w.startswith("--") else [w])]
        for flag, instead in self.removed.items():
            asked = flag.split()  # the flag, perhaps with a value
            places = range(len(parts) - len(asked) + 1)
            if any(parts[place : place + len(asked)] == asked for place in places):
                self.error(f"{flag} is no longer there: {instead}")

    def _read_config(self, path: str) -> list[str]:
        try:
            with open(path, encoding="utf-8") as file:
                values = yaml.safe_load(file)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            self.error(f"--config {path} cannot be read: {' '.join(str(error).split())}")
        if isinstance(values, dict) and "arguments" in values:
            values = values["arguments"]  # of a training_args.json, which holds more
        if not isinstance(values, dict):
            self.error(f"--config {path} must have a line `flag: value` for each flag")
        actions = {action.dest: action for action in reversed(self._actions)}
        flags = actions.keys() - {"help", "config"}
        for flag, instead in self.removed.items():
            # A file of an earlier version names all flags, also those that were not given.
            if values.pop(flag.removeprefix("--"), None) not in (None, False, 1):
                self.error(f"--config {path}: {flag} is no longer there: {instead}")

        unknown = [f"{name}{_nearest(str(name), flags)}" for name in values if name not in flags]
        if unknown:
            self.error(f"--config {path}: there is no flag {', no flag '.join(unknown)}")
        words = []
        for name, value in values.items():
            try:
                words += _words(actions[name], value)
            except ValueError as error:
                self.error(f"--config {path}: {name} is {value!r}; {error}")
        return words


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, 1, cutoff=0.65)
    return f" (the nearest is {near[0]})" if near else ""


def _words(action: argparse.Action, value) -> list[str]:
    """What one would type for a value of a file; null and a switch that is off are left out."""
    flag = action.option_strings[0]
    if value is None or value == []:
        return []
    if isinstance(value, bool):
        return [flag] if value else list(action.option_strings[1:])  # --no-FLAG, if there is one
    if action.nargs == 0:
        raise ValueError("it must be true or false")
    if isinstance(value, dict):
        raise ValueError("it must be a value or a list of values")
    if not isinstance(value, list):
        return [f"{flag}={value}"]
    if isinstance(action.nargs, str | int):
        return [flag, *map(str, value)]
    return [f"{flag}={','.join(map(str, value))}"]  # data_split


def layout_flag() -> Any:
    """--batch_layout, which main.py and rw_eval.py share."""
    return flag(
        None,
        "packed: one row without padding, the tokens that the answers of a comparison share are "
        "computed once; padded: a row for each answer; same scores (default: packed where the "
        "model family can)",
        choices=("packed", "padded"),
        resume=FREE,
    )


def remote_code_flag() -> Any:
    """--trust_remote_code, which main.py and rw_eval.py share."""
    return flag(
        False,
        "run model code that comes with the checkpoint; only for sources you trust",
        resume=FREE,
    )
