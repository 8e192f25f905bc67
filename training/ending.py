"""How a run ended: the fields of the "end" line in `metrics.jsonl`, and a sentence for the terminal and the report."""

from collections.abc import Mapping

from penstock.training.records import EndedBy, Ending


def ending(*, total_steps: int, epochs: int, schedule_epoch: float, data_epochs: float) -> Ending:
    """What ended a run that got to `schedule_epoch` of `epochs` in its schedule, after `data_epochs` of images."""
    ended_by: EndedBy = "recipe"
    if schedule_epoch < epochs:
        ended_by = "max_steps"
    elif data_epochs < epochs - 1e-6:
        ended_by = "max_minutes"
    return {"ended_by": ended_by, "total_steps": total_steps, "epochs": epochs, "data_epochs": round(data_epochs, 3)}


def how_it_ended(end: Mapping[str, object]) -> str:
    """A sentence about an "end" line, without a full stop. For lines of earlier versions it has only the step."""
    step, total, by = end.get("step"), end.get("total_steps"), end.get("ended_by")
    if by == "max_steps":
        return f"Stopped by --max-steps after {step} of {total} steps"
    if by == "max_minutes":
        fitted = f"{end.get('epochs')} epochs to {end.get('data_epochs')} epochs of images"
        return f"Finished after step {step}: --max-minutes shortened the {fitted}"
    return f"Finished after step {step}"
