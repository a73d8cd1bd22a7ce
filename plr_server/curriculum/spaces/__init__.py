"""Level spaces: which levels there are, and the way between a level's id and its place in the table."""
