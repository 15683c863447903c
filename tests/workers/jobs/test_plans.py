import hashlib
from pathlib import Path

import pytest

from app.artifacts.signing import PlanSigner, open_signer
from app.errors import ServiceError
from app.settings import Settings
from workers.jobs.plans import PlanVerifier


@pytest.fixture
def signer(tmp_path: Path) -> PlanSigner:
    return open_signer(Settings(data_dir=tmp_path))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan"
    path.write_bytes(b"a plan")
    return path


def digest_of(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_plan_we_signed_is_accepted(signer: PlanSigner, plan: Path) -> None:
    digest = digest_of(plan)
    PlanVerifier(signer).verify(plan, digest, signer.sign(digest))


def test_a_plan_somebody_else_signed_is_refused(signer: PlanSigner, plan: Path, tmp_path: Path) -> None:
    digest = digest_of(plan)
    (tmp_path / "other").mkdir()
    signature = open_signer(Settings(data_dir=tmp_path / "other")).sign(digest)
    with pytest.raises(ServiceError) as refused:
        PlanVerifier(signer).verify(plan, digest, signature)
    assert refused.value.code == "bad_signature"


def test_a_plan_that_was_changed_is_refused_also_after_it_was_accepted(signer: PlanSigner, plan: Path) -> None:
    digest = digest_of(plan)
    verifier, signature = PlanVerifier(signer), signer.sign(digest)
    verifier.verify(plan, digest, signature)
    plan.write_bytes(b"A plan")
    with pytest.raises(ServiceError) as refused:
        verifier.verify(plan, digest, signature)
    assert refused.value.code == "plan_damaged"
