"""The command line from a checkout: `python complete_verifier/abcrown.py --config X.yaml`, from any directory.

`import abcrown` gives the package of that name also where this file's folder is on the path and hides it.
"""

from __future__ import annotations

import importlib
import os.path
import sys


def _find_packages_in_checkout() -> None:
    """Puts the checkout first on the path, and takes this file's own folder off it.

    Python puts the folder of a script first. There this very file would hide the package `abcrown`, and modules
    such as `config` or `events` would be found without their package.
    """
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != here]
    sys.path.insert(0, os.path.dirname(here))


def _give_way() -> None:
    """Puts the package in this module's place: the import that found this file ends with it."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    del sys.modules[__name__]
    importlib.import_module(__name__)


if __name__ == "abcrown":
    _give_way()

if __name__ == "__main__":
    _find_packages_in_checkout()

    from complete_verifier.__main__ import command

    command()
