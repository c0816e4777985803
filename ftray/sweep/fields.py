"""The fields of `method` and `train` that a campaign can search: which they are, what they take, how they are applied.

Every refusal names `sweep.space.<field>`. `alpha_over_rank` is a field of its own: it sets alpha to that many ranks.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ftray.campaign import Config
from ftray.config import Config as Section
from ftray.errors import InputError, nearest
from ftray.job import Job
from ftray.model.config import MethodConfig
from ftray.space import Dimension, Range, Value
from ftray.train.config import TrainConfig

RATIO = "alpha_over_rank"
METHOD_FIELDS = ("rank", "alpha", RATIO, "dropout", "rslora")
TRAIN_FIELDS = (
    "learning_rate", "epochs", "max_steps", "batch_size", "schedule", "min_learning_rate", "warmup", "weight_decay",
    "max_grad_norm", "label_smoothing",
)  # fmt: skip
FIELDS = METHOD_FIELDS + TRAIN_FIELDS
WHOLE = ("rank", "max_steps", "batch_size")
"""Fields that take whole numbers alone."""
WHOLE_OR_NOT = ("epochs", "warmup", "alpha", RATIO)
"""Fields for which a range of whole numbers makes sense, too."""
CATEGORICAL = ("schedule", "rslora")
"""Fields whose values have no order."""
CADENCE = "trials are compared at their evaluations, which must come alike"
MEMORY = "it changes memory and time, never the result"
UNSWEEPABLE = {
    "kind": "LoRA and full fine-tuning have different fields; sweep each in a job of its own",
    "target_modules": "its values are lists; sweep each choice of modules in a job of its own",
    "precision": "trials that share a base compute in one precision",
    "micro_batch_size": MEMORY,
    "activation_checkpointing": MEMORY,
    "log_every": CADENCE,
    "evaluate_every": CADENCE,
    "checkpoint_every": CADENCE,
    "keep_checkpoints": "it decides what stays on the disk, never the result",
    "early_stopping": "it decides when a trial ends, which must be judged alike for all",
    "seed": "a seed is not a setting to choose; sweep.seeds trains the winner again with other ones",
}
SIGNIFICANT = "{:.12g}"


def refuse(
    field: str, message: str, *, kind: str, given: Any, allowed: Any, hint: str, path: str | None = None
) -> InputError:
    """Return the error about a field of the space."""
    return InputError(
        message, kind=kind, given=given, allowed=allowed, hint=hint, path=path or f"sweep.space.{field}".rstrip(".")
    )


def require_field(field: str, job: Job) -> None:
    """Refuse a field that there is not, or that cannot be searched, or not in this job."""
    bare = field.rpartition(".")[2]
    here = TRAIN_FIELDS if job.method.kind == "full" else FIELDS
    if bare in UNSWEEPABLE:
        raise refuse(
            field,
            f"{bare} cannot be swept: {UNSWEEPABLE[bare]}",
            kind="unsweepable_field",
            given=field,
            allowed=list(here),
            hint=f"Remove {field} from sweep.space.",
        )
    if field not in FIELDS:
        close = bare if bare in FIELDS else nearest(bare, FIELDS)
        raise refuse(
            field,
            f"there is no field {field} to sweep",
            kind="unsweepable_field",
            given=field,
            allowed=list(here),
            hint=f"Did you mean `{close}`?" if close else "Fields of method and train stand in a space by their name.",
        )
    if field not in here:
        raise refuse(
            field,
            f"{field} belongs to LoRA, and method.kind is full",
            kind="unsweepable_field",
            given=field,
            allowed=list(here),
            hint=f"Remove {field} from sweep.space, or set method.kind: lora.",
        )


def require_dimension(field: str, dimension: Dimension, job: Job) -> Dimension:
    """Return a field's values as its section spells them; a range must suit the field, and hold at both of its ends."""
    if isinstance(dimension, Range):
        _require_range(field, dimension)
        for end in dimension.bounds:
            require_value(field, int(end) if dimension.kind == "int" else end, job)
        return dimension
    values = list(dict.fromkeys(require_value(field, value, job) for value in dimension))
    return values


