"""A process whose wall clock an order shifts: `python -m tests.faults.misclocked ingress`."""

import runpy
import sys

from tests.faults.skewed import skew_clocks

if __name__ == "__main__":
    skew_clocks()
    module, *arguments = sys.argv[1:]
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=False)
