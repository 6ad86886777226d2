"""Validation of the tables before anything trains. Great Expectations sends no usage statistics."""

import os

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read when great_expectations is imported
