import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.artifacts.signing import PlanSigner, open_signer
from app.errors import ServiceError
from app.settings import Settings
from tests.artifacts.conftest import digest_of

KEY = os.urandom(32)
PLAN = digest_of(b"plan")


def test_takes_its_own_signature_and_that_of_another_process_with_the_same_key() -> None:
    PlanSigner(KEY).verify(PLAN, PlanSigner(KEY).sign(PLAN))


@pytest.mark.parametrize(
    ("digest", "signature"),
    [
        (digest_of(b"another plan"), PlanSigner(KEY).sign(PLAN)),
        (PLAN, PlanSigner(os.urandom(32)).sign(PLAN)),
        (PLAN, Ed25519PrivateKey.from_private_bytes(KEY).sign(PLAN.encode()).hex()),
        (PLAN, PlanSigner(KEY).sign(PLAN)[:-2]),
        (PLAN, "not hexadecimal"),
        (PLAN, ""),
    ],
    ids=["another digest", "another key", "signed for another purpose", "cut short", "no hex", "none"],
)
def test_refuses_any_other_signature(digest: str, signature: str) -> None:
    with pytest.raises(ServiceError, match="Build the engine again") as refused:
        PlanSigner(KEY).verify(digest, signature)
    assert refused.value.code == "bad_signature"


def test_makes_a_key_for_its_owner_alone_and_uses_it_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    signature = open_signer(settings).sign(PLAN)
    key = tmp_path / "data" / "signing.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key.parent.iterdir()] == ["signing.key"]
    open_signer(settings).verify(PLAN, signature)


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    together = threading.Barrier(8)
    signatures: list[str] = []

    def start() -> None:
        together.wait()
        signatures.append(open_signer(settings).sign(PLAN))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signatures) == 8
    assert len(set(signatures)) == 1


def test_a_configured_key_comes_first(tmp_path: Path) -> None:
    signer = open_signer(Settings(data_dir=tmp_path, signing_key=KEY.hex()))
    PlanSigner(KEY).verify(PLAN, signer.sign(PLAN))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["short", "00" * 31, "zz" * 32])
def test_says_where_a_bad_key_lies(tmp_path: Path, key: str) -> None:
    (tmp_path / "signing.key").write_text(key)
    for settings, place in (
        (Settings(data_dir=tmp_path), str(tmp_path / "signing.key")),
        (Settings(data_dir=tmp_path, signing_key=key), "ENGINESMITH_SIGNING_KEY"),
    ):
        with pytest.raises(ServiceError, match="64 hexadecimal digits") as bad:
            open_signer(settings)
        assert place in bad.value.detail
        assert bad.value.code == "bad_signing_key"
