"""Files of certificates: valid content stays in use until valid content replaces it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.network.certificates import Certificates, Identity
from server.settings import SettingsError

FILES = ("chain", "key", "client_ca")

ANY_NUMBER_OF_TIMES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def old(ca: trustme.CA) -> Identity:
    return issued(ca)


@pytest.fixture(scope="module")
def new(ca: trustme.CA) -> Identity:
    return issued(ca)


def issued(ca: trustme.CA) -> Identity:
    pair = ca.issue_cert("example")
    return Identity(
        pair.cert_chain_pems[0].bytes(), pair.private_key_pem.bytes(), ca.cert_pem.bytes()
    )


@pytest.fixture
def certificates(tmp_path: Path, old: Identity) -> Certificates:
    write(tmp_path, old)
    return opened(tmp_path)


def opened(folder: Path) -> Certificates:
    return Certificates(*(folder / name for name in FILES))


def write(folder: Path, identity: Identity) -> None:
    for name, content in zip(FILES, identity, strict=True):
        (folder / name).write_bytes(content or b"")


def test_what_did_not_change_is_not_renewed(certificates: Certificates) -> None:
    assert certificates.renewed() is None


def test_what_changed_is_renewed_once(
    certificates: Certificates, tmp_path: Path, new: Identity
) -> None:
    write(tmp_path, new)
    assert [certificates.renewed(), certificates.renewed()] == [new, None]


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_gone_changes_nothing(
    certificates: Certificates, tmp_path: Path, old: Identity, name: str
) -> None:
    (tmp_path / name).unlink()
    assert certificates.renewed() is None
    assert certificates.identity == old


@ANY_NUMBER_OF_TIMES
@given(data=st.data())
def test_file_half_written_changes_nothing_until_it_is_whole(
    tmp_path: Path, old: Identity, new: Identity, data: st.DataObject
) -> None:
    """Wherever the writing stands, and whichever file is the last."""
    write(tmp_path, old)
    certificates = opened(tmp_path)
    write(tmp_path, new)
    name = data.draw(st.sampled_from(["chain", "key"]))
    content = (tmp_path / name).read_bytes()
    end = content.rindex(b"-----END")
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(0, end))])
    assert certificates.renewed() is None
    assert certificates.identity == old
    (tmp_path / name).write_bytes(content)
    assert certificates.renewed() == new


@ANY_NUMBER_OF_TIMES
@given(name=st.sampled_from(FILES), content=st.binary(max_size=300))
def test_other_content_is_refused_and_not_quoted(
    tmp_path: Path, old: Identity, name: str, content: bytes
) -> None:
    write(tmp_path, old)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=r"\ATLS_[A-Z_]+: holds no [^\n]+ in PEM[^\n]*\Z"):
        opened(tmp_path)
