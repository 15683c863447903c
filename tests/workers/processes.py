"""What the kernel says of a process."""


def status_bytes(status: str, field: str) -> int:
    """Return a field of the text of /proc/PID/status, such as VmHWM, the most it ever had resident, in bytes."""
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
