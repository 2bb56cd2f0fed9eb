"""Offline batch inference: one row per sample, resumed after a kill without losing or repeating a row.

- `answers` turns the outputs of a network into the columns of a row;
- `batching` joins samples of one shape, in batches that memory decides;
- `lanes` runs batches, several at a time;
- `journal` keeps finished blocks of rows beside the output, and joins them at the end;
- `formats/` writes rows, one file per suffix of the output;
- `pauses` waits while another service needs the GPU;
- `loop` does all of this for a data set.
"""
