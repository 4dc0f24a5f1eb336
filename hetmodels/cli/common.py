"""What the commands share: options of particle files, output, and the one place where errors become exit statuses."""

import argparse
import contextlib
import difflib
import errno
import logging
import math
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hetmodels.errors import DataError, UsageError
from hetmodels.run_directory import LOGGERS, RunDirectory, to_json

if TYPE_CHECKING:
    from hetmodels.data.metadata import Metadata, Overrides
    from hetmodels.data.particles import Particles


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError`, takes no abbreviations and proposes the option that was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the program."""
        raise UsageError(f"{self.prog}: {message}. See `{self.prog} --help`.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, naming the nearest option for each unknown one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = next((w for w in unknown if w.startswith("-")), unknown[0]).split("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(word, options, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" See `{self.prog} --help`."
            what = "option" if word.startswith("-") else "argument"
            raise UsageError(f"{self.prog}: there is no {what} {word!r}.{hint}")
        return parsed


def number(kind: type, low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> Callable:
    """A type for argparse: a finite number with low <= value <= high and value > above."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not (math.isfinite(value) and low <= value <= high and value > above):
            bounds = [f"above {above:g}"] * (above > -math.inf) + [f"at least {low:g}"] * (low > -math.inf)
            bounds += [f"at most {high:g}"] * (high < math.inf)
            raise argparse.ArgumentTypeError(f"must be {' and '.join(bounds) or 'finite'}, got {text}")
        return value

    convert.__name__ = kind.__name__
    return convert


def particle_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a particle file and its images are to be read, for `open_particles`."""
    group = table_options(parser)
    group.add_argument(
        "--box", type=number(int, 4), metavar="D", help="crop in Fourier space to D pixels, an even number"
    )
    group.add_argument(
        "--window",
        type=number(float, above=0),
        metavar="A",
        help="diameter of a soft disc on the images, in Å (up to 1: in boxes)",
    )


def table_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add those that concern the table, for `read_table`; the positional `particles` is the command's own."""
    group = parser.add_argument_group("particles")
    group.add_argument("--datadir", type=Path, metavar="DIR", help="folder that the image paths in the file start from")
    group.add_argument("--passthrough", type=Path, metavar="FILE.cs", help="cryoSPARC file with the remaining columns")
    group.add_argument("--poses", type=Path, metavar="FILE.pkl", help="poses in cryoDRGN's format")
    group.add_argument("--ctf", type=Path, metavar="FILE.pkl", help="CTF parameters in cryoDRGN's format")
    positive = number(float, above=0)
    group.add_argument("--pixel", type=positive, metavar="A", help="pixel size in Å, in place of the file's")
    group.add_argument(
        "--voltage", type=positive, metavar="KV", help="acceleration voltage in kV, in place of the file's"
    )
    group.add_argument("--cs", type=number(float, 0), metavar="MM", help="spherical aberration in mm, likewise")
    group.add_argument(
        "--amplitude-contrast", type=number(float, 0, 1), metavar="Q", help="amplitude contrast, 0 to 1, likewise"
    )
    group.add_argument("--invert", action="store_true", help="change the sign of the images' contrast")
    group.add_argument("--no-ctf", action="store_true", help="the images have no CTF")
    return group


def _overrides(args: argparse.Namespace) -> "Overrides":
    from hetmodels.data.metadata import Overrides

    return Overrides(
        pixel=args.pixel,
        voltage=args.voltage,
        cs=args.cs,
        amplitude_contrast=args.amplitude_contrast,
        invert=args.invert,
        no_ctf=args.no_ctf,
    )


def read_table(args: argparse.Namespace) -> "Metadata":
    """The particle table named by `args.particles` with the options of `table_options`; no image is opened."""
    from hetmodels.data.metadata import read_metadata

    return read_metadata(
        args.particles, passthrough=args.passthrough, poses=args.poses, ctf=args.ctf, overrides=_overrides(args)
    )


def open_particles(args: argparse.Namespace) -> "Particles":
    """The particles named by `args.particles` with the options of `particle_options`."""
    from hetmodels.data.particles import Particles

    return Particles.open(
        args.particles,
        datadir=args.datadir,
        passthrough=args.passthrough,
        poses=args.poses,
        ctf=args.ctf,
        overrides=_overrides(args),
        box=args.box,
        window=args.window,
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")


def emit(args: argparse.Namespace, data: Mapping[str, Any] | Sequence[Any], text: str) -> None:
    """Print the answer of a command: `data` as JSON under `--json`, else `text`."""
    print(to_json(data, indent=2) if getattr(args, "json", False) else text)


def new_output(path: Path, overwrite: bool) -> Path:
    """The path of a file to be written; its folder is made.

    Raises:
        UsageError: if the path is a folder, or exists and may not be replaced.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists. Add --overwrite to replace it, or give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def new_folder(path: Path, overwrite: bool) -> Path:
    """A folder to write several files into, made here; its own files of the same names may be replaced.

    Raises:
        UsageError: if the path is a file, or a folder with files in it that may not be replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; give the name of a folder.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UsageError(f"{path} is not empty. Add --overwrite to write into it, or give another name.")
    path.mkdir(parents=True, exist_ok=True)
    return path


class _Console(logging.Handler):
    """Messages on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno >= logging.WARNING:
            line = f"{record.levelname.lower()}: {line}"
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


@contextlib.contextmanager
def _spoken() -> Iterator[None]:
    """Loggers and warnings speak in plain lines on standard error (and through the loggers, in run.log).

    A command that calls others speaks once.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    if any(isinstance(handler, _Console) for handler in loggers[0].handlers):
        yield
        return
    handler = _Console()
    levels = [logger.level for logger in loggers]

    def show(message: Warning | str, category: type[Warning], *place: Any, **named: Any) -> None:
        loggers[0].warning("%s", message)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("ignore", FutureWarning)  # addressed to programmers
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)


def guarded(words: Sequence[str], command: Callable[[], int]) -> int:
    """Run a command and turn the errors a user can cure into one line on standard error and an exit status.

    An error that is none of these is a fault of the program; it passes through, with its traceback.
    """
    try:
        with _spoken():
            status = command()
            sys.stdout.flush()
            return status
    except SystemExit as leaving:  # argparse, after --help
        return leaving.code if isinstance(leaving.code, int) else 0
    except UsageError as error:
        return _failed(words, str(error), 2)
    except DataError as error:
        return _failed(words, str(error), 1)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _failed(words, _system_message(error), 1)
    except MemoryError as error:
        return _failed(words, f"out of memory: {error}. A smaller --box or fewer particles need less.", 1)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _failed(words, f"out of device memory: {_first_line(error)} A smaller --box needs less.", 1)
    except KeyboardInterrupt:
        return _failed(words, f"interrupted.{_how_to_resume(words)}", 130)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _system_message(error: OSError) -> str:
    text = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    cure = " Free some space; a run goes on with --resume." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{where}{text}.{cure}"


def _failed(words: Sequence[str], message: str, status: int) -> int:
    if "--traceback" in words or os.environ.get("HETMODELS_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _how_to_resume(words: Sequence[str]) -> str:
    """' Go on with: …' where the interrupted command left a checkpoint."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-o", "--output")
    output = parser.parse_known_args(list(words))[0].output
    if not words or words[0] != "fit" or output is None or not RunDirectory(output).checkpoint.exists():
        return ""
    again = [word for word in words if word not in ("--resume", "--overwrite")]
    return f" Go on with: {shlex.join(['hetmodels', *again, '--resume'])}"
