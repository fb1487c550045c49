"""`import arguments` of a user's module: `arguments.Config[section][key]`."""

from __future__ import annotations

from complete_verifier.compat.config_view import ConfigView

Config = ConfigView()
