"""Which errors of the operating system say that a disk is at fault, and not what was asked of it."""

import errno
from typing import Final

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
BROKEN: Final = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN})
DISK_FAULTS: Final = FULL | READ_ONLY | BROKEN
