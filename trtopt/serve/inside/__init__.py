"""Files that Triton's Python backend runs, inside a server. Nothing imports them: they are copied, with what they need.

Arrays go in and out through DLPack, which works for every pair of versions of numpy and of the backend.
"""
