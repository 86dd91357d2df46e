"""What every package shares, and nothing that knows a radiograph.

In: command lines, texts, tables, bytes. Out: settings, one-line errors, HTML pages, files that are never half
written. It imports no other package of the project. Open `cli` first: every command begins there.
"""
