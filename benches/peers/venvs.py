"""Throw-away virtual environments, and what is installed in them."""

import os
import subprocess
import sys

from .engine import EngineError

MARK = "installed.txt"


def run(command, **options):
    """Runs an installer's command; its output goes to standard error."""
    command = [str(part) for part in command]
    print("+", " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=sys.stderr, **options)
    if done.returncode != 0:
        raise EngineError(f"{' '.join(command)} ended with code {done.returncode}")


def is_installed(folder, what):
    """Whether `mark_installed` was called for just this."""
    mark = folder / MARK
    return mark.is_file() and mark.read_text() == what


def mark_installed(folder, what):
    (folder / MARK).write_text(what)


def make(folder, *requirements):
    """A virtual environment with these packages in `folder`/venv; returns its Python."""
    venv = folder / "venv"
    python = venv / "bin" / "python"
    if not python.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", venv])
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
    return python


def install(folder, *requirements):
    """As `make`, but only where the same has not been installed before; returns the Python."""
    what = "\n".join(requirements)
    if not is_installed(folder, what):
        make(folder, *requirements)
        mark_installed(folder, what)
    return folder / "venv" / "bin" / "python"


def version(python, package):
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return f"{package} {done.stdout.strip() or 'of unknown version'}"


def path_with(python):
    """An environment in which this Python's programs are found first."""
    return {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
