"""GPUs that runs of one server share: which there are, and what a run is told of its own."""

from eridiff.flow.gpu_slots import Slot, gpus, slot_names


def test_gpus_are_those_of_the_environment() -> None:
    assert gpus({"ERIDIFF_GPUS": "0, 2", "CUDA_VISIBLE_DEVICES": "1"}) == ("0", "2")
    assert gpus({"CUDA_VISIBLE_DEVICES": "1"}) == ("1",)
    assert gpus({"ERIDIFF_GPUS": ""}) == gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    assert list(slot_names({"ERIDIFF_GPUS": "0,2"}).values()) == ["0", "2"]
    slot = Slot(name="n", gpu="2", lease="l")
    assert slot.environment("cuda:1") == {"CUDA_VISIBLE_DEVICES": "2", "ERIDIFF_DEVICE": "cuda"}
    assert slot.environment("cpu") == slot.environment(None) == {"CUDA_VISIBLE_DEVICES": "2"}
