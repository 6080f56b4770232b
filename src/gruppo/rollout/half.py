"""The types of half precision. What is done about them is said where it is done."""

from typing import Final

import torch

HALF: Final = (torch.bfloat16, torch.float16)
