"""uv, told what pip is configured with (indexes, links, constraints): it reads none of that itself. uv.py ARGUMENTS...

Takes the pip and the uv of the Python that runs it. A variable of uv's own that is set stays as it is.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

# pip's setting, uv's variable, and what separates several values in that.
SETTINGS = (
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("constraint", "UV_CONSTRAINT", " "),
    ("cert", "SSL_CERT_FILE", " "),
)


def pip_settings() -> dict[str, list[str]]:
    """Each of pip's settings by its name; a variable of the environment goes before a file, as in pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in (":env:", "install") or (section == "global" and key not in found):
            found[key] = ast.literal_eval(value).split()
    return found


def main() -> None:
    environment = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_PYTHON_DOWNLOADS": "never"}  # both as pip does
    pip = pip_settings()
    for setting, variable, separator in SETTINGS:
        if setting in pip:
            environment[variable] = separator.join(pip[setting])
    uv = Path(sys.executable).with_name("uv")
    os.execve(uv, [str(uv), *sys.argv[1:]], environment | os.environ)


if __name__ == "__main__":
    main()
