import pytest

from app.weights.checkpoint import CheckpointError
from app.weights.format_parts.torch_tensors import place_tensors


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 3}, {"state": {0: {"step": 1}}}, [1, 2]])
def test_a_checkpoint_without_tensors_is_told_what_to_save(checkpoint: object) -> None:
    with pytest.raises(CheckpointError, match="PyTorch checkpoint holds no tensors") as error:
        place_tensors(checkpoint, lambda _storage: (0, 0))
    assert error.value.code == "no_tensors"
