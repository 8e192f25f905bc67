"""How a run ended: the fields of `metrics.jsonl`'s "end" line, and its sentence for the terminal and the report."""

from typing import Any


def ending(*, step: int, total_steps: int, epochs: int, schedule_epoch: float, data_epochs: float) -> dict[str, Any]:
    """ended_by: "recipe", "max_steps" (before the end of the schedule's `epochs`), or "max_minutes", where the schedule
    was gone through to its end on fewer images, `data_epochs` of them. total_steps: of the recipe."""
    in_full = "max_minutes" if data_epochs < epochs - 1e-6 else "recipe"
    ended_by = "max_steps" if schedule_epoch < epochs else in_full
    return {"ended_by": ended_by, "total_steps": total_steps, "epochs": epochs, "data_epochs": round(data_epochs, 3)}


def how_it_ended(end: dict[str, Any]) -> str:
    """The sentence of an "end" line, without a full stop; one of an earlier version says the step alone."""
    step, total, by = end.get("step"), end.get("total_steps"), end.get("ended_by")
    if by == "max_steps":
        return f"Ended by --max-steps after {step} of {total} steps"
    if by == "max_minutes":
        fitted = f"{end.get('epochs')} epochs to {end.get('data_epochs')} epochs of images"
        return f"Finished after step {step}: --max-minutes fitted the {fitted}"
    return f"Finished after step {step}"
