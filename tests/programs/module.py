"""Does what `python3 -m test -v MODULE` does, and writes to the file `results` what each test gave.

Not by way of --junit-xml: that takes stdout from the tests, which some of them notice.
"""

import runpy
import sys
from test.support.testresult import RegressionTestResult

RESULTS = {
    "addSuccess": "passed",
    "addError": "failed",
    "addFailure": "failed",
    "addSkip": "skipped",
    "addExpectedFailure": "passed",
    "addUnexpectedSuccess": "failed",
}

file = open("results", "w", buffering=1)


def record(method, result):
    original = getattr(RegressionTestResult, method)

    def recording(self, test, *rest):
        print(result, test.id().split()[0], file=file)
        return original(self, test, *rest)

    setattr(RegressionTestResult, method, recording)


for method, result in RESULTS.items():
    record(method, result)
sys.argv = ["test", "-v", sys.argv[1]]
runpy.run_module("test", run_name="__main__", alter_sys=True)
