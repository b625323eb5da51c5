"""Steps of other trainers, where a checkout of theirs is given: name -> how its step is made."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kohyastep import kohya_step
from benchmarks.randombase import RandomBase
from benchmarks.steprow import Row
from benchmarks.toolkitstep import toolkit_step

Make = Callable[[Path, RandomBase, Row, torch.device], Callable[[], Tensor]]

PEERS: dict[str, Make] = {"kohya": kohya_step, "toolkit": toolkit_step}
