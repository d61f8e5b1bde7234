"""Loaded before every other module of the tests, and so before paddle."""

import os

# As every command sets it (`slim_det.core.process.set_environment`): paddle reads it when imported.
os.environ.setdefault("GLOG_minloglevel", "2")
