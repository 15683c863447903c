"""Why a verification is impossible through no fault of the engine, and what to do about it."""

import json
import re
from collections.abc import Sequence

from app.definitions.parameter import InputSpec
from app.definitions.profiles import example_profile
from workers.channel.messages import BackendError
from workers.engine_host.trials import Trial

MAX_SHOWN = 6  # shapes that were tried, in a text
_OF_VALUES = re.compile(r"out of (data )?bounds|indices? .*(range|bound)", re.IGNORECASE)  # as onnxruntime says it


class Impossible(Exception):
    """The definition itself cannot be computed on any inputs that are there; `error` says so and names the remedy."""

    def __init__(self, error: BackendError) -> None:
        super().__init__(error)
        self.error = error


def no_guess_fits(specs: tuple[InputSpec, ...], tried: Sequence[Trial], error: BackendError | None) -> BackendError:
    """Return why none of the made-up inputs is of use; `error` is what the first one ended in."""
    shown = "; ".join(dict.fromkeys(trial.text for trial in tried[:MAX_SHOWN]))
    more = len(tried) - MAX_SHOWN
    example = example_profile(specs)
    sizes = f'sizes that it takes with "profiles", such as {json.dumps([example])}' if example else ""
    wanted = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs)
    reason = error.detail.rstrip(".") if error is not None else ""
    inputs = (
        f"inputs of your own: put a safetensors file with {wanted} by PUT /v1/blobs/DIGEST and ask with "
        '"verify": {"inputs": "DIGEST"}'
    )
    if _OF_VALUES.search(reason):  # no sizes help against those
        advice = f"Values are at fault, not sizes: an index has to lie inside what it indexes. Give {inputs}."
    else:
        advice = f"Give {sizes}, or {inputs}." if sizes else f"Give {inputs}."
    return BackendError(
        "verification_impossible",
        "The engine could not be verified, and that is no fault of its own: the definition itself fails on the inputs "
        f"that were made up for it. They are a guess. Tried were {shown}{f' and {more} more' if more > 0 else ''}. "
        f'With the first: {reason}. {advice} "verify": {{"if_impossible": "publish"}} publishes the engine without '
        "having verified it.",
    )


def given_do_not_fit(error: BackendError) -> BackendError:
    """Return why the inputs that were given are of no use."""
    return BackendError(
        "verification_impossible",
        "The engine could not be verified, and that is no fault of its own: the definition itself fails on the inputs "
        f"that verify.inputs gives. {error.detail} Give others, or the outputs to expect as verify.expected. "
        '"verify": {"if_impossible": "publish"} publishes the engine without having verified it.',
    )


def no_reference(error: BackendError) -> BackendError:
    """Return why there is no reference to compare with."""
    return BackendError(
        "verification_impossible",
        f"The engine could not be verified against the reference, which does not take the definition. {error.detail} "
        'Give inputs and the outputs to expect as verify.inputs and verify.expected, or ask with "verify": '
        '{"against": "rebuild"}. {"if_impossible": "publish"} publishes the engine without having verified it.',
    )
