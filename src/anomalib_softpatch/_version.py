"""Version of the package, semantic (https://semver.org)."""

__version__ = "0.3.0"
