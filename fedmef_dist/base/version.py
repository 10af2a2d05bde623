"""The version of the package, for those who write it down."""

VERSION = "0.1.0"
