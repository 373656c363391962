import os

# OpenMP's threads wait for each other by spinning, in GNU's library for milliseconds: beside another busy process they
# take its time, and two threads can be fifty times slower than one. After this many rounds they sleep, which costs some
# 2 % on a quiet machine. The library reads the variable when torch is imported, so it is set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
