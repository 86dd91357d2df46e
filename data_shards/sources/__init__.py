"""Where files come from: folders and archives, compressed and nested in one another.

In: paths and patterns from the command line. Out: members that can be read within limits of size, and the
inventory of all images among them. Open `source` first, then `inventory`.
"""
