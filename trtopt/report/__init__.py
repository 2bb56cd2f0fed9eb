"""A report in the form asked for: `--format NAME` is the module of that name."""
