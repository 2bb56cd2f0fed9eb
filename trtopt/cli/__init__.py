"""Command line: one small module a command. Touches: the terminal."""
