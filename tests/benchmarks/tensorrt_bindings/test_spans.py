import pytest

from benchmarks.tensorrt_bindings.spans import spans, within

RELEASES = ["8", "9", "10", "11", "RTX 1"]


@pytest.mark.parametrize(
    ("having", "text"),
    [
        (RELEASES, "all"),
        ([], ""),
        (["9"], "9"),
        (["8", "9", "10"], "8 to 10"),
        (["8", "10", "11", "RTX 1"], "8, 10 on"),
        (["RTX 1"], "RTX 1 on"),
    ],
)
def test_runs_of_releases_are_put_into_words_and_read_again(having: list[str], text: str) -> None:
    assert spans(having, RELEASES) == text
    assert within(text, RELEASES) == set(having)
