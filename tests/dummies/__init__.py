"""One of each kind of part that can be added in one file and one line of a table: what the tests add."""
