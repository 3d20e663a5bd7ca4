"""torchvision and timm work with the installed torch, even if they were built for another one."""

import subprocess
import sys

import pytest

PROGRAM = """
from training.model.torchvision_compat import allow_mismatched_torchvision
necessary = allow_mismatched_torchvision()
assert allow_mismatched_torchvision() == necessary
import timm, torch, torchvision
assert torchvision.extension._has_ops() != necessary
timm.create_model("mobilenetv3_small_050", pretrained=False)
print("imported")
"""


@pytest.mark.slow
def test_torchvision_and_timm_can_be_imported_in_a_fresh_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr
