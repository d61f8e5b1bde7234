"""Loaded before every other module of the tests, and so before paddle."""

import os
import tempfile

# As every command sets it (`slim_det.core.process.set_environment`): paddle reads it when imported.
os.environ.setdefault("GLOG_minloglevel", "2")

# Nothing is remembered from one run of the tests to the next, or in the user's own cache.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="slim_det_tests_")
