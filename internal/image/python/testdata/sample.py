"""import not_this: a text is no statement."""
from __future__ import annotations

import os.path as paths, json
import typing
from typing import TYPE_CHECKING
from collections import (
    abc as interfaces,
    OrderedDict,  # import not_this
)
from . import sibling
from .package import name, other
from ..above import *

text = '''
import not_this
'''

if TYPE_CHECKING:
    import only_checked
    from .checked import Checked
if typing.TYPE_CHECKING:
    import only_checked
else:
    import otherwise

try:
    import maybe
except ImportError:
    maybe = None

class Class:
    import inside

    def method(self):
        import in_method
        from . import in_method

async def function():
    import in_function
def oneline(): import in_function

import late; import later
from long.line \
    import goes_on

if __name__ == "__main__":
    import main_only
