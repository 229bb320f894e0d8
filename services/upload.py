"""Build Carillon as Python packages and upload them: `python -m services.upload`.

Credentials come from the environment: TWINE_USERNAME and TWINE_PASSWORD (a token's user name is `__token__`).
`--repository-url` names another package index than the default one, such as a test index.
"""

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from services.start import fail

TOOLS = ("build", "twine")
DIST = Path("dist")


def main() -> None:
    """Build, check and upload; the first thing that is missing is said in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository-url", help="upload there instead")
    parser.add_argument("--skip-build", action="store_true", help="upload what is in dist/ already")
    options = parser.parse_args()
    missing = [name for name in ("TWINE_USERNAME", "TWINE_PASSWORD") if not os.environ.get(name)]
    if missing:
        fail(f"{' and '.join(missing)} must be set to upload")
    ensure_tools()
    if not options.skip_build:
        for old in DIST.glob("carillon-*"):
            old.unlink()
        run("build", "--outdir", str(DIST))
    artifacts = sorted(str(path) for path in DIST.glob("carillon-*"))
    if not artifacts:
        fail("dist/ holds no packages: leave out --skip-build")
    run("twine", "check", "--strict", *artifacts)
    target = ["--repository-url", options.repository_url] if options.repository_url else []
    run("twine", "upload", "--non-interactive", *target, *artifacts)


def ensure_tools() -> None:
    """Install the tools where the environment lacks them; the locked one has them."""
    missing = [tool for tool in TOOLS if find_spec(tool) is None]
    if missing:
        run("pip", "install", *missing)


def run(module: str, *arguments: str) -> None:
    """Run a Python module as a program; its failure ends this one."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)  # noqa: S603 (our own arguments)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
