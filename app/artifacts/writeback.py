"""Having a file written to the disk while its end is still arriving."""

import ctypes

WRITEBACK = 32 << 20  # bytes that are gathered before the kernel is told to write them
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: begin to write the dirty pages of the range, and wait for nothing

_sync_file_range = ctypes.CDLL(None).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the kernel begin to write a range of the file, so that the final fdatasync has little left to do.

    See sync_file_range(2). It is a hint, so its failure is ignored: a fault of the disk shows in the fdatasync.
    """
    _sync_file_range(descriptor, offset, nbytes, SYNC_FILE_RANGE_WRITE)
