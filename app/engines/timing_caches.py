"""What compilers measured, kept for the next compilation on the same platform.

A cache only ever saves time: whoever loses one compiles as before, so the last one to be written stands. Whoever
writes one has put into it what was there, as far as that could be merged.
"""

from sqlalchemy.orm import Session

from app.artifacts.service import keep, release
from app.database import insert_into, now
from app.engines.tables import TimingCache


def find_timing_cache(session: Session, platform: str) -> str | None:
    """Return the digest of a platform's timing cache, None where there is none yet."""
    cache = session.get(TimingCache, platform)
    return None if cache is None else cache.digest


def replace_timing_cache(session: Session, platform: str, *, digest: str, nbytes: int) -> None:
    """Make a blob, recorded already, the timing cache of a platform and let go of the one before."""
    values = {"digest": digest, "bytes": nbytes, "updated_at": now()}
    session.execute(
        insert_into(session, TimingCache)
        .values(platform=platform, **values)
        .on_conflict_do_update(index_elements=["platform"], set_=values)
    )
    owner = f"timing_cache:{platform}"
    release(session, owner)
    keep(session, digest, owner)