def _require_range(field: str, dimension: Range) -> None:
    given = {dimension.kind: list(dimension.bounds)}
    if field in CATEGORICAL:
        raise refuse(
            field,
            f"{field} has no order that a range could go through",
            kind="bad_value",
            given=given,
            allowed="a list of values",
            hint=f"Write {field}: [{'false, true' if field == 'rslora' else 'cosine, constant'}].",
        )
    low, high = dimension.bounds
    if field in WHOLE and dimension.kind != "int":
        raise refuse(
            field,
            f"{field} is a whole number, and {dimension.kind} draws any number",
            kind="bad_value",
            given=given,
            allowed="int: [low, high], or a list of whole numbers",
            hint=f"Write {field}: {{int: [{low:.0f}, {high:.0f}]}}.",
        )
    if dimension.kind == "int" and field not in WHOLE + WHOLE_OR_NOT:
        raise refuse(
            field,
            f"{field} is a number of any size, and int draws whole numbers alone",
            kind="bad_value",
            given=given,
            allowed="uniform or loguniform: [low, high], or a list of numbers",
            hint=f"Write {field}: {{uniform: [{low:g}, {high:g}]}}.",
        )


def require_value(field: str, value: Value, job: Job) -> Value:
    """Return a value as the field's section spells it (3 epochs are 3.0). Raises InputError `bad_value`."""
    section: type[Section] = MethodConfig if field in METHOD_FIELDS else TrainConfig
    # Both are numbers above 0, of any size.
    name = "alpha" if field == RATIO else field
    try:
        read: Value = getattr(section.model_validate({name: value}), name)
    except ValidationError as error:
        problems = dict.fromkeys(
            problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
            for problem in error.errors(include_url=False)
        )
        raise refuse(
            field,
            f"{field} cannot be {value!r}",
            kind="bad_value",
            given=value,
            allowed=" or ".join(problems),
            hint=" ".join((section.model_fields[name].description or "").split()),
        ) from None
    return read


def value_of(job: Job, field: str) -> Value | None:
    """Return what a job says of a field; None for max_steps where there are none."""
    if field == RATIO:
        return job.method.alpha / job.method.rank
    value: Value | None = getattr(job.method if field in METHOD_FIELDS else job.train, field)
    return value


def apply(job: Job, config: Config) -> Job:
    """Return the job with a configuration's values in place of its own, without its sweep section.

    A constant schedule has no end to fall to: it takes a minimum that was given for the others as 0, so that both
    are the same trial. Raises InputError `bad_value` for a value that its field does not take.
    """
    method = {name: getattr(job.method, name) for name in job.method.model_fields_set}
    train = {name: getattr(job.train, name) for name in job.train.model_fields_set}
    for field, value in config.items():
        (method if field in METHOD_FIELDS else train)[field] = require_value(field, value, job)
    ratio = method.pop(RATIO, None)
    if ratio is not None:
        method["alpha"] = float(SIGNIFICANT.format(ratio * method.get("rank", job.method.rank)))
    if train.get("schedule", job.train.schedule) == "constant" and {"schedule", "min_learning_rate"} & set(config):
        train["min_learning_rate"] = 0.0
    parts = {"method": MethodConfig.model_validate(method), "train": TrainConfig.model_validate(train), "sweep": None}
    return job.model_copy(update=parts)


def scale_of(method: MethodConfig) -> float:
    """Return what an adapter's update is multiplied with: alpha/r, or alpha/sqrt(r) with rslora."""
    return method.alpha / (method.rank**0.5 if method.rslora else method.rank)


def method_identity(method: MethodConfig) -> dict[str, Any]:
    """Return what of a method decides weights: a rank and scale are the same adapter, however the scale is written."""
    if method.kind == "full":
        return {"kind": "full"}
    modules = method.target_modules
    return {
        "kind": "lora",
        "rank": method.rank,
        "scale": SIGNIFICANT.format(scale_of(method)),
        "dropout": method.dropout,
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
    }
