"""The gate: an exported file is read back and must change every weight as the trained adapter does.

Readers load a file in part without a word where a name or a strength is wrong, so nothing is left to the code
that wrote it: names are looked up in the target's key map, and merged weight changes are compared.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from eridiff.core.errors import ExportError, did_you_mean
from eridiff.formats.floats import ROUNDOFF, UNDERFLOW, to_float32
from eridiff.formats.safetensors import TensorFile
from eridiff.weights.lora_keys import Config, Dialect, Factors, Row, split

FP32 = ROUNDOFF["fp32"]


def check_file(
    file: TensorFile,
    dialect: Dialect,
    config: Config,
    trained: Mapping[str, Factors],
    unused: Collection[str],
    dtype: str,
) -> float:
    """Compare a file with the trained adapter; returns the largest relative error of a weight change.

    `unused` are the modules whose change may be zero, where training left it zero.
    Raises: ExportError that names the file and the key or module, for any key that no reader knows, any
    module that is missing, and any difference beyond the rounding of `dtype`.
    """
    name = file.path.name
    written = read_factors(file, dialect, config)
    extra = sorted(written.keys() - trained.keys())
    if extra:
        raise ExportError(f"{name} changes modules that were not trained: {_list(extra)}.")
    still = {module for module in unused if module in trained and not trained[module].moved()}
    missing = sorted(trained.keys() - written.keys() - still)
    if missing:
        raise ExportError(f"{name} would not change {_list(missing)}: missing, or zero in {dtype}.")
    errors = [_compare(name, module, written[module], trained[module], dtype) for module in sorted(written)]
    return max(errors, default=0.0)


def read_factors(file: TensorFile, dialect: Dialect, config: Config) -> dict[str, Factors]:
    """The adapters in a file by diffusers module, as its readers find them in a model of this config.

    Raises: ExportError for a key that is not in the model's key map, and for an adapter that is not whole.
    """
    rows = {dialect.key(row.target): row for row in dialect.table(config)}
    endings = [end for end in (dialect.down, dialect.up, dialect.alpha) if end]
    found: dict[str, dict[str, str]] = defaultdict(dict)  # key -> ending -> tensor name
    for name in file.names:
        ending = next((end for end in endings if name.endswith(end)), "")
        key = name.removesuffix(ending)
        if not ending or key not in rows:
            raise ExportError(f"{file.path.name}: no reader finds the key '{name}'.{_nearest(key, rows)}")
        found[key][ending] = name
    modules: dict[str, Factors] = {}
    for key, names in found.items():
        modules |= split(rows[key], _read_one(file, dialect, rows[key], key, names))
    return modules


def _read_one(file: TensorFile, dialect: Dialect, row: Row, key: str, names: Mapping[str, str]) -> Factors:
    """One target's adapter; its tensors must be there and fit each other and the table."""
    wanted = [end for end in (dialect.down, dialect.up, dialect.alpha) if end]
    absent = [key + end for end in wanted if end not in names]
    if absent:
        raise ExportError(f"{file.path.name} is missing {', '.join(absent)}.")
    down, up = (to_float32(file.raw(names[end])) for end in (dialect.down, dialect.up))
    shapes_fit = down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1]
    if not shapes_fit or (row.heights and up.shape[0] != sum(row.heights)):
        raise ExportError(f"{file.path.name}: {key}: shapes {down.shape} and {up.shape} do not fit.")
    alpha = float(to_float32(file.raw(names[dialect.alpha]))) if dialect.alpha else float(down.shape[0])
    if not (np.isfinite(down).all() and np.isfinite(up).all() and np.isfinite(alpha)):
        raise ExportError(f"{file.path.name}: {key} holds numbers that are not finite.")
    return Factors(down, up, alpha)


def _compare(name: str, module: str, written: Factors, trained: Factors, dtype: str) -> float:
    """Relative error (Frobenius) of one module's weight change.

    Raises: ExportError where a number differs by more than rounding explains, or where numbers too small for the
    dtype weaken the module as a whole.
    """
    if (written.up.shape, written.down.shape) != (trained.up.shape, trained.down.shape):
        raise ExportError(f"{name}: {module} has another shape or rank than the trained module.")
    down, true_down = written.down.astype(np.float64), trained.down.astype(np.float64)
    up, true_up = written.scale * written.up.astype(np.float64), trained.scale * trained.up.astype(np.float64)
    true = _norm(true_up, true_down)
    # up down - true_up true_down = (up - true_up) down + true_up (down - true_down), without cancellation
    error = _norm(np.hstack([up - true_up, true_up]), np.vstack([down, down - true_down]))
    share, tiny = ROUNDOFF[dtype], UNDERFLOW[dtype]
    off_down = np.abs(down - true_down) > share * np.abs(true_down) + tiny
    # alpha, and alpha / rank folded into `up`, add fp32 rounding; folded numbers underflow after the scale
    off_up = np.abs(up - true_up) > (share + 4 * FP32) * np.abs(true_up) + 1.01 * max(trained.scale, 1.0) * tiny
    if off_down.any() or off_up.any():
        raise ExportError(
            f"{name}: {module} would change its weight otherwise than trained: the difference is "
            f"{error / true if true else np.inf:.1%} of the trained change."
        )
    if error > (2 * share + share**2 + 8 * FP32) * float(np.linalg.norm(true_up) * np.linalg.norm(true_down)):
        raise ExportError(f"{name}: {module} is too small for {dtype}, which would weaken it. Set export.dtype: fp32.")
    return error / true if true else 0.0


def _norm(up: NDArray[np.float64], down: NDArray[np.float64]) -> float:
    """Frobenius norm of up @ down [O, I], which is never formed: trace(up^T up down down^T)."""
    return math.sqrt(max(0.0, float(np.sum((up.T @ up) * (down @ down.T)))))


def _nearest(key: str, known: Collection[str]) -> str:
    """The nearest known key, without the list of all."""
    return did_you_mean(key, known).split(" Known:")[0]


def _list(names: list[str]) -> str:
    """Names for a message, the first five."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
