"""Lets torchvision be imported where it was built for another torch than the one installed.

The package index serves torchvision built against CUDA. Beside a CPU build of torch its native library does not load,
and `import torchvision` (hence timm) fails with "operator torchvision::nms does not exist", because it registers shape
functions for operators that the library should have declared. Declaring the two operators is enough for models and
transforms; `torchvision.ops.nms` and `torchvision.io.decode_*` stay unavailable, and nothing here uses them.
"""

import importlib.util
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # an operator lives as long as the Library that declared it


def allow_mismatched_torchvision() -> bool:
    """Declare the missing operators if torchvision's native library does not load; whether that was necessary.

    Call before the first import of torchvision or timm. Does nothing where the library loads, where torchvision is not
    installed, or when called again.
    """
    if _declared:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin).with_name("_C.so")
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        declarations = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in _OPERATORS:
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            declarations.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(declarations)
        return True
    return False
