"""The version, in one place: the build, the package and the User-Agent read it from here."""

VERSION = "0.1.0"
