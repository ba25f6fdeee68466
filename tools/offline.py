"""The offline edition: `python tools/offline.py` builds the book and packs it into one zip file.

Unpacked anywhere, it is the whole book, the lab included; its README.txt says how to open it. The same book
gives the same bytes. `--html FOLDER` packs a book that is built already. Needs the extra `book`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bnlib import __version__

ROOT = Path(__file__).resolve().parents[1]
NAME = f"why-batch-normalization-works-{__version__}"
NOT_PACKED = {".buildinfo", ".nojekyll"}
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip file can hold

READ_ME = f"""Why Batch Normalization Works, version {__version__}: the offline edition

Open index.html in a browser: nothing is fetched from a network.
If your browser restricts pages that it opens from disk, serve this folder. With Python, type in this folder

    python -m http.server --bind 127.0.0.1 8000

and open http://127.0.0.1:8000/ in the browser.

Text, figures and recorded results: CC BY 4.0. Code: MIT, see LICENSE.txt. The pages bring with them MathJax
(Apache 2.0), Vega, Vega-Lite and Vega-Embed (BSD 3-Clause) and the Sphinx Book Theme (BSD 3-Clause).
"""


def build(folder: Path) -> Path:
    """Build the book into `folder`; returns where its pages are. A build that fails ends the program."""
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", ROOT, "--path-output", folder, "-W", "--keep-going", "-q"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"The book could not be built, so there is nothing to pack:\n{done.stdout[-3000:]}")
    return folder / "_build" / "html"


def pack(html: Path, folder: Path) -> Path:
    """The zip file of the book in `html`, written into `folder` in one step: sorted, one date for all files.

    Raises FileNotFoundError where `html` holds no book.
    """
    if not (html / "index.html").is_file():
        raise FileNotFoundError(f"{html} holds no built book: leave --html away, and one is built.")
    contents = {
        path.relative_to(html).as_posix(): path.read_bytes()
        for path in html.rglob("*")
        if path.is_file() and path.name not in NOT_PACKED
    }
    contents["README.txt"] = READ_ME.encode()
    contents["LICENSE.txt"] = (ROOT / "LICENSE").read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{NAME}.zip"
    partial = target.with_suffix(".partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in sorted(contents.items()):
                about = zipfile.ZipInfo(f"{NAME}/{name}", LONG_AGO)
                about.external_attr = 0o644 << 16
                archive.writestr(about, content, zipfile.ZIP_DEFLATED)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def main() -> None:
    """Build, pack, and say where the file is and how large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, help="a book that is built already, such as _build/html")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "_build", help="folder of the zip file (_build)"
    )
    options = parser.parse_args()
    try:
        if options.html:
            target = pack(options.html, options.output)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                target = pack(build(Path(scratch)), options.output)
    except OSError as error:
        sys.exit(f"The offline edition could not be written: {error}")
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
