"""Work on one part of a whole, on any machine, and its partial result.

`--shard I/N` works on the I-th of N parts. `trtopt merge` makes the result of the whole from all N partial results.

- `shard` divides samples, or other items;
- `partial` is the file of a partial result, and says which files belong together.
"""
