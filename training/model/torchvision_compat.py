"""Makes torchvision importable if it was built for another torch than the one installed.

The package index serves torchvision built against CUDA. With a CPU build of torch its native library does not load, and
`import torchvision` (and timm) fails with "operator torchvision::nms does not exist", because it registers shape
functions for operators that the library should have declared. Declaring the two operators is enough for models and
transforms; `torchvision.ops.nms` and `torchvision.io.decode_*` stay unavailable, and this project does not use them.
"""

import importlib.util
from pathlib import Path

import torch

_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # an operator exists as long as the Library that declared it


def allow_mismatched_torchvision() -> bool:
    """Declare the missing operators if torchvision's native library does not load; return whether it was necessary.

    Call this before the first import of torchvision or timm. It does nothing if the library loads, if torchvision is
    not installed, or if it is called again.
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
