"""A team without a common disk: push with the run-cache, clone, pull, and nothing is encoded.

The project's pictures stay at home (`push: false`), as those that `eridiff new` makes.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Clone, make_clone
from tests.e2e.toy import Toy, make_toy

pytestmark = pytest.mark.e2e

ALL = {"check", "captions", "buckets", "latents", "text", "train", "sample", "export"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remotes")


@pytest.fixture(scope="module")
def project(folder: Path) -> Clone:
    """A project that ran once, committed to git."""
    clone = make_clone(folder, "first")
    given = ("--images", str(clone.root / "data/raw"), "--params", str(clone.root / "params.yaml"))
    clone.run(sys.executable, "-m", "eridiff", "new", "cats", *given)
    made = Clone(clone.root, clone.store, clone.cache, clone.root / "projects/cats")
    assert set(made.repro().stages) == ALL
    made.commit("ran")
    return made


@pytest.fixture
def bucket() -> Iterator[str]:
    """An S3 of its own in this process; gives its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="caches")
    client.close()
    yield address
    server.stop()


def test_s3(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that fills the store as the caching stages do: pushed to S3, pulled into a clone without a store."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    toy = make_toy(tmp_path / "first", tmp_path / "store")
    toy.run("dvc", "remote", "add", "-q", "-d", "there", "s3://caches/eridiff")
    toy.run("dvc", "remote", "modify", "there", "endpointurl", bucket)
    assert toy.repro() == 5
    toy.run("git", "add", "-A")
    toy.run("git", "commit", "-qm", "ran")
    toy.run("dvc", "push", "-q", "--run-cache")
    toy.run("git", "clone", "-q", str(toy.folder), str(tmp_path / "member"))
    member = Toy(tmp_path / "member", tmp_path / "member-store")
    member.run("dvc", "pull", "-q", "--run-cache")
    assert member.repro() is None
    assert member.out.read_bytes() == toy.out.read_bytes()
    member.numbers(*range(6))
    assert member.repro() == 1


def test_the_whole_pipeline_by_s3(project: Clone, bucket: str, folder: Path) -> None:
    """All outs of a project and its run-cache by way of S3: a new member runs no stage."""
    s3 = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}

    def use(clone: Clone) -> None:
        clone.run("dvc", "remote", "add", "-q", "-d", "--local", "bucket", "s3://caches/whole")
        clone.run("dvc", "remote", "modify", "--local", "bucket", "endpointurl", bucket)

    use(project)
    project.run("dvc", "push", "-q", "--run-cache", **s3)
    root = folder / "by-s3"
    project.run("git", "clone", "-q", str(project.root), str(root))
    member = Clone(root, folder / "by-s3-store", folder / "by-s3-cache", root / "projects/cats")
    use(member)
    pulled = member.run("dvc", "pull", "--run-cache", check=False, **s3)
    assert pulled.returncode != 0 and "data/raw" in pulled.stdout, pulled.stdout
    ran = member.repro("--allow-missing")
    assert ran.stages == [] and ran.restored == [], ran.output
    assert member.lock() == project.lock()


def test_a_new_member_encodes_nothing(project: Clone, folder: Path) -> None:
    project.run("dvc", "remote", "add", "-q", "-d", "--local", "there", str(folder / "remote"))
    project.run("dvc", "push", "-q", "--run-cache")
    root = folder / "member"
    project.run("git", "clone", "-q", str(project.root), str(root))
    member = Clone(root, folder / "member-store", folder / "member-cache", root / "projects/cats")
    member.run("dvc", "remote", "add", "-q", "-d", "--local", "there", str(folder / "remote"))
    pulled = member.run("dvc", "pull", "--run-cache", check=False)
    assert not (member.place / "data/raw").exists()  # never pushed
    assert pulled.returncode != 0 and "data/raw" in pulled.stdout, pulled.stdout
    ran = member.repro("--allow-missing")
    assert ran.stages == [] and ran.restored == [], ran.output
    assert member.lock() == project.lock()
    said = member.run(sys.executable, "-m", "eridiff", "store", "verify", PYTHONPATH=str(root))
    assert "no fault" in said.stdout
    # With the pictures and an empty store: one more is one encode.
    shutil.copytree(project.place / "data/raw", member.place / "data/raw")
    from PIL import Image

    Image.new("RGB", (160, 160), (10, 90, 200)).save(member.place / "data/raw/blue.png")
    (member.place / "data/raw/blue.txt").write_text("a plain blue field")
    ran = member.repro("latents", "text")
    assert ran.encoded["latents"] == (1, 20), ran.output
    assert ran.encoded["text"][0] in (1, 2), ran.output  # its orders of tags
