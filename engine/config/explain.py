"""What to say about a wrong key or value: where it stands, what was expected, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

from engine.config.keys import MOST_USED, Node, Path, all_keys, choices, in_words, node_at, options, shown, tag_of

RECIPE = "the recipe"
"""The place of a value that a recipe sets by itself."""

ELSEWHERE = {
    "api_key": "scorer.server.api_key_env, the NAME of an environment variable",
    "beta": "algorithm.eta = 1 / beta in sppo, algorithm.beta in the other algorithms",
    "pairs": "sampling.num_samples",
    "num_generations": "sampling.num_samples",
    "n_samples": "sampling.num_samples",
    "n_samples_per_prompt": "sampling.num_samples",
    "best_of_n": "sampling.num_samples",
    "max_tokens": "sampling.max_new_tokens",
    "max_completion_length": "sampling.max_new_tokens",
    "response_length": "sampling.max_new_tokens",
    "max_prompt_length": "sampling.max_prompt_tokens",
    "max_length": "sampling.max_prompt_tokens + sampling.max_new_tokens",
    "max_seq_length": "sampling.max_prompt_tokens + sampling.max_new_tokens",
    "learning_rate": "learner.optimizer.lr",
    "optim": "learner.optimizer.name",
    "gradient_clipping": "learner.optimizer.max_grad_norm",
    "lr_scheduler_type": "learner.schedule.kind",
    "warmup_steps": "learner.schedule.warmup_steps",
    "num_warmup_steps": "learner.schedule.warmup_steps",
    "max_steps": "learner.schedule.max_steps",
    "num_epochs": "learner.schedule.scheduler_total_epochs and learner.schedule.stop_after_epochs",
    "num_train_epochs": "learner.schedule.scheduler_total_epochs and learner.schedule.stop_after_epochs",
    "per_device_train_batch_size": "learner.micro_batch_size (and learner.batch_size for all ranks together)",
    "gradient_accumulation_steps": "learner.batch_size / (learner.micro_batch_size x learner.num_ranks)",
    "train_batch_size": "learner.batch_size",
    "bf16": "model.dtype = bfloat16",
    "fp16": "model.dtype = bfloat16 or float32 (the loss of SPPO overflows 16-bit floats)",
    "lora_r": "learner.lora.rank",
    "lora_rank": "learner.lora.rank",
    "lora_alpha": "learner.lora.alpha",
    "lora_target_modules": "learner.lora.target_modules",
    "loss_weights": "algorithm.losses",
    "rpo_alpha": "algorithm.nll_weight",
    "cpo_alpha": "algorithm.alpha",
    "simpo_gamma": "algorithm.gamma",
    "discopop_tau": "algorithm.tau",
    "m": "algorithm.margin",
    "loss_type": "algorithm.name, or algorithm.losses in dpo",
    "model_name_or_path": "model.path",
    "dataset_name": "prompts.source",
    "output_dir": "output and name",
    "reward_model": "scorer.path",
    "canary": "scorer.null_model",
    "tp": "generator.tensor_parallel_size",
    "world_size": "learner.num_ranks",
    "deepspeed": "learner.zero_stage and learner.offload_optimizer",
    "report_to": "tracking.report_to",
    "tensorboard": "tracking.report_to=[tensorboard]",
    "eval_steps": "learner.evaluate_every, with evaluation.preferences",
    "eval_dataset": "evaluation.preferences",
    "eval_split": "evaluation.preferences.split",
    "eval_strategy": "learner.evaluate_every, with evaluation.preferences",
    "evaluation_strategy": "learner.evaluate_every, with evaluation.preferences",
    "test_size": "evaluation.preferences.share",
    "test_split": "evaluation.preferences.share",
    "validation_split": "evaluation.preferences.share",
    "load_best_model_at_end": "learner.keep_best_step",
    "metric_for_best_model": "learner.keep_best_step and learner.early_stopping.metric, loss or accuracy",
    "early_stopping_patience": "learner.early_stopping.patience",
    "early_stopping_threshold": "learner.early_stopping.min_delta",
    "<<": "a `defaults:` line; merge keys are not part of YAML 1.2",
}
"""What keys of TRL, OpenRLHF, verl, the released SPPO code and earlier versions are called here."""

NOT_HERE = {
    "generator.kind": "generators are vLLM engines; remove the key",
    "learner.kind": "the learner is a DeepSpeed group; remove the key",
    "push_to_hub": "nothing is pushed to the hub; upload a version with `hf upload REPO OUTPUT/NAME/weights/001`, an "
    "adapter after `kumite merge`",
}
"""What to do instead, for keys that have no counterpart."""

RENAMED_VALUES = {"side_by_side": "disaggregated", "turns": "colocated", "given": "dataset"}


def is_no_number(value: bool | str, node: Node) -> bool:
    """Whether true, false or a number in quotes stands where only a number may."""
    types = {option.get("type") for option in options(node)}
    if not types & {"integer", "number"} or types & {"boolean", "string"}:
        return False
    return isinstance(value, bool) or _looks_like_number(value)


def _looks_like_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text.strip()) is not None


def messages(refused: dict[Path, Any], errors: list[Any], data: Any, place: Callable[[Path], str]) -> list[str]:
    """One message per wrong key of the configuration `data`.

    `refused` are values that are no numbers; `errors` are pydantic's, which has several where a value may be of
    several types; `place(path)` is where a key was written.
    """
    details = {path: {"type": "refused", "input": value} for path, value in refused.items()}
    for error in errors:
        path = _path(error, data)
        if not any(other[: len(path)] == path for other in refused):  # keys are compared once each of them is right
            details.setdefault(path, error)
    return [
        _message(path, error, data, place)
        for path, error in details.items()
        if not any(path[:n] in details for n in range(len(path)))
    ]


def _path(error: Any, data: Any) -> Path:
    """The path that a pydantic error means, without the names of union members in it."""
    path: Path = ()
    for part in error["loc"]:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            path, data = (*path, part), data[part]
    return (*path, error["loc"][-1]) if _is_missing_key(error) else path


def _is_missing_key(error: Any) -> bool:
    """Whether a section lacks a key; pydantic calls a list that is too short "missing" too."""
    return error["type"] == "missing" and isinstance(error["loc"][-1], str)


def _message(path: Path, error: Any, data: Any, place: Callable[[Path], str]) -> str:
    """What is wrong with the key at `path`, in words."""
    name, node = ".".join(map(str, path)), node_at(path, data)
    if error["type"] == "extra_forbidden":
        hint = advice(path)
        return f"{name}: unknown key{'; ' + hint if hint else ''} ({place(path)})"
    if error["type"] == "value_error":
        text = str(error["ctx"]["error"])
        return f"{name}: {text} ({place(path)})" if name else f"{text} ({_place_of_first_key(text, data, place)})"
    value: Any = error["input"]
    is_missing = _is_missing_key(error)
    if (tag := tag_of(node)) and isinstance(value, dict) and not is_missing:  # the section's variant is wrong
        path, name, node = (*path, tag), f"{name}.{tag}", {"enum": choices(node)}
        is_missing, value = tag not in value, value.get(tag)
    if is_missing:
        return f"{name}: missing; expected {in_words(node)} ({place(path)})"
    return f"{name} = {shown(value)}: expected {in_words(node)}{_hint(value, node)} ({place(path)})"


def _place_of_first_key(text: str, data: Any, place: Callable[[Path], str]) -> str:
    """Where the first key that a message names was written, unless by the recipe."""
    for word in re.findall(r"\w+(?:\.\w+)+", text):
        path, value = tuple(word.split(".")), data
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and place(path) != RECIPE:
            return place(path)
    return place(())


def _hint(value: Any, node: Node) -> str:
    """What the person may have meant by a wrong value."""
    if isinstance(value, str) and is_no_number(value, node):
        return f"; this is text, write {value.strip()} without quotes"
    allowed = [str(choice) for option in options(node) for choice in option.get("enum", [])]
    if (new := RENAMED_VALUES.get(str(value))) in allowed:
        return f"; here it is {new}"
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def advice(path: Path) -> str:
    """What a person who wrote the unknown key `path` may have meant; empty if nothing comes near."""
    dotted, name = ".".join(map(str, path)), str(path[-1])
    here = f"here it is {ELSEWHERE[name]}" if name in ELSEWHERE else NOT_HERE.get(dotted) or NOT_HERE.get(name, "")
    if kinds := [key.variant for key in all_keys() if key.path == dotted and key.variant]:
        section = ".".join(map(str, path[:-1]))
        return f"it belongs to another kind of {section}: {', '.join(dict.fromkeys(kinds))}{'; ' if here else ''}{here}"
    if any(key.path == name for key in all_keys()) and "." in name:
        return "dots work on the command line; in a file write nested sections"
    if here:
        return here
    if any(key.path == dotted for key in all_keys()):
        return "it is a key of runs, which has no meaning here"
    names = _nearest(dotted, name, list(dict.fromkeys(key.path for key in all_keys())))
    return f"did you mean {' or '.join(names)}?" if names else ""


def _nearest(dotted: str, name: str, keys: list[str]) -> list[str]:
    """Up to three keys: the same name elsewhere, a similar name here or in ELSEWHERE, or similar names elsewhere."""
    last = {path: path.rpartition(".")[2] for path in keys}
    if same := [path for path in keys if last[path] == name]:
        likeness = {path: difflib.SequenceMatcher(None, path, dotted).ratio() for path in same}
        return sorted(same, key=lambda path: (path not in MOST_USED, -likeness[path]))[:3]
    parent = dotted.rpartition(".")[0]
    siblings = {last[path]: path for path in keys if path.rpartition(".")[0] == parent}
    similar = difflib.get_close_matches(name, {**ELSEWHERE, **siblings}, n=1, cutoff=0.7)
    if similar := similar or difflib.get_close_matches(name, siblings, n=1):
        return [siblings.get(similar[0]) or ELSEWHERE[similar[0]]]
    names = difflib.get_close_matches(name, set(last.values()), n=1, cutoff=0.7)
    return [path for path in keys if last[path] in names][:3]
