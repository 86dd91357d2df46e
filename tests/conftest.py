import os

# Two processes of tests share the machine: with more threads than cores torch stalls. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# A slow moment on a shared machine is not a failure. CI repeats the same cases, so that a red run means a change;
# everywhere else each run looks at new ones.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")
