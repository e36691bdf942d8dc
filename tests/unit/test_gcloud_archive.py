"""gcloud from a stand-in for Google's archive, signed with a key of its own, by the real apt in folders of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from labkit.system import gcloud
from labkit.system.gcloud import Gcloud
from labkit.system.step import Done, OutOfReach, SetupFailed

NEEDED = ("apt-get", "dpkg-deb", "gpg")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, NEEDED)) or os.geteuid() != 0, reason="needs Debian's apt and gpg, as root"
)
CONTROL = """\
Package: google-cloud-cli
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: stand-in
"""


def _run(*argv: object, **env: str) -> str:
    done = subprocess.run(
        list(map(str, argv)), env=os.environ | env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("google")
    made = root / "archive"
    index = made / "dists/cloud-sdk/main/binary-all/Packages"
    for folder in (root / "pkg/DEBIAN", index.parent, made / "pool", made / "doc"):
        folder.mkdir(parents=True)
    (root / "pkg/DEBIAN/control").write_text(CONTROL)
    package = made / "pool/cli.deb"
    _run("dpkg-deb", "--root-owner-group", "--build", root / "pkg", package)
    content = package.read_bytes()
    index.write_text(
        f"{CONTROL}Filename: pool/cli.deb\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    )
    listed = index.read_bytes()
    release = made / "dists/cloud-sdk/Release"
    release.write_text(
        f"Suite: cloud-sdk\nCodename: cloud-sdk\nComponents: main\nArchitectures: all amd64 arm64\n"
        f"Date: {format_datetime(datetime.now(UTC))}\nSHA256:\n"
        f" {hashlib.sha256(listed).hexdigest()} {len(listed)} main/binary-all/Packages\n"
    )
    home = root / "gpg"
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--quiet", "--batch")
    make = ("--passphrase", "", "--quick-gen-key", "nobody@example.org", "rsa2048", "sign")
    _run(*gpg, *make, GNUPGHOME=str(home))
    (made / "doc/apt-key.gpg").write_text(_run(*gpg, "--armor", "--export", GNUPGHOME=str(home)))
    _run(*gpg, "--clearsign", "--output", release.with_name("InRelease"), release, GNUPGHOME=str(home))
    _run("gpgconf", "--kill", "all", GNUPGHOME=str(home))
    return made


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """apt with folders under ``tmp_path``; what it would install is only downloaded."""
    for folder in ("lists/partial", "cache/archives/partial", "sources"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "status").touch()
    settings = {
        "Dir::State::Lists": tmp_path / "lists",
        "Dir::State::status": tmp_path / "status",
        "Dir::Cache": tmp_path / "cache",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": tmp_path / "sources",
        "APT::Sandbox::User": "root",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    names: list[str] = []

    def apt(argv: Sequence[str], **_: object) -> str:
        done = subprocess.run(
            [argv[0], *options, "-o", "APT::Update::Error-Mode=any", *argv[1:]],
            text=True, capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SetupFailed("apt-get failed", why=done.stderr)
        return done.stdout

    def install(wanted: Sequence[str], _: Done) -> None:
        apt(["apt-get", "-y", "--download-only", "install", *wanted])
        names.extend(wanted)

    monkeypatch.setattr(gcloud, "_KEY", tmp_path / "key.asc")
    monkeypatch.setattr(gcloud, "_SOURCE", tmp_path / "sources/google.sources")
    monkeypatch.setattr(gcloud, "command", apt)
    monkeypatch.setattr(gcloud, "install", install)
    monkeypatch.setattr(Done, "save", lambda *_: None)
    return names


def test_apt_takes_the_source_believes_the_key_and_finds_the_package(
    archive: Path, fetched: list[str]
) -> None:
    Gcloud(f"file:{archive}").apply(Done())
    assert fetched == ["google-cloud-cli"]


def test_an_archive_that_the_key_did_not_sign_is_refused_and_leaves_no_source(
    archive: Path, fetched: list[str], tmp_path: Path
) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(archive, forged)
    signed = forged / "dists/cloud-sdk/InRelease"
    signed.write_text(signed.read_text().replace("Suite: cloud-sdk", "Suite: cloud-sdj", 1))
    done = Done()
    with pytest.raises(OutOfReach, match="google-cloud-cli cannot be installed"):
        Gcloud(f"file:{forged}").apply(done)
    assert fetched == done.files == list((tmp_path / "sources").iterdir()) == []
