"""Guard of the build: everything else about the package is in pyproject.toml.

The import package ``ganglion`` is assembled by symbolic links from ``src/ganglion`` to the folders
of the architecture. A checkout without symbolic links (git on Windows, some archives) holds small
text files in their place, and setuptools would quietly build a package that is nearly empty.
"""

import sys
from pathlib import Path

from setuptools import setup

LINKS = ("bridges", "broker", "clients", "protocols")

package = Path(__file__).resolve().parent / "src" / "ganglion"
broken = [name for name in LINKS if not (package / name / "__init__.py").is_file()]
if broken:
    sys.exit(
        f"ganglion cannot be built: {', '.join(f'src/ganglion/{name}' for name in broken)} should"
        " be symbolic links to the folders of the same name at the root of the checkout, and are"
        " not. Check out with links:\n"
        "    git config core.symlinks true\n"
        "    git checkout -- src/ganglion\n"
        "(on Windows also switch on Developer Mode), or build from the sdist."
    )

setup()
