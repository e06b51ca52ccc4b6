"""The codec: a catalogue in a fraction of its bytes, every value within a chosen share of its star's own catalogue error.

`bounds` says how far each value may be off, `fit` learns how columns follow from each other, `chunk` turns stars into bytes and
back, `files` has the parquet layout. Nothing here knows of workers or stages. The format is described in docs/codec.md.
"""
