"""The stages of the pipeline: one thin file each, run by DVC as `python -m stages.NAME`."""
