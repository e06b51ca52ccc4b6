"""Rows of parquet files, read ahead in threads and mixed, for training here and for models of one's own:

batches    any HATS catalogue as shuffled torch batches (`gaiadask.batches`)
dataset    the files of such a catalogue
mixing     rows in the order of files to rows in a random order, through a buffer
row_ranges which rows of which files, shared among ranks, and reading them
"""
