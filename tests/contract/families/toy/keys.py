"""Toy's names in another program: every block is called `layers`."""

from eridiff.weights.lora_keys import Config, Dialect, Row, place
from eridiff.weights.signatures import Look
from eridiff.weights.tensor_keys import ComponentKeys, leaves

IMPLEMENTATION = "https://example.org/toy"
NETWORK_MODULE = "networks.lora"

BLOCK = (Row("layers.{i}.q", ("blocks.{i}.query",)), Row("layers.{i}.k", ("blocks.{i}.key",)))


def table(config: Config) -> tuple[Row, ...]:
    """Every adapted module."""
    return tuple(row for i in range(config["num_blocks"]) for row in place(BLOCK, i=i))


def mixer_rows(layout: str, config: Config) -> tuple[Row, ...]:
    """Every tensor of its blocks."""
    return tuple(leaves(table(config)))


COMPONENTS = {"mixer": ComponentKeys(kind="denoiser", rows=mixer_rows, sizes=lambda config: {})}
LOOKS = (Look(kind="denoiser", layout="original", what="toy", marks={"layers.0.q.weight": None}),)

DIALECTS = (Dialect(table=table, prefix="lora_unet_", readers="nobody"),)


def canonical(component: str, name: str) -> str:
    """Names stay."""
    return name


def architecture(config: Config) -> str:
    """The base's name in modelspec."""
    return "toy"


def base_version(config: Config) -> str:
    """The base's name in ss_base_model_version."""
    return "toy_v1"
