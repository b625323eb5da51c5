"""A graph for Toy."""

from typing import Any

from eridiff.family import Scene


def workflow(scene: Scene) -> dict[str, Any]:
    """Load the LoRA."""
    return {"1": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": scene.lora}}}
