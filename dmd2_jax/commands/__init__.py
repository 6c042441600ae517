"""The `dmd2` command: one file or folder a sub-command."""
