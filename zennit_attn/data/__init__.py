"""Many inputs: read from files, explained row by row, and written to a folder that is gone on with."""
