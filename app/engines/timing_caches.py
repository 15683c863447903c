"""The timing caches of compilers, kept for the next compilation on the same platform.

A cache saves time and changes no result, so it does no harm to lose one: the cache that is written last stands. The
worker that writes a cache has merged the previous one into it, as far as that was possible.
"""

from sqlalchemy.orm import Session

from app.artifacts.service import keep, release
from app.database import insert_into, now
from app.engines.tables import TimingCache


def find_timing_cache(session: Session, platform: str) -> str | None:
    """Return the digest of a platform's timing cache, None if there is none yet."""
    cache = session.get(TimingCache, platform)
    return None if cache is None else cache.digest


def replace_timing_cache(session: Session, platform: str, *, digest: str, nbytes: int) -> None:
    """Make a blob of `nbytes` bytes the timing cache of a platform, and release the previous one.

    The blob must be recorded already.
    """
    values = {"digest": digest, "bytes": nbytes, "updated_at": now()}
    session.execute(
        insert_into(session, TimingCache)
        .values(platform=platform, **values)
        .on_conflict_do_update(index_elements=["platform"], set_=values)
    )
    owner = f"timing_cache:{platform}"
    release(session, owner)
    keep(session, digest, owner)
