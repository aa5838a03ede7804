"""Marks of single cases of a test."""

import functools

import pytest

slow_case = functools.partial(pytest.param, marks=pytest.mark.slow)
"""A case that is left out by default, as a test marked `slow` is."""
