"""Version of the package, semantic (https://semver.org)."""

__version__ = "0.2.0"
