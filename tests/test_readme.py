import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from examples.service import running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def _commands(section: str) -> str:
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE))


def test_the_curl_session_works_word_for_word(tmp_path: Path) -> None:
    """Run where the README's reader would, with a curl that fails on any answer that is an error."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / ".curlrc").write_text('fail-with-body\nwrite-out = "\\n"\n')
    with running(tmp_path / "data") as (url, _pid):
        script = subprocess.run(
            [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", _commands(_section("A session with curl"))],
            cwd=tmp_path,
            env=os.environ | {"URL": url, "CURL_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert script.returncode == 0, script.stdout + script.stderr
    assert '"state":"succeeded"' in script.stdout
    assert '"outputs":"sha256:' in script.stdout
    assert '"throughput":' in script.stdout


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_the_readme_tells_of_every_setting(name: str) -> None:
    assert f"| `ENGINESMITH_{name.upper()}` |" in _section("Configuration")
