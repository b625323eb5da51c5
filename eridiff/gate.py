"""The gate: an exported file is read back and must change every weight as the trained adapter does.

Readers load a file in part without a word where a name or a strength is wrong, so nothing is left to the code
that wrote it: names are looked up in the target's key map, and weight changes are compared in fp32.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from eridiff.errors import ExportError, did_you_mean
from eridiff.floats import ROUNDOFF, UNDERFLOW, to_float32
from eridiff.keytables import Config, Dialect, Factors, Row, split
from eridiff.tensorfile import TensorFile

FP32 = ROUNDOFF["fp32"]
ROWS_AT_ONCE = 512  # of a weight change: it need not fit memory whole


def check_file(
    file: TensorFile,
    dialect: Dialect,
    config: Config,
    trained: Mapping[str, Factors],
    dead: Collection[str],
    dtype: str,
) -> float:
    """Compare a file with the trained adapter; returns the largest relative error of a weight change.

    `dead` are the modules whose change may be zero.
    Raises: ExportError that names the file and the key or module, for any key that no reader knows, any
    module that is missing, and any difference beyond the rounding of `dtype`.
    """
    name = file.path.name
    written = read_factors(file, dialect, config)
    extra = sorted(written.keys() - trained.keys())
    if extra:
        raise ExportError(f"{name} changes modules that were not trained: {_list(extra)}.")
    missing = sorted(trained.keys() - written.keys() - set(dead))
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
        raise ExportError(f"{file.path.name} lacks {', '.join(absent)}.")
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

    Raises: ExportError where one element differs by more than the rounding of both factors explains, or where
    numbers too small for the dtype weaken the module as a whole.
    """
    if (written.up.shape[0], written.down.shape[1]) != (trained.up.shape[0], trained.down.shape[1]):
        raise ExportError(f"{name}: {module} has another shape than the trained module.")
    relative, absolute = _tolerance(trained, dtype)
    of_rows = np.linalg.norm(trained.up, axis=1)  # [O]
    of_columns = np.linalg.norm(trained.down, axis=0)  # [I]
    squares = total = 0.0
    for top in range(0, trained.up.shape[0], ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        true = np.float32(trained.scale) * (trained.up[rows] @ trained.down)
        error = np.abs(np.float32(written.scale) * (written.up[rows] @ written.down) - true)
        bound = relative * np.outer(of_rows[rows], of_columns)
        bound += absolute * np.add.outer(of_rows[rows], of_columns)
        if (error > bound).any():
            raise ExportError(
                f"{name}: {module} would change its weight otherwise than trained, by up to {error.max():.2e} "
                f"where the trained change is at most {np.abs(true).max():.2e}."
            )
        squares += float(np.sum(error**2, dtype=np.float64))
        total += float(np.sum(true**2, dtype=np.float64))
    if squares**0.5 > relative * float(np.linalg.norm(of_rows) * np.linalg.norm(of_columns)):
        raise ExportError(f"{name}: {module} is too small for {dtype}, which would weaken it. Set export.dtype: fp32.")
    return float((squares / total) ** 0.5) if total else 0.0


def _tolerance(trained: Factors, dtype: str) -> tuple[float, float]:
    """Bounds on one element's error: shares of |row| |column| and of |row| + |column|.

    With each factor off by a share u (both: 2u + u^2) and, near zero, by t, Cauchy and Schwarz give
    scale ((2u + u^2) |row| |column| + sqrt(R) t (|row| + |column|)); products in fp32 add their own rounding.
    """
    u, rank, scale = ROUNDOFF[dtype], trained.down.shape[0], abs(trained.scale)
    relative = scale * (2 * u + u * u + (2 * rank + 4) * FP32)
    folded = max(scale, 1.0)  # where scale is folded into `up`, t stands against a number already scaled
    return relative, folded * rank**0.5 * UNDERFLOW[dtype] * 1.01


def _nearest(key: str, known: Collection[str]) -> str:
    """The nearest known key, without the list of all."""
    return did_you_mean(key, known).split(" Known:")[0]


def _list(names: list[str]) -> str:
    """Names for a message, the first five."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
