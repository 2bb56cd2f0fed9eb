"""Commands: one file per command of the command line, from its plan to its report."""
