"""The processes of a run: precision, environment, signals, and what ends a run that hangs.

In: the device and the other processes. Out: a run that stops in order, or ends with one line that says why. Open
`watchdog` first.
"""
