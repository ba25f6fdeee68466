"""What tests share: one thread, on which small networks train faster than on many, and a view of charts."""

import os
from functools import partial

import pytest
from browser import data_sets

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def view(page):
    """A function (chart, params) that sets the params and returns the chart's data sets; `page` is the
    module's own, with its charts drawn."""
    return partial(data_sets, page)
