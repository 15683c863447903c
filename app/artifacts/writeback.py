"""Starting to write a file to the disk while its end is still arriving."""

import ctypes

WRITEBACK = 32 << 20  # bytes to gather before they are sent on their way
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: begin writing the dirty pages of the range, wait for nothing

_sync_file_range = ctypes.CDLL(None).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the kernel begin to write out a range, so that the final fdatasync finds little left to do.

    See sync_file_range(2). It is a hint: a failure shows in the fdatasync, which is the one that counts.
    """
    _sync_file_range(descriptor, offset, nbytes, SYNC_FILE_RANGE_WRITE)
