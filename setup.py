"""What pyproject.toml cannot say: a wheel holds what projects are made from, which lies at the top of the checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FILES = ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore", "presets/aliases.txt")


class BuildWithTemplate(build_py):
    """Copy dvc.yaml, the presets and DVC's settings into eridiff/template of a wheel (eridiff/machine/code.py)."""

    def run(self) -> None:
        """Build, then copy; an editable install has the checkout itself."""
        super().run()
        if self.editable_mode:
            return
        presets = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "presets").glob("*.yaml"))
        for name in (*FILES, *presets):
            target = Path(self.build_lib, "eridiff", "template", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)


setup(cmdclass={"build_py": BuildWithTemplate})
