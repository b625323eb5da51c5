"""A user's pictures and captions: edited as people edit, run, gone back to; no command makes links of them.

By whoever runs the tests and, where that is root, without root's rights too: root may write to a read-only file.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from eridiff.core.config import load_section
from eridiff.dataset.captions import captions_rows
from eridiff.dataset.pictures import scan_pictures
from eridiff.machine.filedigests import FileDigests
from eridiff.params.captions import CaptionParams
from tests.e2e.harness import make_clone

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent
NO_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")  # root's own files, but only as their modes say
DVC_YAML = """stages:
  join:
    cmd: cat data/raw/* > data/joined.bin
    deps: [data/raw]
    params: [times]
    outs: [data/joined.bin]
"""
NAMES = [f"{way}.{suffix}" for way in ("cp", "rename", "echo") for suffix in ("txt", "png")]


@dataclass
class Person:
    """Somebody with a checkout whose pipeline joins the files of data/raw."""

    home: Path
    prefix: tuple[str, ...] = ()  # of every command

    @property
    def checkout(self) -> Path:
        return self.home / "checkout"

    def run(self, *command: str, place: Path, code: int | None = 0) -> str:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ERIDIFF_", "PYTEST_", "DVC_", "GIT_"))}
        done = subprocess.run(
            (*self.prefix, *command),
            cwd=place,
            env={
                **keep,
                "HOME": str(self.home),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
                "XDG_CACHE_HOME": str(self.home / "cache"),
                "XDG_CONFIG_HOME": str(self.home / "config"),
                "DVC_SITE_CACHE_DIR": str(self.home / "site"),
                "DVC_NO_ANALYTICS": "1",
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=300,
        )
        assert code is None or done.returncode == code, f"{command}: {done.stdout}"
        return done.stdout

    def make(self, *options: str) -> "Project":
        """A checkout, a folder of pictures, and a project of it."""
        (self.checkout / "eridiff/families").mkdir(parents=True)
        (self.checkout / "dvc.yaml").write_text(DVC_YAML)
        (self.checkout / "params.yaml").write_text("times: 1\n")
        originals = self.home / "originals"
        originals.mkdir()
        for name in NAMES:
            (originals / name).write_bytes(content(name, 1))
        for command in (
            ("git", "init", "-q", "-b", "main"),
            ("git", "config", "user.name", "test"),
            ("git", "config", "user.email", "test@localhost"),
            ("dvc", "init", "-q"),
        ):
            self.run(*command, place=self.checkout)
        shutil.copyfile(ROOT / ".dvc/config", self.checkout / ".dvc/config")
        new = (sys.executable, "-m", "eridiff", "new", "cats", "--images", str(originals), "--params", "params.yaml")
        said = self.run(*new, *options, place=self.checkout)
        return Project(self, self.checkout / "projects/cats", said)


@dataclass
class Project:
    """A project; after each command it is looked at."""

    person: Person
    folder: Path
    said: str  # by `eridiff new`

    def run(self, *command: str, code: int | None = 0) -> str:
        said = self.person.run(*command, place=self.folder, code=code)
        self.check()
        return said

    def commit(self, version: int) -> None:
        self.person.run("git", "add", "-A", place=self.person.checkout)
        self.person.run("git", "commit", "-qm", f"version {version}", place=self.person.checkout)
        self.person.run("git", "tag", f"v{version}", place=self.person.checkout)

    def edit(self, version: int, folder: str = "data/raw") -> None:
        """Each file as its name says: `cp` over it, an editor's rename, `echo >` into it."""
        for name in NAMES:
            source = self.person.home / "new" / name
            source.parent.mkdir(exist_ok=True, mode=0o755)
            source.write_bytes(content(name, version))
            source.chmod(0o644)
            command = {
                "cp": f"cp '{source}' '{folder}/{name}'",
                "rename": f"cp '{source}' '{folder}/.{name}~' && mv -f '{folder}/.{name}~' '{folder}/{name}'",
                "echo": f"echo '{content(name, version).decode()[:-1]}' > '{folder}/{name}'",
            }[name.split(".")[0]]
            self.person.run("sh", "-c", command, place=self.folder)

    def check(self) -> None:
        """Pictures may be written and are no links into the cache; every object is what its name says."""
        objects = [path for path in (self.person.checkout / ".dvc/cache/files/md5").glob("??/*") if path.is_file()]
        assert objects
        for path in objects:
            digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            assert path.parent.name + path.name.removesuffix(".dir") == digest, path
        inodes = {path.stat().st_ino for path in objects}
        for path in (self.folder / "data/raw").rglob("*"):
            facts = path.stat()
            assert facts.st_mode & stat.S_IWUSR and facts.st_ino not in inodes, path

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "data/raw").iterdir()}


def content(name: str, version: int) -> bytes:
    return f"{name}, version {version}\n".encode()


def version_of(version: int) -> dict[str, bytes]:
    return {name: content(name, version) for name in NAMES}


@pytest.fixture(params=[(), NO_RIGHTS], ids=["whoever", "no-rights"])
def person(request: pytest.FixtureRequest, tmp_path: Path) -> Person:
    prefix: tuple[str, ...] = request.param
    if prefix and (os.geteuid() != 0 or shutil.which(prefix[0]) is None):
        pytest.skip("of root without its rights: this is not root, or setpriv is not installed")
    return Person(tmp_path / "home", prefix)


def test_the_other_half_has_no_rights(person: Person, tmp_path: Path) -> None:
    path = tmp_path / "read-only.txt"
    path.write_text("before")
    path.chmod(0o444)
    person.run("sh", "-c", f"echo after > '{path}'", place=tmp_path, code=None)
    assert path.read_text() == ("before" if person.prefix or os.geteuid() else "after\n")


def test_edited_twice_every_version_comes_back(person: Person) -> None:
    project = person.make()
    project.check()
    assert project.files() == version_of(1)
    originals = {path.name: path.read_bytes() for path in (person.home / "originals").iterdir()}
    for version in (1, 2, 3):
        if version > 1:
            project.edit(version)
        assert project.files() == version_of(version)
        project.run("dvc", "repro")
        assert (project.folder / "data/joined.bin").read_bytes() == b"".join(
            content(name, version) for name in sorted(NAMES)
        )
        project.commit(version)
    for version in (1, 2, 3, 1):
        person.run("git", "checkout", "-q", f"v{version}", place=person.checkout)
        project.run("dvc", "checkout")
        assert project.files() == version_of(version)
        assert project.run("dvc", "status") == "Data and pipelines are up to date.\n"
    project.run("dvc", "checkout", "--relink")
    person.run("git", "checkout", "-q", "main", place=person.checkout)
    project.run("dvc", "checkout")
    project.run("dvc", "exp", "run", "-n", "here", "-S", "times=2")
    project.run("dvc", "exp", "run", "--temp", "-n", "beside", "-S", "times=3")
    assert project.files() == version_of(3)
    project.edit(4)  # between the experiment and taking it over
    project.run("dvc", "repro")
    person.run("git", "checkout", "-q", ".", place=person.checkout)
    project.run("dvc", "checkout")
    project.run("dvc", "exp", "apply", "beside")
    assert project.files() == version_of(3)
    project.run("dvc", "gc", "-w", "-f")
    project.edit(5)
    project.run("dvc", "repro")
    assert project.files() == version_of(5)
    assert {path.name: path.read_bytes() for path in (person.home / "originals").iterdir()} == originals


def test_originals_behind_a_link(person: Person) -> None:
    """data/raw is a link to where the pictures have always been; single files are links, hard and symbolic."""
    project = person.make()
    raw, originals = project.folder / "data/raw", person.home / "originals"
    person.run("rm", "-r", str(raw), place=project.folder)
    person.run("ln", "-s", str(originals), str(raw), place=project.folder)
    project.run("dvc", "repro")
    project.commit(1)
    for version in (2, 3):
        project.edit(version, str(originals))
        project.run("dvc", "repro")
        assert raw.is_symlink() and project.files() == version_of(version)
    person.run("git", "checkout", "-q", "v1", "--", ".", place=person.checkout)
    project.run("dvc", "checkout")
    assert project.files() == version_of(1)
    person.run("rm", str(raw), place=project.folder)
    project.run("dvc", "checkout")
    for name, option in (("soft.txt", "-s"), ("hard.txt", "-f")):
        person.run("sh", "-c", f"echo original > '{person.home}/{name}'", place=person.home)
        person.run("ln", option, str(person.home / name), str(raw / name), place=project.folder)
    project.run("dvc", "repro")
    for name in ("soft.txt", "hard.txt"):
        assert (raw / name).read_text() == "original\n" == (person.home / name).read_text()
        assert (person.home / name).stat().st_mode & stat.S_IWUSR


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's edits go through DVC's read-only links")
def test_a_project_of_before_is_moved_over(tmp_path: Path) -> None:
    """Its second edit has gone into DVC's cache: what cannot come back is said to be missing, and no longer wrong."""
    person = Person(tmp_path / "home")
    project = person.make()

    def run(*command: str, code: int | None = 0) -> str:
        return person.run(*command, place=project.folder, code=code)

    run("dvc", "config", "cache.type", "hardlink,reflink,copy")
    for version in (1, 2, 3):
        if version > 1:
            project.edit(version)
        run("dvc", "repro")
        project.commit(version)
    run("git", "checkout", "-q", "v2")
    run("dvc", "checkout")
    assert project.files()["echo.txt"] == content("echo.txt", 3)  # the fault
    run("git", "checkout", "-q", "main")
    run("dvc", "checkout")
    said = project.run(sys.executable, "-m", "eridiff", "upgrade")
    assert [name for name in NAMES if f"({name}) holds other bytes than its name says" in said] == [
        name for name in NAMES if not name.startswith("rename")
    ]
    run("git", "checkout", "-qf", "v2")
    assert "Checkout failed for following targets:\ndata/raw" in run("dvc", "checkout", code=None)
    run("git", "checkout", "-qf", "main")
    project.run("dvc", "checkout")
    assert project.files() == version_of(3)


@pytest.mark.parametrize("options", [(), ("--push-pictures",)])
def test_pictures_are_pushed_where_that_was_asked_for(options: tuple[str, ...], tmp_path: Path) -> None:
    """The sentence after `new`, by pushing, and pulling in a clone on another machine."""
    person = Person(tmp_path / "home")
    project = person.make(*options)
    said = project.said.splitlines()[-2:]
    if options:
        assert said[1] == "`dvc push` sends your pictures and captions too (docs/projects.md)"
    else:
        assert said[0].startswith("your pictures and captions stay on this machine: `dvc push` sends results, not")
        assert said[1].startswith(
            "before you give a rented machine back: copy data/raw away, or take `push: false` out"
        )
    project.run("dvc", "repro")
    project.edit(2)
    project.run("dvc", "repro")  # which writes data/raw.dvc anew
    project.commit(2)
    project.run("dvc", "remote", "add", "-q", "-d", "--local", "there", str(tmp_path / "remote"))
    project.run("dvc", "push", "-q")
    other = Person(tmp_path / "other")
    other.home.mkdir()
    other.run("git", "clone", "-q", str(person.checkout), str(other.checkout), place=other.home)
    clone = Project(other, other.checkout / "projects/cats", "")
    other.run("dvc", "remote", "add", "-q", "-d", "--local", "there", str(tmp_path / "remote"), place=clone.folder)
    if options:
        clone.run("dvc", "pull")
        assert clone.files() == version_of(2)
        clone.edit(3)
        clone.run("dvc", "repro")
        assert clone.files() == version_of(3)
    else:
        assert "data/raw" in clone.run("dvc", "pull", code=1)
        assert not (clone.folder / "data/raw").exists()
        assert (clone.folder / "data/joined.bin").exists()
        # As the sentence says: take the line out, and push.
        pointer = project.folder / "data/raw.dvc"
        text = pointer.read_text()
        assert text.count("push: false") == 1
        pointer.write_text(text.replace("  push: false\n", ""))
        project.run("dvc", "push", "-q")
        clone.run("dvc", "pull")
        assert clone.files() == version_of(2)


def texts_in(folder: Path) -> set[str]:
    """The captions that a project's folder holds now, read afresh, as `captions` would clean them."""
    params = load_section(CaptionParams, "captions", folder / "params.yaml")
    with FileDigests(folder / "runs/digests.sqlite", anew=lambda _: True) as digests:
        pictures, _ = scan_pictures(folder / "data/raw", digests)
    return {text for row in captions_rows(pictures, params) for text in row["variants"]} | {""}


def test_why_plans_what_the_folder_holds(tmp_path: Path) -> None:
    """After edits and a checkout: which texts would be encoded, against those of the files themselves."""
    clone = make_clone(tmp_path, "clone")
    new = (sys.executable, "-m", "eridiff", "new", "cats", "--images", "data/raw", "--params", "params.yaml")
    clone.run(*new, PYTHONPATH=str(clone.root))
    clone.place = clone.root / "projects/cats"
    caption = clone.place / "data/raw/fox.txt"
    texts = ["a fox, the first text", "a fox, the second text", "a fox, the third text"]
    for version, text in enumerate(texts):
        caption.write_text(text)  # in place
        clone.repro("captions")
        clone.commit(text)
        clone.run("git", "tag", f"v{version}")
    for version in (2, 0, 1, 0):
        clone.run("git", "checkout", "-q", f"v{version}")
        clone.run("dvc", "checkout", "data/raw.dvc", "check", "captions")  # what has run
        prediction = clone.why()
        planned = {sample["name"] for sample in prediction["samples"] if sample["stage"] == "text"}
        assert prediction["stages"]["captions"]["state"] == "-"
        assert planned == texts_in(clone.place)
        assert [any(text in name for name in planned) for text in texts] == [n == version for n in range(3)]
        assert caption.read_text() == texts[version]
