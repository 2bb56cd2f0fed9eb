"""Command line, one small module per command. Touches: the terminal."""
