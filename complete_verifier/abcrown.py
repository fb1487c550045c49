"""The command line from a checkout: `python complete_verifier/abcrown.py --config X.yaml`, from any directory."""

from __future__ import annotations

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


if __name__ == "__main__":
    _find_packages_in_checkout()

    from complete_verifier.__main__ import command

    command()
