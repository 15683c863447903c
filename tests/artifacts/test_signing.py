import os
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.artifacts.signing import FORM, PlanSigner, PlanStatement, open_signer
from app.errors import ServiceError
from app.settings import Settings
from tests.artifacts.conftest import digest_of

KEY = os.urandom(32)
PLAN = PlanStatement(
    digest=digest_of(b"plan"),
    model_id=1,
    job_id="0190",
    method="refit",
    parent=1,
    backend="tensorrt",
    backend_version="8.6.1",
    platform="8.6.1/H100",
    device="H100",
    definition=digest_of(b"definition"),
    weights=digest_of(b"weights"),
    binding=digest_of(b"binding"),
    profiles=[{"x": {"min": [1], "opt": [1], "max": [2]}}],
    options={"precision": "fp16"},
    root_plan=digest_of(b"root"),
)
OTHERWISE = {
    "digest": digest_of(b"another plan"),
    "model_id": 2,
    "job_id": "0191",
    "method": "build",
    "parent": None,
    "backend": "onnxruntime",
    "backend_version": "10.0",
    "platform": "10.0/H100",
    "device": "H200",
    "definition": digest_of(b"another definition"),
    "weights": digest_of(b"other weights"),
    "binding": digest_of(b"another binding"),
    "profiles": [],
    "options": {},
    "root_plan": digest_of(b"another root"),
}


def test_takes_its_own_signature_and_that_of_another_process_with_the_same_key() -> None:
    PlanSigner(KEY).verify(PLAN, PlanSigner(KEY).sign(PLAN), FORM)


@pytest.mark.parametrize("field", [field.name for field in fields(PlanStatement)])
def test_refuses_a_signature_of_a_plan_for_anything_else(field: str) -> None:
    other = replace(PLAN, **{field: OTHERWISE[field]})  # type: ignore[arg-type]
    with pytest.raises(ServiceError, match="Build the engine again") as refused:
        PlanSigner(KEY).verify(other, PlanSigner(KEY).sign(PLAN), FORM)
    assert refused.value.code == "bad_signature"


@pytest.mark.parametrize(
    "signature",
    [
        PlanSigner(os.urandom(32)).sign(PLAN),
        Ed25519PrivateKey.from_private_bytes(KEY).sign(PLAN.text(FORM).split(b"\n", 1)[1]).hex(),
        PlanSigner(KEY).sign(PLAN, form=1),
        PlanSigner(KEY).sign(PLAN)[:-2],
        "not hexadecimal",
        "",
    ],
    ids=["another key", "signed for another purpose", "first form", "cut short", "no hex", "none"],
)
def test_refuses_any_other_signature(signature: str) -> None:
    with pytest.raises(ServiceError, match="Build the engine again") as refused:
        PlanSigner(KEY).verify(PLAN, signature, FORM)
    assert refused.value.code == "bad_signature"


def test_takes_a_signature_of_the_first_form_as_earlier_releases_made_it() -> None:
    signature = Ed25519PrivateKey.from_private_bytes(KEY).sign(b"enginesmith plan v1\n" + str(PLAN.digest).encode())
    PlanSigner(KEY).verify(PLAN, signature.hex(), form=1)
    with pytest.raises(ServiceError):
        PlanSigner(KEY).verify(replace(PLAN, digest=digest_of(b"another plan")), signature.hex(), form=1)


def test_makes_a_key_for_its_owner_alone_and_uses_it_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    signature = open_signer(settings).sign(PLAN)
    key = tmp_path / "data" / "signing.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key.parent.iterdir()] == ["signing.key"]
    open_signer(settings).verify(PLAN, signature, FORM)


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
    PlanSigner(KEY).verify(PLAN, signer.sign(PLAN), FORM)
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
