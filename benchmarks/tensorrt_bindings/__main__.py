"""`python -m benchmarks.tensorrt_bindings` fetches the bindings of every release and writes the table of them.

With `--fetch` it only fetches them, and fails if none can be had; tests that need them are skipped then. `make docs`
writes the table of docs/backends.md from the result.
"""

import argparse
import json
import sys

from benchmarks.tensorrt_bindings.wheels import RELEASES, fetched


def _main(*, only_fetch: bool) -> int:
    folders = fetched(RELEASES)
    missing = [release.requirement for release in RELEASES if release not in folders]
    print(f"{len(folders)} of {len(RELEASES)} releases; without {', '.join(missing) or 'none'}")
    if only_fetch:
        return 0 if folders else 1
    if missing:
        return 1
    from benchmarks.tensorrt_bindings.look import looked_at  # noqa: PLC0415 - needs a C compiler
    from benchmarks.tensorrt_bindings.table import TABLE, table  # noqa: PLC0415 - needs mypy
    from benchmarks.tensorrt_bindings.uses import adapter_uses  # noqa: PLC0415 - needs mypy

    TABLE.write_text(json.dumps(table(looked_at(folders), adapter_uses()), indent=1) + "\n")
    print(TABLE)
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fetch", action="store_true", help="only fetch the bindings")
    sys.exit(_main(only_fetch=arguments.parse_args().fetch))
