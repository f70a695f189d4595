"""Functions of a package that an action calls, as a measure of code complexity."""

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any


def trace_functions(action: Callable[[], Any], package: ModuleType) -> dict[str, list[str]]:
    """Trace the functions of `package` that `action` calls in this thread.

    Functions are identified by their code object: repeated calls count once, as does a method shared by two classes.
    Comprehensions and generator expressions belong to the enclosing function.

    Returns:
        Function names in the order of their first call, by file relative to the package's folder.
    """
    root = Path(str(package.__file__)).parent
    seen: dict[CodeType, None] = {}

    def note(frame: FrameType, event: str, arg: Any) -> None:
        if event == 'call':
            seen[frame.f_code] = None

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    found: dict[str, list[str]] = defaultdict(list)
    for code in seen:
        path = Path(code.co_filename)
        part_of_another = code.co_name in ('<listcomp>', '<setcomp>', '<dictcomp>', '<genexpr>')
        if path.is_relative_to(root) and not part_of_another:
            found[str(path.relative_to(root))].append(getattr(code, 'co_qualname', code.co_name))
    return dict(found)
